"""How a file of a source is reached: only if it is still the one that was meant, whatever has its number now."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cachefs.descriptors import Descriptor
from cachefs.fs.folders import Folders
from cachefs.fs.reach import Ref, folder_of, open_node, place_of, stat_node
from cachefs.fs.stat import look
from tests.fileops import refused


def ref_to(folder: Path, name: str) -> Ref:
    root = Descriptor(os.open(folder, os.O_PATH | os.O_DIRECTORY))
    with root.use() as number:
        seen = look(number, name)
    return Ref(Folders(root), (name,), seen.dev, seen.ino, stat.S_IFMT(seen.mode), seen.birth_ns)


def test_a_file_is_reached_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "film").write_bytes(b"film")
    meant = ref_to(tmp_path, "film")
    assert stat_node(meant).size == 4
    opened = open_node(meant, os.O_RDONLY)
    assert opened.stat.ino == meant.ino
    opened.close()


@pytest.mark.parametrize(
    "changed",
    [
        lambda ref: replace(ref, kind=stat.S_IFDIR),
        lambda ref: replace(ref, born_ns=ref.born_ns - 1),
        lambda ref: replace(ref, ino=ref.ino + 1),
        lambda ref: replace(ref, dev=ref.dev + 1),
    ],
    ids=["kind", "birth", "number", "device"],
)
def test_another_that_has_its_name_or_its_number_is_not_taken_for_it(
    tmp_path: Path, changed: Callable[[Ref], Ref]
) -> None:
    """A folder with the number of a file that was removed: the kernel would give up the inode, with EIO."""
    (tmp_path / "film").write_bytes(b"film")
    was = changed(ref_to(tmp_path, "film"))
    with refused(errno.ESTALE):
        stat_node(was)
    with refused(errno.ESTALE):
        open_node(was, os.O_RDONLY)
    with refused(errno.ESTALE), place_of(was):
        pass


@pytest.mark.parametrize("field", ["born_ns", "ino", "dev"])
def test_another_folder_that_has_its_name_or_its_number_is_not_taken_for_it(tmp_path: Path, field: str) -> None:
    (tmp_path / "folder").mkdir()
    meant = ref_to(tmp_path, "folder")
    with folder_of(meant) as folder:
        assert os.path.samestat(os.fstat(folder), (tmp_path / "folder").stat())
    was = replace(meant, **{field: getattr(meant, field) + 1})
    with refused(errno.ESTALE), folder_of(was):
        pass
