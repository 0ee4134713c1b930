"""Extended attributes: the file's own, at its source or, moved, on the SSD; cachefs's are neither shown nor taken.

While a source is away, a cached file has those of its copy. Of everything else nobody knows them: a list is "not
supported", for to say that there are none could make somebody delete them elsewhere, and ``ls -l``, which asks for them
of all that it shows, takes any other error to its user.

Called by ``operations``. An ACL is one of them, and more: it is set as the caller, who may lose the set-group bit by
that, and it changes the mode, which the next look must show.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from stat import S_ISDIR
from typing import TypeVarTuple

from cachefs.fs import reach
from cachefs.fs.acls import ACCESS, Acls
from cachefs.fs.caller import Caller, acting_as
from cachefs.fs.inodes import Node
from cachefs.fs.reach import Ref
from cachefs.fs.remembered import is_away
from cachefs.fs.routing import Routing
from cachefs.fs.stat import Stat, look
from cachefs.fs.union import Union

log = logging.getLogger(__name__)

Ts = TypeVarTuple("Ts")

_OURS = "user.cachefs."
_TRUSTED = "trusted."
_ACLS = "system.posix_acl_"
_ASKED_BY_ALL = ("security.", _ACLS)


class Xattrs:
    """The extended attributes of everything in the mount."""

    def __init__(self, union: Union, routing: Routing, acls: Acls | None = None) -> None:
        """``acls``: where the kernel enforces them."""
        self._union = union
        self._routing = routing
        self.acls = acls

    async def get(self, node: Node, name: str) -> bytes:
        if self._union.is_virtual(node) or name.startswith(_OURS):
            raise _none(name)
        if name == ACCESS and self.acls is not None:
            value = await self.acls.access(node)
            if not value:
                raise _none(name)
            return value
        place = self._union.place(node)
        try:
            return await place.source.call(_get, place.ref, name)
        except OSError as error:
            if not is_away(error):
                raise
            of_copy = await self._routing.of_copy(node, lambda copy: os.getxattr(copy, name))
            if of_copy is not None:
                return of_copy
            if name.startswith(_ASKED_BY_ALL):
                raise _none(name) from error
            raise

    async def names(self, node: Node, is_root: bool) -> list[str]:
        """Those whose values the caller may ask for (xattr(7): ``trusted.`` is not for ordinary users)."""
        if self._union.is_virtual(node):
            return []
        place = self._union.place(node)
        try:
            names = await place.source.call(_list, place.ref)
        except OSError as error:
            if not is_away(error):
                raise
            of_copy = await self._routing.of_copy(node, os.listxattr)
            if of_copy is None:
                raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP)) from error
            names = of_copy
        hidden = (_OURS,) if is_root else (_OURS, _TRUSTED)
        return [name for name in names if not name.startswith(hidden)]

    async def set(self, node: Node, name: str, value: bytes, caller: Caller) -> None:
        await self._change(node, name, _set, name, value, caller if name.startswith(_ACLS) else None)
        await self._tell_copy(node, lambda copy: os.setxattr(copy, name, value))

    async def remove(self, node: Node, name: str, caller: Caller) -> None:
        await self._change(node, name, _remove, name, caller if name.startswith(_ACLS) else None)
        await self._tell_copy(node, lambda copy: os.removexattr(copy, name))

    async def _tell_copy(self, node: Node, change: Callable[[int], None]) -> None:
        """The copy has what its source has, as far as the SSD's file system can have it."""
        try:
            await self._routing.of_copy(node, change)
        except OSError as error:
            log.debug("%s", error)

    async def _change(self, node: Node, name: str, change: Callable[[Ref, *Ts], Stat], *args: *Ts) -> None:
        if name.startswith(_OURS):
            raise PermissionError(errno.EPERM, f"{name} is cachefs's own", name)
        async with self._routing.changing(node, content=False):
            place = self._union.place(node)
            targets = self._routing.targets(node, place)
            try:
                seen = await self._routing.change(place.source, targets, change, place.ref, *args, cause=None)
            finally:
                if S_ISDIR(node.kind):
                    self._union.watched.touched(node)
        self._union.sightings.seen(node, place, seen)


def _none(name: str) -> OSError:
    return OSError(errno.ENODATA, os.strerror(errno.ENODATA), name)


# --- in the source's threads -----------------------------------------------------------------------------------------


def _get(ref: Ref, name: str) -> bytes:
    with reach.place_of(ref) as place:
        return os.getxattr(reach.proc_path(place), name)


def _list(ref: Ref) -> list[str]:
    with reach.place_of(ref) as place:
        return os.listxattr(reach.proc_path(place))


def _set(ref: Ref, name: str, value: bytes, caller: Caller | None) -> Stat:
    with reach.place_of(ref) as place:
        with _as(caller):
            os.setxattr(reach.proc_path(place), name, value)
        return look(place)


def _remove(ref: Ref, name: str, caller: Caller | None) -> Stat:
    with reach.place_of(ref) as place:
        with _as(caller):
            os.removexattr(reach.proc_path(place), name)
        return look(place)


def _as(caller: Caller | None) -> AbstractContextManager[None]:
    return acting_as(caller) if caller is not None else nullcontext()
