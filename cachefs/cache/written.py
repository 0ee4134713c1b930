"""Names of files, as the index and the keepsake have them in JSON. Raises ``ValueError`` or ``TypeError`` for what
nobody can have written.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from cachefs.model import FileKey, SourceName
from cachefs.paths import cache_path


def names_of(files: Iterable[FileKey]) -> list[list[str]]:
    return [[key.source, key.path] for key in files]


def files_of(rows: object) -> tuple[FileKey, ...]:
    """What ``names_of`` was given."""
    if not isinstance(rows, list):
        raise TypeError(f"no files: {rows!r:.80}")
    return tuple(file_of(*row) for row in rows)


def file_of(source: object, path: object) -> FileKey:
    if not (isinstance(source, str) and isinstance(path, str)):
        raise TypeError("no file")
    key = FileKey(SourceName(source), path)
    os.fsencode(cache_path(key))  # ValueError for a name that leads elsewhere, or that no file can have
    return key
