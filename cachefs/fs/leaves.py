"""Nodes, look-ups and listings that need no Python: the other side of ``leaves.c``.

A *leaf* is a node that the kernel knows from a listing or a look-up and that nobody has asked anything else about. It
is kept there, at a fraction of the size; whoever needs it takes it, and it becomes a ``Node``. Used on the event loop
only, but for ``Listing.read`` and ``Listing.look``, which run in a source's threads. Where the session is not run over
the channel there are no leaves, and all of this stays unused.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cachefs.fs import channel
from cachefs.fs.stat import BUFFER_BYTES, Stat, unpack

_NS = 1_000_000_000
_LONGEST_NAME = 255
_LONGEST_TOLD = 4095

_quick = channel.functions(quick=True)
_slow = channel.functions(quick=False)


class _LeafOut(ctypes.Structure):
    """``struct leaf_out`` of leaves.c."""

    _fields_ = [
        ("number", ctypes.c_uint64),
        ("parent", ctypes.c_uint64),
        ("birth_ns", ctypes.c_int64),  # NTFS knows no birth, and says 1601
        ("device", ctypes.c_uint64),
        *((name, ctypes.c_uint32) for name in ("lookups", "kind", "name_len", "padding")),
        ("name", ctypes.c_char * (_LONGEST_NAME + 1)),
    ]


_U64, _POINTER = ctypes.c_uint64, ctypes.c_void_p
if _quick is not None and _slow is not None:
    for _name, _result, *_arguments in (
        ("cachefs_node_own", ctypes.c_int64, _U64),
        ("cachefs_node_disown", None, _U64),
        ("cachefs_leaves", _U64),
        ("cachefs_leaf_take", ctypes.c_int, _U64, _POINTER),
        ("cachefs_leaf_has", ctypes.c_int, _U64),
        ("cachefs_leaf_next", _U64, _U64, _POINTER),
        ("cachefs_device_add", None, _U64, _U64),
        ("cachefs_folder_open", None, _U64, ctypes.c_int, _U64, _U64, _U64, ctypes.c_int),
        ("cachefs_folder_is_open", ctypes.c_int, _U64),
        ("cachefs_folder_close", None, _U64),
        ("cachefs_folders_close_idle", None, _U64),
        ("cachefs_listing_free", None, _POINTER),
        ("cachefs_listing_copy", _POINTER, _POINTER),
        ("cachefs_listing_add", ctypes.c_int, _POINTER, ctypes.c_char_p, _U64, _U64),
        ("cachefs_listing_sort", ctypes.c_int, _POINTER),
        ("cachefs_listing_tell_name_only", None, _POINTER, _U64),
        ("cachefs_listing_count", _U64, _POINTER),
        ("cachefs_listing_stated", _U64, _POINTER),
        ("cachefs_listing_after", _U64, _POINTER, _U64),
        ("cachefs_listing_is_looked_at", ctypes.c_int, _POINTER, _U64),
        ("cachefs_listing_item", ctypes.c_int, _POINTER, _U64, ctypes.c_char_p, ctypes.c_char_p),
        ("cachefs_listing_set", None, _POINTER, _U64, _U64, _U64),
        ("cachefs_listing_fits", _U64, _POINTER, _U64, _U64),
        ("cachefs_listing_strange", _U64, _POINTER, _U64, _U64, _U64, ctypes.c_int, ctypes.c_int),
        ("cachefs_listing_packed_size", _U64, _POINTER),
        ("cachefs_listing_unpack", _POINTER, ctypes.c_char_p, _U64),
        ("cachefs_packed_own", ctypes.c_int, ctypes.c_char_p, _U64, ctypes.c_char_p),
        ("cachefs_listing_named", ctypes.c_int64, _POINTER, ctypes.c_char_p, _U64),
        ("cachefs_listing_answer", ctypes.c_int, _POINTER, *(_U64,) * 7),
    ):
        _function = getattr(_quick, _name)
        _function.restype, _function.argtypes = _result, _arguments
    _slow.cachefs_listing_read.argtypes = (ctypes.c_int, ctypes.c_size_t, _POINTER)
    _slow.cachefs_listing_pack.restype = _U64
    _slow.cachefs_listing_pack.argtypes = (_POINTER, ctypes.c_int, ctypes.c_char_p)
    _slow.cachefs_listing_stat.argtypes = (_POINTER, ctypes.c_int, _U64, ctypes.c_size_t)


def are_there() -> bool:
    """Whether the shared object is: without it there are neither leaves nor listings."""
    return _quick is not None


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf as it is handed over. ``dev`` as ``os.stat`` gives it."""

    number: int
    parent: int
    birth_ns: int
    dev: int
    lookups: int
    kind: int
    name: str


class Leaves:
    """All leaves, of which there is one table in a process. Does nothing until ``begin``."""

    def __init__(self) -> None:
        self._on = False

    def begin(self) -> None:
        """The session runs over the channel."""
        self._on = _quick is not None

    def __len__(self) -> int:
        return int(_quick.cachefs_leaves()) if self._on and _quick is not None else 0

    def own(self, number: int) -> int:
        """There is a ``Node`` of this number. How often the kernel was told of the leaf that it was until now."""
        lookups = int(_quick.cachefs_node_own(number)) if self._on and _quick is not None else 0
        if lookups < 0:
            raise MemoryError
        return lookups

    def disown(self, number: int) -> None:
        """There is none any more; listings and look-ups may make a leaf of it again."""
        if self._on and _quick is not None:
            _quick.cachefs_node_disown(number)
            _quick.cachefs_folder_close(number)

    def has(self, number: int) -> bool:
        """Whether there is a leaf of this number."""
        return self._on and _quick is not None and bool(_quick.cachefs_leaf_has(number))

    def take(self, number: int) -> Leaf | None:
        """The leaf, which is none from now on."""
        out = _LeafOut()
        if not self._on or _quick is None or not _quick.cachefs_leaf_take(number, ctypes.byref(out)):
            return None
        return _leaf(out)

    def __iter__(self) -> Iterator[Leaf]:
        """Every leaf; none may be taken meanwhile."""
        out = _LeafOut()
        place = 0
        while self._on and _quick is not None and (place := _quick.cachefs_leaf_next(place, ctypes.byref(out))):
            yield _leaf(out)

    # --- open folders: look-ups that need no Python ---

    def add_device(self, dev: int, tag: int) -> None:
        """Numbers of files on this device carry this tag."""
        if _quick is not None:
            _quick.cachefs_device_add(dev, tag)

    def open_folder(
        self, number: int, descriptor: int, dev: int, believed_s: float, ttl_s: float, *, tells_absence: bool
    ) -> None:
        """Answer look-ups in this watched folder of a local disk from now on (of names that are not there, only if it
        ``tells_absence``); the descriptor is given away."""
        if not self._on or _quick is None:
            os.close(descriptor)
            return
        _quick.cachefs_folder_open(number, descriptor, dev, int(believed_s), int(ttl_s * _NS), tells_absence)

    def is_open(self, number: int) -> bool:
        """Whether look-ups in this folder are answered already; True where they cannot be."""
        return not self._on or _quick is None or bool(_quick.cachefs_folder_is_open(number))

    def close_folder(self, number: int) -> None:
        """Look-ups in this folder are Python's again."""
        if self._on and _quick is not None:
            _quick.cachefs_folder_close(number)

    def close_idle(self, idle_s: float) -> None:
        """Close folders that nobody looked into for so long; all of them at 0."""
        if self._on and _quick is not None:
            _quick.cachefs_folders_close_idle(int(idle_s * _NS))


def _leaf(out: _LeafOut) -> Leaf:
    name = os.fsdecode(ctypes.string_at(ctypes.addressof(out) + _LeafOut.name.offset, out.name_len))
    return Leaf(out.number, out.parent, out.birth_ns, out.device, out.lookups, out.kind, name)


class Listing:
    """A folder's names, ``looked_at`` of them with their attributes, in the order of their places. A place is a name's
    own: it is the same in every listing of the folder, and wherever the file is."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer

    def __del__(self) -> None:
        if _quick is not None:
            _quick.cachefs_listing_free(self._pointer)

    @staticmethod
    def read(folder: int, most: int) -> Listing:
        """In a thread: what is in an open folder, with the attributes of at most ``most`` names."""
        assert _slow is not None
        pointer = ctypes.c_void_p()
        _check(_slow.cachefs_listing_read(folder, most, ctypes.byref(pointer)))
        assert pointer.value is not None
        return Listing(pointer.value)

    def look(self, folder: int, begin: int, most: int) -> None:
        """In a thread, one at a time: attributes of the next names from an index on."""
        assert _slow is not None
        _check(_slow.cachefs_listing_stat(self._pointer, folder, begin, most))

    def pack(self, folder: int) -> bytes | None:
        """In a thread: everything, with the attributes of the open folder itself, to be remembered; None when this is
        not the whole folder yet."""
        assert _quick is not None
        assert _slow is not None
        buffer = ctypes.create_string_buffer(_quick.cachefs_listing_packed_size(self._pointer))
        size = _slow.cachefs_listing_pack(self._pointer, folder, buffer)
        return buffer.raw[:size] or None

    @staticmethod
    def unpack(packed: bytes) -> Listing | None:
        """A listing as it was remembered; None when these bytes are none."""
        assert _quick is not None
        pointer = _quick.cachefs_listing_unpack(packed, len(packed))
        return Listing(pointer) if pointer else None

    def copy(self) -> Listing:
        """Another one of the same names."""
        assert _quick is not None
        pointer = _quick.cachefs_listing_copy(self._pointer)
        if not pointer:
            raise MemoryError
        return Listing(pointer)

    def add(self, files: Mapping[str, int]) -> None:
        """Files that are not the source's, by their names and numbers: the kernel asks for the rest. In the place of
        any others of these names."""
        assert _quick is not None
        for name, number in files.items():
            raw = os.fsencode(name)
            _check(_quick.cachefs_listing_add(self._pointer, raw, len(raw), number))
        _check(_quick.cachefs_listing_sort(self._pointer))

    def named(self, name: str) -> Stat | None:
        """The attributes of a name; None when it is not in here."""
        index = self._index(name)
        found = self.item(index) if index is not None else None
        return found[1] if found is not None else None

    def _index(self, name: str) -> int | None:
        assert _quick is not None
        raw = os.fsencode(name)
        index = int(_quick.cachefs_listing_named(self._pointer, raw, len(raw)))
        return index if index >= 0 else None

    def tell_name_only(self, item: int | str) -> None:
        """What was seen of a name (or an index) is not told from now on; the kernel asks for it."""
        assert _quick is not None
        index = self._index(item) if isinstance(item, str) else item
        if index is not None:
            _quick.cachefs_listing_tell_name_only(self._pointer, index)

    def __len__(self) -> int:
        assert _quick is not None
        return int(_quick.cachefs_listing_count(self._pointer))

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing but ``.`` and ``..``."""
        return len(self) <= 2 and all(self.item(index) is None for index in range(len(self)))

    @property
    def looked_at(self) -> int:
        """How many names were looked at."""
        assert _quick is not None
        return int(_quick.cachefs_listing_stated(self._pointer))

    def is_looked_at(self, index: int) -> bool:
        assert _quick is not None
        return bool(_quick.cachefs_listing_is_looked_at(self._pointer, index))

    def after(self, place: int) -> int:
        """The index at which what follows this place begins."""
        assert _quick is not None
        return int(_quick.cachefs_listing_after(self._pointer, place))

    def item(self, index: int) -> tuple[str, Stat] | None:
        """A name and its attributes; None when it was gone before it could be looked at, and for ``.`` and ``..``."""
        assert _quick is not None
        buffer, name = ctypes.create_string_buffer(BUFFER_BYTES), ctypes.create_string_buffer(_LONGEST_TOLD + 1)
        length = _quick.cachefs_listing_item(self._pointer, index, buffer, name)
        return (os.fsdecode(name.raw[:length]), unpack(buffer)) if length else None

    def items(self) -> Iterator[tuple[str, Stat]]:
        """All names that were looked at, without ``.`` and ``..``."""
        found = (self.item(index) for index in range(len(self)))
        return (item for item in found if item is not None)

    def strange(self, begin: int, end: int, folder: int, *, files: bool, folders: bool) -> Iterator[int]:
        """Indexes in ``[begin, end)`` of what Python must answer for with ``set``: what it knows already, what has no
        simple number, and every regular file, and folder, if so. Each is to be set before the next is asked for."""
        assert _quick is not None
        while (begin := int(_quick.cachefs_listing_strange(self._pointer, begin, end, folder, files, folders))) < end:
            yield begin
            begin += 1

    def set(self, index: int, number: int, attributes_s: float) -> None:
        """Python's answer: it has counted one more look-up of the number."""
        assert _quick is not None
        _quick.cachefs_listing_set(self._pointer, index, number, int(attributes_s * _NS))

    def fits(self, begin: int, room: int) -> int:
        """The end of what a reply of ``room`` bytes can hold from ``begin`` on."""
        assert _quick is not None
        return int(_quick.cachefs_listing_fits(self._pointer, begin, room))

    def answer(self, request: int, begin: int, end: int, own: int, above: int, name_s: float, ttl_s: float) -> None:
        """Put ``[begin, end)`` into the reply to a request; the kernel then knows each of them once more."""
        assert _quick is not None
        valid, ttl = int(name_s * _NS), int(ttl_s * _NS)
        _check(_quick.cachefs_listing_answer(self._pointer, request, begin, end, own, above, valid, ttl))


def folder_in(packed: bytes) -> Stat | None:
    """The attributes of a remembered folder itself."""
    assert _quick is not None
    buffer = ctypes.create_string_buffer(BUFFER_BYTES)
    return unpack(buffer) if _quick.cachefs_packed_own(packed, len(packed), buffer) else None


def _check(number: int) -> None:
    if number:
        raise OSError(number, os.strerror(number))
