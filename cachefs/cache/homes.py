"""What is written down of a moved file's home: the one form of it, in the index and on the file itself.

Used by ``cache.index`` and ``cache.label``. JSON, so that a person who has lost everything else can read it.
"""

from __future__ import annotations

import json

from cachefs.model import Fingerprint, Home, Phase


def encode(home: Home) -> str:
    """As one line of JSON."""
    fingerprint = home.fingerprint
    return json.dumps(
        {
            "phase": home.phase.value,
            "size": fingerprint.size,
            "mtime_ns": fingerprint.mtime_ns,
            "inode": fingerprint.inode,
            "filesystem": fingerprint.filesystem,
            "birth_ns": home.birth_ns,
            "reserved": home.reserved,
            "digest": home.digest,
        }
    )


def decode(text: str | bytes) -> Home:
    """The home that was encoded. Raises ``ValueError`` for anything else."""
    try:
        found = json.loads(text)
        fingerprint = Fingerprint(
            _whole(found["size"]),
            _whole(found["mtime_ns"]),
            None if found["inode"] is None else _whole(found["inode"]),
            None if found["filesystem"] is None else str(found["filesystem"]),
        )
        phase, reserved = Phase(found["phase"]), bool(found["reserved"])
        return Home(fingerprint, phase, _whole(found["birth_ns"]), reserved, str(found["digest"]))
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"no home of a moved file: {text!r:.80}") from error


def _whole(value: object) -> int:
    if type(value) is not int or not -(1 << 63) <= value < 1 << 64:
        raise ValueError("there is no such number in any file's attributes")
    return value
