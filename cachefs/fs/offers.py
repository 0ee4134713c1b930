"""Opens, closes and reads that need no Python: the other side of ``offers.c``. Used by ``routing`` only."""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass

from cachefs.fs import channel

_KEEP_CACHE = 1 << 1
_PASSTHROUGH = 1 << 7
"""FOPEN_… of linux/fuse.h."""
_NS = 1_000_000_000

_library = channel.functions(quick=True)


class _UsageOut(ctypes.Structure):
    """``struct usage`` of offers.c."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("opens", "reads", "bytes", "open", "idle_ns")]


_U64 = ctypes.c_uint64
if _library is not None:
    for _name, _result, *_arguments in (
        ("cachefs_offer", _U64, _U64, ctypes.c_uint32, ctypes.c_int32, ctypes.c_int, _U64),
        ("cachefs_offer_renew", None, _U64, _U64),
        ("cachefs_offer_opened", None, _U64),
        ("cachefs_offer_usage", None, _U64, ctypes.c_void_p),
        ("cachefs_offer_withdraw", None, _U64),
        ("cachefs_offer_end", None, _U64),
    ):
        _function = getattr(_library, _name)
        _function.restype, _function.argtypes = _result, _arguments


@dataclass(frozen=True, slots=True)
class Usage:
    """What happened since it was asked last: opens, reads and their bytes; handles that are open now, and for how long
    there has been none."""

    opens: int
    reads: int
    bytes: int
    open: int
    idle_s: float


class Offer:
    """One inode that readers may open without asking, until ``withdraw``. All its handles have one number."""

    __slots__ = ("handle", "passthrough")

    def __init__(self, handle: int, *, passthrough: bool) -> None:
        self.handle = handle
        self.passthrough = passthrough

    @staticmethod
    def make(number: int, backing_id: int | None, descriptor: int, holds_s: float) -> Offer | None:
        """Offer a file: served by the kernel from a backing file, or (None) by the daemon, whose reads may come from
        ``descriptor``. After ``holds_s`` Python is asked again. None where there is no room, or no channel."""
        if _library is None or not channel.is_bound():
            return None
        flags = _KEEP_CACHE if backing_id is None else _PASSTHROUGH
        handle = int(_library.cachefs_offer(number, flags, backing_id or 0, descriptor, _until(holds_s)))
        return Offer(handle, passthrough=backing_id is not None) if handle else None

    def renew(self, holds_s: float) -> None:
        """It holds for so long from now on."""
        assert _library is not None
        _library.cachefs_offer_renew(self.handle, _until(holds_s))

    def opened(self) -> None:
        """Python answers an open with this handle itself."""
        assert _library is not None
        _library.cachefs_offer_opened(self.handle)

    def usage(self) -> Usage:
        assert _library is not None
        out = _UsageOut()
        _library.cachefs_offer_usage(self.handle, ctypes.byref(out))
        return Usage(out.opens, out.reads, out.bytes, out.open, out.idle_ns / _NS)

    def withdraw(self) -> None:
        """Every request comes to Python from now on."""
        assert _library is not None
        _library.cachefs_offer_withdraw(self.handle)

    def end(self) -> None:
        """No handle has this number any more."""
        assert _library is not None
        _library.cachefs_offer_end(self.handle)


def _until(holds_s: float) -> int:
    return time.monotonic_ns() + int(holds_s * _NS)
