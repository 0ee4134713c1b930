"""The file-operation scenarios, against the operations in process; ``tests.mount.test_fileops`` mounts for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from cachefs.fs.operations import Operations
from tests.engine.fskit import Kernel, rooms
from tests.fileops import SCENARIOS, Scenario, put, refused


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_in_process(scenario: Scenario, tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        kernel = Kernel(Operations(fs.union, fs.routing, fs.changes), fs.folder)
        before = _open_files()
        with trio.fail_after(30):
            await trio.to_thread.run_sync(scenario, kernel)
        assert [node.number for node in fs.union.inodes] == [1]
        fs.source.folders.forget("")
        for _ in range(1000):
            if _open_files() == before:
                break
            await trio.sleep(0.01)  # a thread is closing it just now
        assert _open_files() == before


def _open_files() -> set[str]:
    """What this process has open on disk: a scenario that has closed everything leaves nothing behind."""
    links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return {target for link in links if os.path.lexists(link) and "/sources/" in (target := os.readlink(link))}


async def test_a_listing_goes_on_wherever_seekdir_leads(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        for index in range(1200):
            (fs.folder / f"{index:04}").touch()
        kernel = Kernel(Operations(fs.union, fs.routing, fs.changes), fs.folder)

        def scenario() -> None:
            fh = kernel.call(kernel.operations.opendir, 1, kernel.caller)
            whole = kernel.read_folder(fh, 0, most=2000)
            assert kernel.read_folder(fh, 0) == whole[:100]
            assert kernel.read_folder(fh, whole[1100].position) == whole[1101:1201]
            kernel.call(kernel.operations.releasedir, fh)

        await trio.to_thread.run_sync(scenario)


async def test_a_node_met_by_a_listing_and_a_lookup_is_forgotten_only_by_both(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        (fs.folder / "a").write_bytes(b"a")
        root = fs.union.node(1)
        listed = (await fs.union.contents.children(root, ["a"]))["a"]
        looked = await fs.union.lookup(root, "a")
        fs.union.inodes.looked_up(looked.node)
        fs.union.inodes.looked_up(listed.node)
        assert fs.union.inodes.forgotten(listed.node.number, 1) is None
        assert fs.union.node(looked.node.number) is looked.node
        assert fs.union.inodes.forgotten(listed.node.number, 1) is looked.node


async def test_the_root_over_several_sources_is_fixed(tmp_path: Path) -> None:
    async with rooms(tmp_path, "Films", "TV") as fs:
        kernel = Kernel(Operations(fs.union, fs.routing, fs.changes), fs.folder)

        def scenario() -> None:
            assert {name for name, _ in kernel.entries("")} == {".", "..", "Films", "TV"}
            with refused(1):
                kernel.mkdir("new")
            with refused(1):
                put(kernel, "new")
            with refused(1):
                kernel.rmdir("Films")
            with refused(1):
                kernel.rename("Films", "Movies")
            with refused(1):
                kernel.chmod("", 0o700)
            with refused(61):
                kernel.getxattr("", "user.anything")
            assert kernel.listxattr("") == []

        await trio.to_thread.run_sync(scenario)


async def test_nothing_moves_between_sources(tmp_path: Path) -> None:
    async with rooms(tmp_path, "Films", "TV") as fs:
        kernel = Kernel(Operations(fs.union, fs.routing, fs.changes), fs.folder)

        def scenario() -> None:
            put(kernel, "Films/a", b"a")
            with refused(18):
                kernel.rename("Films/a", "TV/a")
            with refused(18):
                kernel.link("Films/a", "TV/a")

        await trio.to_thread.run_sync(scenario)
        assert (fs.folder / "a").read_bytes() == b"a"
