"""Loads ``channel.c`` before pyfuse3, so that the session runs over it, and says whether it does.

Imported by the package ``cachefs.fs`` before anything else: pyfuse3's call of ``fuse_session_mount`` is bound when
pyfuse3 is first imported, to the first definition in the global scope.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys

_OBJECT = "cachefs.fs._channel"


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


def is_bound() -> bool:
    """Whether the mounted session runs over the channel."""
    return _library is not None and bool(ctypes.c_int.in_dll(_library, "cachefs_channel_bound").value)


def node() -> int | None:
    """The node id of the request that is being handled; valid until its handler first awaits. None: not known."""
    if _library is None or not is_bound():
        return None
    return ctypes.c_uint64.in_dll(_library, "cachefs_channel_node").value


def problem() -> str:
    """Why the session does not run over the channel; empty when it does, or before the mount was made."""
    if _library is None:
        return (
            "the channel object cachefs/fs/channel.c is not loaded; install cachefs with pip to build it. Without it "
            "one slow lookup delays others in its folder, and a client killed at the wrong moment may freeze the mount"
        )
    return "" if is_bound() else "libfuse did not take the channel; its version may be older than 3.13"
