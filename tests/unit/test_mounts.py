"""The mount table: escaped names, stacked mounts, symbolic links, and that a mountpoint is never asked anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cachefs import mounts

TABLE = rb"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
40 27 0:50 / /mnt/My\040Films\011\134x rw shared:5 master:1 - fuse.cachefs cachefs rw,user_id=0
41 27 0:51 / /mnt/two rw - ext4 /dev/sda1 rw
42 41 0:52 / /mnt/two rw - fuse.cachefs cachefs rw
43 27 0:53 / /mnt/caf\351 rw - fuse.sshfs a:b\040c rw
"""


def test_octal_escapes_become_the_name_again() -> None:
    mount = mounts.topmost(mounts.parse(TABLE), Path("/mnt/My Films\t\\x"))
    assert mount is not None
    assert (mount.id, mount.device_minor, mount.is_cachefs) == (40, 50, True)


def test_undecodable_bytes_are_kept() -> None:
    mount = mounts.topmost(mounts.parse(TABLE), Path(os.fsdecode(b"/mnt/caf\xe9")))
    assert mount is not None
    assert (mount.fstype, mount.source, mount.is_cachefs) == ("fuse.sshfs", "a:b c", False)


def test_topmost_mount_wins_whatever_the_order() -> None:
    table = mounts.parse(TABLE)
    for order in (table, tuple(reversed(table))):
        mount = mounts.topmost(order, Path("/mnt/two"))
        assert mount is not None
        assert mount.id == 42


@pytest.mark.parametrize("path", ["/mnt", "/mnt/two/below", "/mnt/tw"])
def test_only_the_mountpoint_itself_counts(path: str) -> None:
    assert mounts.topmost(mounts.parse(TABLE), Path(path)) is None


def test_links_on_the_way_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real" / "point").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/../real")
    (tmp_path / "direct").symlink_to(tmp_path / "link" / "point")
    expected = Path(os.path.realpath(tmp_path / "real" / "point"))
    assert mounts.resolve(tmp_path / "link" / "point", set()) == expected
    assert mounts.resolve(tmp_path / "direct", set()) == expected


def test_a_circle_of_links_ends(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert mounts.resolve(tmp_path / "a", set()).parent == Path(os.path.realpath(tmp_path))


def test_a_mountpoint_is_never_asked_whether_it_is_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = Path(os.path.realpath(tmp_path)) / "point"
    point.mkdir()
    asked: list[Path] = []
    real_readlink = os.readlink

    def readlink(path: Path) -> str:
        asked.append(path)
        return real_readlink(path)

    monkeypatch.setattr(os, "readlink", readlink)
    assert mounts.resolve(point, {point}) == point
    assert point.parent in asked
    assert point not in asked


def test_root_is_mounted_and_an_ordinary_folder_is_not(tmp_path: Path) -> None:
    assert mounts.mounted_at(Path("/")) is not None
    assert mounts.mounted_at(tmp_path) is None


def test_unmounting_what_is_not_mounted_is_fine(tmp_path: Path) -> None:
    mounts.unmount(tmp_path, force=True)
    assert tmp_path.is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a tmpfs")
def test_the_topmost_mount_goes_even_when_a_file_is_open(tmp_path: Path) -> None:
    point = tmp_path / "a b"
    point.mkdir()
    if os.spawnlp(os.P_WAIT, "mount", "mount", "-t", "tmpfs", "none", str(point)):
        pytest.skip("no right to mount here")
    with (point / "open").open("w"):
        mounts.unmount(point, force=False)
        assert mounts.mounted_at(point) is None
    assert not (point / "open").exists()
