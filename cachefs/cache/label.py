"""What a published file says about itself: whose copy it is. From this a lost index is made anew.

``cache.folder`` writes it to the complete partial file before that is made durable and gets its name, so that whatever
has a published name and a label was whole. ``cache.adoption`` reads it. It is an extended attribute: it goes where the
file goes, and with it. On an SSD without extended attributes files have no labels, and a lost index costs the copies.

A moved file says that it is the only one, and what its home is: its own place below ``files`` says where. That is true
whatever is written to it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from cachefs.cache import homes
from cachefs.model import FileKey, Fingerprint, Home, SourceFile

log = logging.getLogger(__name__)

T = TypeVar("T")

PREFIX = "user.cachefs."
"""Ours alone: no attribute of a source that is called so is copied."""
NAME = f"{PREFIX}entry"
_FORM = 1
_FORM_MOVED = 2
_NO_LABEL = (errno.ENODATA, errno.ENOTSUP)
_NO_ROOM = (errno.ENOTSUP, errno.ENOSPC, errno.EDQUOT, errno.E2BIG, errno.ERANGE, errno.EPERM, errno.EACCES)


@dataclass(frozen=True, slots=True)
class Label:
    """Whose copy a file is, and since when it is being made."""

    file: SourceFile
    begun_at: float
    home: Home | None = None
    """Of a moved file."""
    entry_id: int = 0
    """Of a moved file: by which its row is found again after it was renamed."""


def write(number: int, label: Label) -> bool:
    """Label an open file whose bytes and times are final. False where that cannot be. Raises ``OSError`` when the SSD
    fails."""
    info = os.fstat(number)
    value = _encode(label, info.st_mtime_ns)
    try:
        _permitted(number, stat.S_IWUSR, lambda: os.setxattr(number, NAME, value))
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        log.debug("%s cannot be labelled: %s", label.file.key, error.strerror)
        return False
    return True


def read(number: int, key: FileKey) -> Label | None:
    """The label of an open file that is called after ``key``. None when there is none, when it is another file's, or
    when the file was written to after it was labelled. Raises ``OSError`` when nobody can tell: a label that cannot be
    read may say that this is the only copy."""
    value, info = _value(number), os.fstat(number)
    if value is None:
        return None
    try:
        found = json.loads(value)
        if found["form"] == _FORM_MOVED:
            return _moved(found, key, info)
        if found["form"] != _FORM or found["key"] != _digest(key):
            return None
        size, mtime_ns = _typed(found["size"], int), _typed(found["mtime_ns"], int)
        if (info.st_size, info.st_mtime_ns) != (size, _typed(found["own_mtime_ns"], int)):
            return None
        inode, filesystem = found["source_inode"], found["filesystem"]
        fingerprint = Fingerprint(
            size,
            mtime_ns,
            None if inode is None else _number(inode),
            None if filesystem is None else _typed(filesystem, str).encode().decode(),
        )
        file = SourceFile(key, fingerprint, _number(found["inode"]), _number(found["links"], 63))
        return Label(file, _moment(found["begun_at"]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def says_nothing(number: int) -> bool:
    """Whether an open file has no label, or one that nobody understands: not even that it is a copy. Raises
    ``OSError`` when nobody can tell."""
    value = _value(number)
    if value is None:
        return True
    try:
        return bool(json.loads(value)["form"] != _FORM)
    except (ValueError, KeyError, TypeError, RecursionError):
        return True


def claims_to_be_moved(value: bytes) -> bool:
    """Whether such a label is worth to be read, by somebody who looks for moved files among many others."""
    return b'"home"' in value


def _value(number: int) -> bytes | None:
    try:
        return _permitted(number, stat.S_IRUSR, lambda: os.getxattr(number, NAME))
    except OSError as error:
        if error.errno in _NO_LABEL:
            return None
        raise


def _permitted(number: int, right: int, act: Callable[[], T]) -> T:
    """Do it, also to a file whose mode does not even let its owner: then the mode is another one, but not for long."""
    try:
        return act()
    except PermissionError:
        mode = stat.S_IMODE(os.fstat(number).st_mode)
        if mode & right:
            raise
        os.fchmod(number, mode | right)
        try:
            return act()
        finally:
            os.fchmod(number, mode)


def _moved(found: dict[str, object], key: FileKey, info: os.stat_result) -> Label:
    """Of a moved file all that may change by writing or renaming is read off the file itself."""
    home = homes.decode(_typed(found["home"], str))
    file = SourceFile(key, Fingerprint(info.st_size, info.st_mtime_ns), _number(found["inode"]))
    begun_at = 0.0
    with suppress(ValueError):  # the only copy is not lost for want of it
        begun_at = _moment(found["begun_at"])
    return Label(file, begun_at, home, _number(found["id"], 63))


def _encode(label: Label, own_mtime_ns: int) -> bytes:
    """As JSON, so that a person can read it. The name is a digest, since ext4 has 4 KiB for all attributes together
    and a path may take as much."""
    file, fingerprint = label.file, label.file.fingerprint
    facts: dict[str, object]
    if label.home is not None:
        facts = {
            "form": _FORM_MOVED,
            "note": "the only copy of this file: cachefs restore brings it back to its source",
            "id": label.entry_id,
            "home": homes.encode(label.home),
            "inode": file.inode,
            "begun_at": label.begun_at,
        }
        return json.dumps(facts).encode("ascii")
    facts = {
        "form": _FORM,
        "key": _digest(file.key),
        "size": fingerprint.size,
        "mtime_ns": fingerprint.mtime_ns,
        "source_inode": fingerprint.inode,
        "filesystem": fingerprint.filesystem,
        "inode": file.inode,
        "links": file.links,
        "begun_at": label.begun_at,
        "own_mtime_ns": own_mtime_ns,
    }
    return json.dumps(facts).encode("ascii")


def _digest(key: FileKey) -> str:
    return hashlib.sha256(os.fsencode(f"{key.source}\0{key.path}")).hexdigest()[:32]


def _number(value: object, bits: int = 64) -> int:
    """What the index can hold; whoever may write to the SSD may have written this."""
    number = _typed(value, int)
    if not 0 <= number < 1 << bits:
        raise ValueError(f"{number.bit_length()} bits are more than there can be")
    return number


def _moment(value: object) -> float:
    if not isinstance(value, float | int) or not 0 <= value < 1 << 63:  # which is not true of "not a number", either
        raise ValueError("there is no such moment")
    return float(value)


def _typed(value: object, form: type[T]) -> T:
    if type(value) is not form:
        raise TypeError(f"{value!r:.80} is no {form.__name__}")
    return value
