"""The steps of a moved file on the SSD: what it says of itself, its end, its other name. Each durable when it returns.

Called by ``cache.moves`` in the SSD's threads. As ``cache.folder``: plain disk work that raises ``OSError``, knows no
entries and decides nothing.
"""

from __future__ import annotations

import os

from cachefs.cache import inside, label
from cachefs.cache.folder import Folder
from cachefs.cache.label import Label
from cachefs.model import FileKey
from cachefs.paths import cache_path


def relabel(folder: Folder, said: Label) -> bool:
    """Write what a published file says of itself, and make it durable."""
    number = inside.open_file(folder.place, cache_path(said.file.key))
    try:
        written = label.write(number, said)
        os.fsync(number)
    finally:
        os.close(number)
    return written


def remove(folder: Folder, key: FileKey) -> None:
    above = os.path.dirname(cache_path(key))
    inside.unlink(folder.place, cache_path(key))
    folder.sync_folders((above,))
    folder.prune(above)


def rename(folder: Folder, old: FileKey, new: FileKey) -> None:
    source, target = cache_path(old), cache_path(new)
    try:
        changed = folder.make_folders_of(new)
        inside.rename(folder.place, source, target)
    except OSError:
        folder.prune(os.path.dirname(target))
        raise
    folder.sync_folders((*changed, os.path.dirname(target), os.path.dirname(source)))
    folder.prune(os.path.dirname(source))
