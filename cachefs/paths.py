"""Every path mapping, once: Plex path → union path ↔ source ↔ cache file, and what a person types → union path.

Everybody calls it; it touches no disk. Learning a mapping is pure too: this module says what to look for and judges
what was found, the caller looks.

A path that could lead out of the tree it belongs to (``..``, a leading slash, an empty part) maps to nothing.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from cachefs.errors import UserError
from cachefs.model import FileKey, LibraryFolder, PlexPath, SourceName, UnionPath

ROOT = UnionPath("")
_DRIVE = re.compile(r"[A-Za-z]:(?=[\\/]|$)")


# --- union ↔ source ↔ cache file -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Layout:
    """How sources make up the union: one is its root; several are one folder each, by name."""

    sources: tuple[SourceName, ...]

    def key(self, path: UnionPath) -> FileKey | None:
        """Where a path of the union lives; None for the root of several sources and for what cannot be in the union."""
        return None if path and not _is_clean(path) else self.key_below(path)

    def key_below(self, path: UnionPath) -> FileKey | None:
        """As ``key``, for a path that was put together from names of the union: it cannot lead anywhere else."""
        if len(self.sources) == 1:
            return FileKey(self.sources[0], path)
        first, _, rest = path.partition("/")
        return FileKey(SourceName(first), rest) if first in self.sources else None

    def union(self, key: FileKey) -> UnionPath:
        """The path people see; ``ValueError`` for a source that is not in this union."""
        if key.source not in self.sources:
            raise ValueError(f"no source is called {key.source}")
        if len(self.sources) == 1:
            return UnionPath(key.path)
        return UnionPath(f"{key.source}/{key.path}" if key.path else key.source)


def cache_path(key: FileKey) -> str:
    """The published file below the cache folder, a tree that mirrors the sources.

    No two keys share a path and none leads out of the cache folder: a key for which that would not hold is refused
    with ``ValueError``.
    """
    if "/" in key.source or not _is_clean(key.source) or (key.path and not _is_clean(key.path)):
        raise ValueError(f"no cache file can be named after {key}")
    return f"files/{key.source}/{key.path}" if key.path else f"files/{key.source}"


def folders_above(key: FileKey) -> Iterator[FileKey]:
    """The folders a file is in, the nearest first, the source's root (the empty path) last."""
    path = key.path
    while path:
        path = path.rpartition("/")[0]
        yield FileKey(key.source, path)


def argument(text: str, mountpoint: Path, layout: Layout) -> UnionPath:
    """What a person typed: an absolute path below the mount, or one relative to the mount's root."""
    if not text or "\0" in text:
        raise UserError(f"name a file or folder below {mountpoint}")
    below = PurePosixPath(posixpath.normpath(mountpoint / text))
    if not below.is_relative_to(mountpoint):
        raise UserError(f"{text} is not below the mount {mountpoint}; name a path below it, or one relative to it")
    path = UnionPath("/".join(below.relative_to(mountpoint).parts))
    if path and layout.key(path) is None:
        raise UserError(f"{text}: the first folder below the mount is one of {', '.join(layout.sources)}")
    return path


# --- Plex → union ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PathRule:
    """What lies below ``plex`` on the Plex server lies below ``mount`` in the union.

    Either may be written with a trailing slash and ``mount`` with a leading one: ``{plex: /media, mount: /}``.
    """

    plex: PlexPath
    mount: UnionPath

    def __post_init__(self) -> None:
        if _split(self.plex) is None:
            raise ValueError(f"{self.plex!r} is not a whole path on the Plex server; write it as Plex shows it")
        mount = _parts(self.mount, "/")
        if mount is None:
            raise ValueError(f"{self.mount!r} leads out of the mount; write a path from the mount's root, such as /TV")
        object.__setattr__(self, "mount", UnionPath("/".join(mount)))

    def __str__(self) -> str:
        return f"{{plex: {self.plex}, mount: /{self.mount}}}"


class PathMap:
    """Rules from which the longest that fits wins. Immutable."""

    def __init__(self, rules: Iterable[PathRule]) -> None:
        self.rules = tuple(rules)
        split = ((_split(rule.plex), rule) for rule in self.rules)
        known = [(plex, rule) for plex, rule in split if plex is not None]
        self._longest_first = sorted(known, key=lambda pair: len(pair[0].parts), reverse=True)

    def to_union(self, path: PlexPath) -> UnionPath | None:
        """The path below the mount, or None when no rule fits or the path is not one that could lie there."""
        split = _split(path)
        if split is None:
            return None
        for plex, rule in self._longest_first:
            rest = split.below(plex)
            if rest is not None:
                return _join(rule.mount, rest)
        return None


class _Split(NamedTuple):
    """A Plex path in parts. ``root`` is ``/``, a drive (``d:``) or ``\\\\`` for a Windows share."""

    root: str
    parts: tuple[str, ...]

    def below(self, other: _Split) -> tuple[str, ...] | None:
        """What remains of this path below ``other``; None when it is not below it. Windows ignores case."""
        length = len(other.parts)
        mine, theirs = self.parts[:length], other.parts
        if self.root != "/":
            mine, theirs = (tuple(part.casefold() for part in parts) for parts in (mine, theirs))
        return self.parts[length:] if self.root == other.root and mine == theirs else None


def _split(path: str) -> _Split | None:
    """A path of a Plex server on any system; None for one that is relative or climbs."""
    drive = _DRIVE.match(path)
    if drive:
        root, rest, separators = drive[0].casefold(), path[drive.end() :], r"[\\/]"
    elif path.startswith("\\\\"):
        root, rest, separators = "\\\\", path, r"[\\/]"
    elif path.startswith("/"):
        root, rest, separators = "/", path, "/"
    else:
        return None
    parts = _parts(rest, separators)
    return None if parts is None else _Split(root, parts)


def _parts(path: str, separators: str) -> tuple[str, ...] | None:
    """The names in a path, without empty and ``.`` ones; None when one of them cannot be a name."""
    parts = tuple(part for part in re.split(separators, path) if part not in ("", "."))
    return None if any(part == ".." or "\0" in part for part in parts) else parts


def _join(folder: UnionPath, parts: Sequence[str]) -> UnionPath:
    return UnionPath("/".join((folder, *parts) if folder else parts))


def _is_clean(path: str) -> bool:
    return "\0" not in path and all(part not in ("", ".", "..") for part in path.split("/"))


# --- learning what Plex calls the mount ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Probe:
    """How many of a library folder's samples are in the mount, with the same size, if ``rule`` is right."""

    rule: PathRule
    found: int


@dataclass(frozen=True, slots=True)
class Learned:
    """What probing has shown. ``rivals`` are rules that explain the samples equally well: then ``rule`` is None."""

    rule: PathRule | None = None
    rivals: tuple[PathRule, ...] = ()


def candidates(folder: LibraryFolder, union_folders: Sequence[UnionPath], mountpoint: Path) -> tuple[PathRule, ...]:
    """Every rule that could explain where Plex's library folder is in the mount, the likeliest first.

    ``union_folders`` are the folders near the union's root, as far down as the caller listed them; of a folder that
    was listed, all that is inside. Plex's folder may be one of them, or lie below one of them under its own last
    names; each place is named once, by the whole folder.
    """
    split = _split(folder.path)
    if split is None:
        return ()
    inside = _by_parent(union_folders)
    entered = _folders_entered(folder)
    own_names = [_join(ROOT, split.parts[cut:]) for cut in range(len(split.parts) + 1)]
    below = (_join(top, split.parts[cut:]) for cut in range(len(split.parts) + 1) for top in sorted(set(union_folders)))
    possible = dict.fromkeys([*own_names, *(place for place in below if _is_known(place, inside) is not False)])
    literal = _literal(folder.path, mountpoint)
    last = split.parts[-1].casefold() if split.parts else ""

    def unlikelihood(place: UnionPath) -> tuple[bool, bool, bool, int]:
        holds_them = not entered.isdisjoint(inside.get(place, ()))
        named_alike = place.rpartition("/")[2].casefold() == last
        return place != literal, not _is_known(place, inside), not (holds_them or named_alike), place.count("/")

    likely = sorted((place for place in possible if not _lacks(inside.get(place), entered)), key=unlikelihood)
    return tuple(PathRule(folder.path, place) for place in likely)


def probes(rule: PathRule, folder: LibraryFolder) -> tuple[tuple[UnionPath, int], ...]:
    """The files, with their sizes, that are in the mount if ``rule`` is right."""
    path_map = PathMap((rule,))
    pairs = ((path_map.to_union(sample.path), sample.size) for sample in folder.samples)
    return tuple((path, size) for path, size in pairs if path is not None)


def choose(found: Iterable[Probe], mountpoint: Path) -> Learned:
    """The rule under which most samples exist.

    Of rules that do equally well, the one that says that Plex sees the mount under its own path wins, and of rules
    that mean the same the longest; any other tie is nobody's to decide.
    """
    some = [probe for probe in found if probe.found > 0]
    most = max((probe.found for probe in some), default=0)
    best = sorted((probe.rule for probe in some if probe.found == most), key=lambda rule: -len(rule.plex))
    if not best:
        return Learned()
    literal = [rule for rule in best if rule.mount == _literal(rule.plex, mountpoint)]
    if literal:
        return Learned(literal[0])
    winner = best[0]
    rivals = tuple(rule for rule in best[1:] if PathMap((rule,)).to_union(winner.plex) != winner.mount)
    return Learned(rivals=(winner, *rivals)) if rivals else Learned(winner)


def _literal(path: PlexPath, mountpoint: Path) -> UnionPath | None:
    """The place in the union if Plex sees the mount under the very path at which it is mounted."""
    split, mount = _split(path), _split(str(mountpoint))
    rest = split.below(mount) if split and mount else None
    return None if rest is None else _join(ROOT, rest)


def _folders_entered(folder: LibraryFolder) -> frozenset[str]:
    """The names of the folders through which the samples are reached from the library folder."""
    below = (path.partition("/") for path, _ in probes(PathRule(folder.path, ROOT), folder))
    return frozenset(first for first, slash, _ in below if slash)


def _by_parent(folders: Iterable[UnionPath]) -> dict[UnionPath, set[str]]:
    inside: dict[UnionPath, set[str]] = {}
    for path in folders:
        parent, _, name = path.rpartition("/")
        inside.setdefault(UnionPath(parent), set()).add(name)
    return inside


def _is_known(place: UnionPath, inside: dict[UnionPath, set[str]]) -> bool | None:
    """Whether a place is among the folders that were listed; None when the folder it would be in was not."""
    parent, _, name = place.rpartition("/")
    if not place:
        return True
    if parent in inside:
        return name in inside[UnionPath(parent)]
    return None if not parent or _is_known(UnionPath(parent), inside) is not False else False


def _lacks(names: set[str] | None, entered: frozenset[str]) -> bool:
    """Whether the folders inside a place were listed and none of them is one that the samples are in."""
    return names is not None and bool(entered) and entered.isdisjoint(names)
