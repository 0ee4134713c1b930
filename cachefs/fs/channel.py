"""Loads ``channel.c`` before pyfuse3, so that the session runs over it, and says whether it does.

Imported by the package ``cachefs.fs`` before anything else: pyfuse3's call of ``fuse_session_mount`` is bound when
pyfuse3 is first imported, to the first definition in the global scope.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib.util
import struct
import sys

_OBJECT = "cachefs.fs._channel"
_BACKING_OPEN = 0x4010E501
_BACKING_CLOSE = 0x4004E502
_HANDLE_MARK = 1 << 62
"""As in channel.c."""


def _load() -> ctypes.CDLL | None:
    """The shared object; None where it was not built, or where pyfuse3 came first and is bound to libfuse already."""
    found = importlib.util.find_spec(_OBJECT)
    if found is None or found.origin is None or "pyfuse3" in sys.modules:
        return None
    try:
        return ctypes.CDLL(found.origin, mode=ctypes.RTLD_GLOBAL)
    except OSError:  # built against a libfuse that is not here
        return None


_library = _load()
_reply_room = _library.cachefs_reply_room if _library is not None else None
if _reply_room is not None:
    _reply_room.restype, _reply_room.argtypes = ctypes.c_uint64, (ctypes.c_uint64,)


def _variable(name: str, kind: type[ctypes.c_int] | type[ctypes.c_uint64]) -> ctypes.c_int | ctypes.c_uint64:
    return kind.in_dll(_library, name) if _library is not None else kind(0)


_bound = _variable("cachefs_channel_bound", ctypes.c_int)
_node = _variable("cachefs_channel_node", ctypes.c_uint64)
_request = _variable("cachefs_channel_unique", ctypes.c_uint64)


def functions(*, quick: bool) -> ctypes.CDLL | None:
    """The object's functions; None where it is not there. ``quick`` ones are called without letting other threads run
    meanwhile, which takes longer than they do."""
    if _library is None or not quick:
        return _library
    return ctypes.PyDLL(None, handle=_library._handle)


def is_loaded() -> bool:
    """Whether the object is there; a session in this process would run over it."""
    return _library is not None


def is_bound() -> bool:
    """Whether the mounted session runs over the channel."""
    return bool(_bound.value)


def want_passthrough() -> None:
    """Before the mount is made: ask the kernel for passthrough if it offers it."""
    if _library is not None:
        ctypes.c_int.in_dll(_library, "cachefs_channel_wanted").value = 1


def want_umask() -> None:
    """Before the mount is made: ask the kernel to leave the umask to us, who know whether a default ACL rules."""
    if _library is not None:
        ctypes.c_int.in_dll(_library, "cachefs_channel_masking").value = 1


def has_passthrough() -> bool:
    """Whether the kernel offered passthrough and was asked for it; known once the first request was answered."""
    return is_bound() and bool(_value("cachefs_channel_passthrough"))


def keeps_listings() -> bool:
    """Whether the kernel keeps what is in a folder when it is told that folders need not be opened: Linux 5.1. An older
    one would take that for an error."""
    return is_bound() and bool(_value("cachefs_channel_no_opendir"))


def marked(handle: int, backing_id: int) -> int:
    """The handle that makes the kernel serve it from a backing file. ``handle`` is below 2**30."""
    return _HANDLE_MARK | handle << 32 | backing_id


def open_backing(descriptor: int) -> int:
    """Tell the kernel of a file that may back opens; returns its id. OSError: EPERM without CAP_SYS_ADMIN, ELOOP for
    a file on a stacked file system (FUSE_DEV_IOC_BACKING_OPEN, linux/fuse.h)."""
    request = bytearray(struct.pack("=iIQ", descriptor, 0, 0))
    return int(fcntl.ioctl(_value("cachefs_channel_fd"), _BACKING_OPEN, request, True))


def close_backing(backing_id: int) -> None:
    """The kernel keeps the file for handles that are open on it; the id is free again."""
    fcntl.ioctl(_value("cachefs_channel_fd"), _BACKING_CLOSE, struct.pack("=I", backing_id))


def _value(name: str) -> int:
    return ctypes.c_int.in_dll(_library, name).value if _library is not None else 0


def node() -> int | None:
    """The node id of the request that is being handled; valid until its handler first awaits. None: not known."""
    return _node.value if _bound.value else None


def request() -> int:
    """The number of the request that is being handled; as ``node``."""
    return _request.value


def room(request: int) -> int:
    """How many bytes the reply to a request to read a folder may have."""
    return int(_reply_room(request)) if _reply_room is not None else 0


def problem() -> str:
    """Why the session does not run over the channel; empty when it does, or before the mount was made."""
    if _library is None:
        return (
            "the channel object (cachefs/fs/channel.c) is not loaded; install cachefs with pip to build it. Without it "
            "one slow lookup delays others in its folder, and a client killed at the wrong moment may freeze the mount"
        )
    return "" if is_bound() else "libfuse did not take the channel; its version may be older than 3.13"
