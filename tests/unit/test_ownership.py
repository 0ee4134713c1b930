"""PUID, PGID and UMASK: whose the files are that the daemon itself writes."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cachefs.errors import UserError
from cachefs.ownership import Ownership


def _rights(path: Path) -> str:
    return f"{stat.S_IMODE(path.stat().st_mode):o}"


@pytest.mark.parametrize(
    ("environ", "rights_of_folder", "rights_of_file", "rights_of_index"),
    [({}, "700", "600", "600"), ({"UMASK": "022"}, "755", "644", "600"), ({"UMASK": "002"}, "775", "664", "600")],
)
def test_umask_decides_who_may_look_into_the_cache_but_not_into_who_watches_what(
    tmp_path: Path, environ: dict[str, str], rights_of_folder: str, rights_of_file: str, rights_of_index: str
) -> None:
    ownership = Ownership.of(environ)
    ownership.make_folder(tmp_path / "folder")
    for name, rights in (("file", 0o666), ("index", 0o600)):
        (tmp_path / name).touch(0o600)
        ownership.give(tmp_path / name, rights)
    assert _rights(tmp_path / "folder") == rights_of_folder
    assert _rights(tmp_path / "file") == rights_of_file
    assert _rights(tmp_path / "index") == rights_of_index


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_puid_and_pgid_own_what_is_made(tmp_path: Path) -> None:
    ownership = Ownership.of({"PUID": "99", "PGID": " 100 "})
    ownership.make_folder(tmp_path / "folder")
    (tmp_path / "file").touch()
    ownership.give(tmp_path / "file")
    for name in ("folder", "file"):
        found = (tmp_path / name).stat()
        assert (found.st_uid, found.st_gid) == (99, 100)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_link_in_the_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "somebody else's"
    other.touch(0o600)
    (tmp_path / "link").symlink_to(other)
    with pytest.raises(OSError, match="not supported"):
        Ownership.of({"PUID": "99"}).give(tmp_path / "link")
    assert (other.stat().st_uid, _rights(other)) == (0, "600")


@pytest.mark.parametrize("environ", [{"PUID": "nobody"}, {"UMASK": "0o9"}])
def test_what_is_no_number_is_said(environ: dict[str, str]) -> None:
    with pytest.raises(UserError, match="is no number; write it like"):
        Ownership.of(environ)
