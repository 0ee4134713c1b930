"""What ``df`` shows of the mount. Pure."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

_BLOCK_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Space:
    """statfs(2) of a file system, in blocks of ``block_bytes``."""

    block_bytes: int
    blocks: int
    free: int
    available: int
    files: int
    files_free: int
    longest_name: int


def total(statuses: Sequence[os.statvfs_result]) -> Space:
    """One source's own numbers; for several, the sum over their file systems, each counted once."""
    distinct = list({(status.f_fsid, status.f_blocks, status.f_files): status for status in statuses}.values())
    block = distinct[0].f_frsize if len(distinct) == 1 else _BLOCK_BYTES
    return Space(
        block_bytes=block,
        blocks=sum(s.f_blocks * s.f_frsize // block for s in distinct),
        free=sum(s.f_bfree * s.f_frsize // block for s in distinct),
        available=sum(s.f_bavail * s.f_frsize // block for s in distinct),
        files=sum(s.f_files for s in distinct),
        files_free=sum(s.f_ffree for s in distinct),
        longest_name=min(s.f_namemax for s in distinct),
    )
