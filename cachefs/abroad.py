"""Moved files whose SSD is not there: a source keeps places for them, and the cache folder holds no file at all.

Asked by the daemon before it mounts and by ``check``, so that they say the same. An SSD that is not mounted leaves an
empty folder; a mount without the moved files would show a library with holes, and Plex would take them for deleted.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from cachefs.fs.keepings import kept_in


def count(source: Path) -> int:
    """How many files the source keeps places for; 0 where that cannot be seen. Blocks."""
    with suppress(OSError):
        return kept_in(source)
    return 0


def refusal(cache: Path, source: Path, name: str, kept: int) -> str:
    """What is said where a source keeps so many places."""
    files = "a file" if kept == 1 else f"{kept} files"
    return (
        f"source {name} has moved {files} to an SSD, and the cache folder {cache} holds none: is the SSD mounted? "
        f"Without it they would be missing in the mount. If they are at home again, or lost for good, remove {source}"
        f"/.cachefs-moved; but first copy to the source what there is in {cache}/files/{name}: files that say nothing "
        "of themselves, since their extended attributes were lost on the way to another SSD, may be the ones"
    )
