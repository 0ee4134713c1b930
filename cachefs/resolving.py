"""From Plex's files to files of the union: path mapping, sizes, sidecars.

Called by ``planning``. Asks the sources as little as it can, for every question may wake a disk: what is cached is
taken from the inventory, what was seen lately is remembered.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import trio

from cachefs import paths, sidecars
from cachefs.errors import SourceError
from cachefs.lookups import ASK_AGAIN_S, Lookups
from cachefs.model import (
    CacheEntry,
    FileKey,
    InterestKind,
    LibraryFolder,
    Pin,
    PlexFile,
    PlexPath,
    Skip,
    SourceFile,
    UnionPath,
    Want,
)
from cachefs.paths import Layout, PathMap, PathRule
from cachefs.wanting import WantedItem

log = logging.getLogger(__name__)

V = TypeVar("V")

_LOOK_AGAIN_S = 3600.0
"""For a library folder that is not in the mount, while others are: it may lie on another disk for good."""
_MOST_IN_FOLDER = 64
_MOST_CANDIDATES = 200
"""Each place where a library folder may be costs up to two looks at a slow disk; the likeliest come first."""
_MOST_PINNED = 20_000
"""Files below pinned folders; a pinned root of a huge library must not make every plan take minutes."""


class Library(Protocol):
    """The union by key, as ``fs.union`` gives it."""

    async def stat(self, key: FileKey) -> SourceFile: ...

    async def list_folder(self, key: FileKey) -> list[str]: ...

    async def list_subfolders(self, key: FileKey) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class PathNote:
    """What is said of one of Plex's library folders, and whether it was found in the mount."""

    text: str
    found: bool


@dataclass(frozen=True, slots=True)
class Resolved:
    """``pinned`` are files pinned by path. ``complete`` is False when a source did not answer, or nothing of what Plex
    names can be found in the mount: what is then absent is unknown, not unwanted."""

    wants: tuple[Want, ...]
    skips: tuple[Skip, ...]
    pinned: frozenset[FileKey]
    complete: bool = True


class Held:
    """What is on the SSD, by file and by folder. Built once for every plan."""

    def __init__(self, entries: Iterable[CacheEntry] = ()) -> None:
        self.entries = {entry.key: entry for entry in entries}
        self._inside: dict[FileKey, set[str]] = {}
        for key in self.entries:
            path = key.path
            while path:
                path, _, name = path.rpartition("/")
                self._inside.setdefault(FileKey(key.source, path), set()).add(name)

    def file(self, key: FileKey) -> SourceFile | None:
        entry = self.entries.get(key)
        return entry.source_file if entry is not None else None

    def is_cached(self, key: FileKey) -> bool:
        entry = self.entries.get(key)
        return entry is not None and entry.state.is_whole

    def names(self, folder: FileKey) -> tuple[str, ...]:
        """What of this folder is on the SSD."""
        return tuple(sorted(self._inside.get(folder, ())))


@dataclass(slots=True)
class Resolver:
    """Knows the path mapping, learned or given, and what it saw lately."""

    layout: Layout
    library: Library
    mountpoint: Path
    with_sidecars: bool = True
    rules: PathMap = field(default_factory=lambda: PathMap(()))
    learns: bool = False
    """Whether the rules are to be learned from the library's folders, rather than given."""
    _files: Lookups[SourceFile | None] = field(init=False)
    _folders: Lookups[tuple[str, ...]] = field(init=False)
    _subfolders_of: Lookups[tuple[str, ...]] = field(init=False)
    _pinned_roots: set[FileKey] = field(default_factory=set)
    _unanswered: int = 0
    """How often a source did not answer so far; two looks at it tell whether one did in between."""
    _settling: trio.Lock = field(default_factory=trio.Lock)
    _settled: set[PlexPath] = field(default_factory=set)
    _look_again_at: dict[PlexPath, float] = field(default_factory=dict)
    _lost: bool = False
    """Whether there are folders to be found, and none of them was."""
    _notes: dict[PlexPath, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._files = Lookups(self.library.stat, None)
        self._folders = Lookups(partial(_tuple, self.library.list_folder), ())
        self._subfolders_of = Lookups(partial(_tuple, self.library.list_subfolders), ())

    def forget(self) -> None:
        """The library has changed: look again, but for what lies beside cached videos."""
        for lookups in (self._files, self._folders, self._subfolders_of):
            lookups.outdate()

    def saw(self, file: SourceFile) -> None:
        """Somebody has just looked at this file."""
        self._files.note(file.key, file)

    def look_again(self, keys: Iterable[FileKey]) -> None:
        """Somebody looked for these files and did not find them."""
        for key in keys:
            self._files.drop(key)

    def changed(self, folder: FileKey) -> bool:
        """Something came, went or changed in this folder; whether it is below a pinned one, so that it counts."""
        if not any(_is_in(folder, root) for root in self._pinned_roots):
            return False
        self.look_below(folder)
        return True

    def look_below(self, folder: FileKey) -> None:
        """Look again at everything there, this time."""
        for lookups in (self._files, self._folders):
            lookups.outdate(lambda key: _is_in(key, folder))

    def is_gone(self, key: FileKey) -> bool:
        """Whether the source said that it has no such file when it was asked the last time."""
        return self._files.is_gone(key)

    async def look_beside(self, video: SourceFile) -> None:
        """A person wants this video now: see what goes with it, though a disk may have to wake up for that."""
        folder = FileKey(video.key.source, video.key.path.rpartition("/")[0])
        self._folders.drop(folder)
        await self.going_along(Want(video, InterestKind.PLAYING, 0, "", 0.0), Held())

    # --- path mapping --------------------------------------------------------------------------------------------

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know of the mapping, for ``status`` and ``check``."""
        return tuple(self._notes.values())

    @property
    def path_notes(self) -> tuple[PathNote, ...]:
        """The same, with what came of it."""
        return tuple(PathNote(note, path in self._settled) for path, note in self._notes.items())

    async def settle_paths(self, folders: tuple[LibraryFolder, ...]) -> None:
        """Find out where Plex's folders are in the mount, from real files of the library, or check the given rules.

        A folder that was found stays found until the next start. One that was not is looked for again now and then,
        and at once when its source did not answer.
        """
        async with self._settling:
            now = trio.current_time()
            open_ = [folder for folder in folders if folder.samples and folder.path not in self._settled]
            for folder in open_:
                if now >= self._look_again_at.get(folder.path, now):
                    await self._settle(folder)
            self._lost = bool(open_) and not self._settled

    async def _settle(self, folder: LibraryFolder) -> None:
        unanswered = self._unanswered
        learned = await (self._learn_one(folder) if self.learns else self._check_one(folder))
        if learned.rule is not None:
            self._settled.add(folder.path)
            if self.learns:
                self.rules = PathMap((*self.rules.rules, learned.rule))
            self._note(folder, _found(folder, learned.rule), logging.INFO)
        elif self._unanswered == unanswered:  # else it may be where nobody can look now
            self._note(folder, _not_found(folder, learned, self.mountpoint), logging.WARNING)
            pause_s = _LOOK_AGAIN_S if self._settled else ASK_AGAIN_S
            self._look_again_at[folder.path] = trio.current_time() + pause_s

    def _note(self, folder: LibraryFolder, note: str, level: int) -> None:
        if note != self._notes.get(folder.path):
            log.log(level, "%s", note)
            self._notes[folder.path] = note

    async def _learn_one(self, folder: LibraryFolder) -> paths.Learned:
        candidates = paths.candidates(folder, await self._top_folders(), self.mountpoint)[:_MOST_CANDIDATES]
        return paths.choose([await self._probe(rule, folder) for rule in candidates], self.mountpoint)

    async def _check_one(self, folder: LibraryFolder) -> paths.Learned:
        """Whether the given rules lead to the folder's files."""
        place = self.rules.to_union(folder.path)
        if place is None:
            return paths.Learned()
        rule = PathRule(folder.path, place)
        return paths.Learned(rule) if (await self._probe(rule, folder)).found else paths.Learned()

    async def _probe(self, rule: PathRule, folder: LibraryFolder) -> paths.Probe:
        """How many samples are there if the rule is right; two that are not settle it for most wrong rules."""
        found = missing = 0
        for path, size in paths.probes(rule, folder):
            if await self._has(path, size):
                found += 1
            else:
                missing += 1
            if missing == 2 and not found:
                break
        return paths.Probe(rule, found)

    async def _has(self, path: UnionPath, size: int) -> bool:
        key = self.layout.key(path)
        file = await self._file(key) if key is not None else None
        return file is not None and file.size == size

    async def _top_folders(self) -> tuple[UnionPath, ...]:
        """The union's folders down to the second level, but for those in a folder of very many: that is a library
        itself, and what is in it are films and shows."""
        found: list[UnionPath] = []
        roots = [FileKey(source, "") for source in self.layout.sources]
        for root in roots:
            top = self.layout.union(root)
            if top:
                found.append(top)
            for child in await self._few_subfolders(root):
                found.append(self.layout.union(child))
                found += map(self.layout.union, await self._few_subfolders(child))
        return tuple(found)

    async def _few_subfolders(self, folder: FileKey) -> list[FileKey]:
        names = await self._answered(self._subfolders_of, folder) or ()
        return [_child(folder, name) for name in names] if len(names) <= _MOST_IN_FOLDER else []

    # --- wants ---------------------------------------------------------------------------------------------------

    async def resolve(
        self, items: Iterable[WantedItem], pins: Iterable[Pin], entries: Iterable[CacheEntry]
    ) -> Resolved:
        """Wanted Plex files and pinned paths as files of the union, with their sidecars."""
        held = Held(entries)
        unanswered = self._unanswered
        wants: list[Want] = []
        skips: list[Skip] = []
        for item in items:
            await trio.lowlevel.checkpoint()  # where all is known, thousands of items would pass without an await
            found = await self._want(item, held)
            if isinstance(found, Skip):
                skips.append(found)
                continue
            wants += (found, *await self.going_along(found, held))
        pins = tuple(pins)
        self._pinned_roots = {root for pin in pins if not pin.rating_key for root in self._roots(pin)}
        pinned = [want for pin in pins if not pin.rating_key for want in await self._pinned(pin, held)]
        complete = self._unanswered == unanswered and not self._lost
        self._files.tidy()
        self._folders.tidy()
        return Resolved((*wants, *pinned), tuple(skips), frozenset(want.key for want in pinned), complete)

    def locate(self, file: PlexFile) -> FileKey | None:
        """Where a Plex file is in the union, as far as the mapping goes."""
        path = self.rules.to_union(file.path)
        return self.layout.key(path) if path is not None else None

    async def _want(self, item: WantedItem, held: Held) -> Want | Skip:
        key = self.locate(item.file)
        if key is None:
            return Skip(item.file.path, f"{item.reason}; no path mapping leads from Plex's path to the mount")
        unanswered = self._unanswered
        file = await self.known(key, held)
        if file is None and self._unanswered != unanswered:
            return Skip(str(key), f"{item.reason}; but its source {key.source} does not answer", key)
        if file is None:
            path = self.layout.union(key)
            return Skip(str(key), f"{item.reason}; Plex's {item.file.path} would be /{path}, which is not there", key)
        return Want(file, item.kind, item.ahead, item.reason, item.since, item.users)

    async def going_along(self, video: Want, held: Held) -> list[Want]:
        """The sidecars of a wanted video, as wants of their own."""
        if not self.with_sidecars or not sidecars.is_video(video.key.path):
            return []
        folder, _, name = video.key.path.rpartition("/")
        place = FileKey(video.key.source, folder)
        names = await self._names_beside(video, place, held)
        beside = [_child(place, other) for other in sidecars.sidecars_of(name, names)]
        for sub in sidecars.subtitle_folders(name, names):
            inner = _child(place, sub)
            inside = await self._names_beside(video, inner, held)
            beside += [_child(inner, other) for other in sidecars.subtitles_in(name, names, sub, inside)]
        found = []
        for key in beside:
            file = await self._file_beside(video, key, held)
            if file is not None and file.key != video.key:
                found.append(replace(video, file=file, reason=f"{video.reason} (goes with {name})", follows=video.key))
        return found

    async def _names_beside(self, video: Want, folder: FileKey, held: Held) -> tuple[str, ...]:
        """The names in a folder. Once the video is cached, those that were seen before or are on the SSD are enough:
        asking the source now and then would never let its disk sleep."""
        if not held.is_cached(video.key):
            return await self._names(folder)
        return tuple(dict.fromkeys((*self._folders.last(folder), *held.names(folder))))

    async def _file_beside(self, video: Want, key: FileKey, held: Held) -> SourceFile | None:
        """As ``known``; beside a cached video only what was seen before."""
        if not held.is_cached(video.key):
            return await self.known(key, held)
        return held.file(key) or self._files.last(key)

    async def _pinned(self, pin: Pin, held: Held) -> list[Want]:
        """The pinned file with its sidecars, or every file below the pinned folder."""
        roots = self._roots(pin)
        files = await self._below(roots, held)
        wants = [Want(file, InterestKind.PINNED, 0, "pinned", pin.created_at) for file in files]
        for want in wants[:1]:
            if [want.key] == roots:
                wants += await self.going_along(want, held)
        return wants

    def _roots(self, pin: Pin) -> list[FileKey]:
        """Where a pin begins; nowhere, when its path is not one of this mount: sources come and go."""
        if not pin.target:
            return [FileKey(source, "") for source in self.layout.sources]
        key = self.layout.key(UnionPath(pin.target))
        return [key] if key is not None else []

    async def _below(self, roots: list[FileKey], held: Held) -> list[SourceFile]:
        """The files there, and all below the folders among them; what is on the SSD of them whatever the sources say:
        a folder that cannot be read is not empty."""
        found = {key: entry.source_file for key, entry in held.entries.items() if any(map(partial(_is_in, key), roots))}
        todo = [root for root in roots if root not in found]
        while todo and len(found) < _MOST_PINNED:
            here = todo.pop()
            if here in found:
                continue
            file = await self._file(here)
            if file is not None:
                found[here] = file
                continue
            names = await self._names(here)
            todo += [_child(here, name) for name in names]
        return list(found.values())

    # --- what is remembered --------------------------------------------------------------------------------------

    async def known(self, key: FileKey, held: Held) -> SourceFile | None:
        """The file as the cache or, lately, its source knows it; None when there is none."""
        return held.file(key) or await self._file(key)

    async def _file(self, key: FileKey) -> SourceFile | None:
        """None when there is none, or its source does not answer."""
        return await self._answered(self._files, key)

    async def _names(self, folder: FileKey) -> tuple[str, ...]:
        """The names in a folder; none, when it cannot be read."""
        return await self._answered(self._folders, folder) or ()

    async def _answered(self, lookups: Lookups[V], key: FileKey) -> V | None:
        """None where the source does not answer."""
        try:
            return await lookups.look(key)
        except SourceError as error:
            log.debug("%s: %s", key, error)
            self._unanswered += 1
            return None


async def _tuple(ask: Callable[[FileKey], Awaitable[list[str]]], folder: FileKey) -> tuple[str, ...]:
    return tuple(await ask(folder))


def _child(folder: FileKey, name: str) -> FileKey:
    return FileKey(folder.source, f"{folder.path}/{name}" if folder.path else name)


def _is_in(key: FileKey, root: FileKey) -> bool:
    if key.source != root.source:
        return False
    return not root.path or key.path == root.path or key.path.startswith(f"{root.path}/")


def _found(folder: LibraryFolder, rule: PathRule) -> str:
    return f"path mapping: Plex's {folder.path} ({folder.library}) is /{rule.mount} of the mount"


def _not_found(folder: LibraryFolder, learned: paths.Learned, mountpoint: Path) -> str:
    """What Plex calls the files, what the mount has, and the line to write."""
    example = folder.samples[0].path
    if learned.rivals:
        said = f"{' and '.join(f'/{rule.mount}' for rule in learned.rivals)} of the mount hold the same files"
        rule = learned.rivals[0]
    else:
        said = f"no such file is where it would be below {mountpoint}"
        rule = PathRule(folder.path, UnionPath(""))
    return (
        f"Plex's library folder {folder.path} ({folder.library}) cannot be found in the mount: Plex has {example}, "
        f"but {said}; write under plex in cachefs.yaml: path_map: [{rule}], with the right folder after mount"
    )
