"""The cache folder on the SSD: its lock, its partial files, and the tree that mirrors the sources.

    index.sqlite                 see ``cache.index``
    keepsake.json                see ``cache.keepsake``
    lock                         flock: one daemon per cache
    files/<source>/<path>        published copies, so that a person can look
    partial/<id>                 copies being made

Called by ``cache.store`` in worker threads, and by recovery. Every function is plain disk work that raises ``OSError``;
it knows no entries and decides nothing. Each step of a publication is a function of its own, so that tests can stop
between any two.

Everything goes through a descriptor of the folder that was locked, never through its path: an SSD that is unplugged
leaves another folder there, on another disk, and in the worst case another cache.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from cachefs.cache import inside
from cachefs.cache.full import NO_ROOM
from cachefs.cache.label import Label
from cachefs.cache.label import write as write_label
from cachefs.descriptors import Descriptor, open_below, sync_names
from cachefs.errors import CacheBusy, CacheError
from cachefs.model import FileKey
from cachefs.ownership import ours
from cachefs.paths import cache_path

TREES = ("files", "partial")
"""The folders of which every file is ours, to remove."""
FILES = ("lock", "keepsake.json", *(f"{n}.sqlite{s}" for n in ("index", "folders") for s in ("", "-wal", "-shm")))
"""Our files beside them."""
_LOCK = re.compile(rb"(\d+\n([0-9a-f]+\n)?)?")
"""What a lock file says: see ``_say``. An empty one was made by a person, or by a start that ended there."""
_LOCK_BYTES = 128
_NOBODYS = frozenset({"lost+found", *TREES, *FILES})
_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_READ_BYTES = 1024**2
PATH_MAX_BYTES = 4095
"""Linux's PATH_MAX without its final zero: the longest path that one system call takes."""


class Step(enum.Enum):
    """What has just been done on the way to a cached entry, in this order."""

    LABELLED = "the partial file says whose copy it is"
    FILE_SYNCED = "the partial file is durable"
    RENAMED = "it has its published name"
    FOLDERS_SYNCED = "the name is durable"
    ROW_WRITTEN = "the index says cached"


StepHook = Callable[[Step], None]


def no_hook(step: Step) -> None:
    """What is called after each step outside of crash tests."""


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """What statvfs says of the SSD. ``free_bytes`` is what an ordinary user may use, as ``df`` shows it."""

    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Contents:
    """The files found in the folder, with their sizes; -1 for what is no regular file. Names are relative to the
    cache folder: ``files/<source>/<path>`` and ``partial/<id>``."""

    published: dict[str, int]
    partial: dict[str, int]
    elsewhere: tuple[str, ...] = ()
    """Where another file system is mounted; it was not looked into."""


@dataclass(frozen=True, slots=True)
class Mark:
    """By what a folder is known again: what its lock file says, or else the device that it was on."""

    token: str
    device: int


class Folder:
    """One cache folder, held by this process until ``close``. ``root`` is its path, for people; ``place`` leads to
    the folder itself, wherever that is by now."""

    def __init__(self, root: str, place: int, lock: int, mark: Mark, token_before: str) -> None:
        """``token_before``: what its lock file said at the start before this one."""
        self.root = root
        self.token_before = token_before
        self.place = f"/proc/self/fd/{place}"
        self.mark = mark
        self._place = place
        self._lock = lock
        found = os.fstat(place)
        self._identity = (found.st_dev, found.st_ino)
        self._longest_name = os.fstatvfs(place).f_namemax

    @classmethod
    def take(cls, root: str) -> Folder:
        """Make the folder where it is missing, and lock it. Raises ``CacheError`` or ``CacheBusy``."""
        try:
            if not os.path.isdir(root):
                lacks = lacks_to_be_made(root)
                if lacks:
                    raise CacheError(f"cache.path {root} {lacks}")
                ours().make_folder(root)
            return cls._take(root, os.open(root, _PLACE), "")
        except OSError as error:
            raise CacheError(f"cache.path {root} cannot be used: {error.strerror or error}") from error

    @classmethod
    def take_again(cls, root: str, mark: Mark) -> Folder:
        """As ``take``, only if it is the folder that had this mark, or one without any on the same file system."""
        try:
            if not os.path.isdir(root) and os.stat(os.path.dirname(root)).st_dev == mark.device:
                ours().make_folder(root)
            place = os.open(root, _PLACE)
            if not _has_mark(place, mark):
                os.close(place)
                raise CacheError(f"cache.path {root} is another folder than before: is the SSD mounted?")
            return cls._take(root, place, mark.token)
        except OSError as error:
            raise CacheError(f"cache.path {root} cannot be used: {error.strerror or error}") from error

    @classmethod
    def _take(cls, root: str, place: int, token: str) -> Folder:
        with ExitStack() as stack:
            stack.callback(os.close, place)
            refuse_foreign(root)
            inside.refuse_links(root, FILES)
            token = token or secrets.token_hex(16)
            lock, before = _lock(root, place, token)
            stack.callback(_close, lock)
            for name in TREES:
                with suppress(FileExistsError):
                    ours().make_folder(name, place)
            inside.refuse_foreign(root, TREES)
            folder = cls(root, place, lock, Mark(token_of(place), os.fstat(place).st_dev), before)
            stack.pop_all()
            return folder

    def close(self) -> None:
        """Give the lock up, in so many words: a child of ours may have inherited the descriptor. An SSD that is gone
        may complain about that; it is given up all the same."""
        with suppress(OSError):
            fcntl.flock(self._lock, fcntl.LOCK_UN)
        _close(self._lock)
        _close(self._place)

    def abandon(self) -> None:
        """As ``close``, while threads may still be on their way into the folder: its number is never given to another
        one, so that they find nothing."""
        nowhere = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(nowhere, self._place, inheritable=False)
        os.close(nowhere)
        with suppress(OSError):
            fcntl.flock(self._lock, fcntl.LOCK_UN)
        _close(self._lock)

    def look(self) -> None:
        """See that the folder is where it was and that its file system answers. Raises ``OSError`` when not."""
        found = os.stat(self.root)
        if (found.st_dev, found.st_ino) != self._identity:
            raise OSError(errno.ENODEV, "another folder is in its place")
        os.statvfs(self._place)

    @property
    def index(self) -> str:
        return f"{self.root}/index.sqlite"

    def partial(self, entry_id: int) -> str:
        return f"{self.place}/partial/{entry_id}"

    def published(self, key: FileKey) -> str:
        return f"{self.place}/{cache_path(key)}"

    def can_name(self, key: FileKey) -> bool:
        """Whether the published name fits into a system call, and each part of it into a folder: CIFS, NTFS and FUSE
        know longer names than most disks."""
        path = os.fsencode(f"{self.root}/{cache_path(key)}")
        return len(path) <= PATH_MAX_BYTES and all(len(name) <= self._longest_name for name in path.split(b"/"))

    def space(self) -> DiskSpace:
        answer = os.statvfs(self.place)
        return DiskSpace(answer.f_blocks * answer.f_frsize, answer.f_bavail * answer.f_frsize)

    # --- the life of a copy ---

    def create_partial(self, entry_id: int, size: int) -> None:
        """Make the empty partial file, all of it a hole, under a name that a crash will not take away."""
        for name in TREES:  # somebody may have emptied the cache folder
            with suppress(FileExistsError):
                ours().make_folder(f"{self.place}/{name}")
        number = open_below(self.partial(entry_id), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            ours().give(number)
            os.ftruncate(number, size)
        finally:
            os.close(number)
        with inside.folder(self.place, "partial") as place:
            sync_names(place)

    def open_partial(self, entry_id: int) -> Descriptor:
        """Open it for writing."""
        return Descriptor(open_below(self.partial(entry_id), os.O_RDWR))

    def sync_data(self, entry_id: int) -> None:
        """Make the bytes written so far durable."""
        with _opened(self.partial(entry_id)) as number:
            os.fdatasync(number)

    def label(self, entry_id: int, label: Label) -> bool:
        """Let the complete partial file say whose copy it is; False where files cannot say so."""
        with _opened(self.partial(entry_id)) as number:
            return write_label(number, label)

    def label_published(self, label: Label) -> bool:
        """As ``label``, for a file that was published without one. False, too, when it is not there."""
        try:
            number = inside.open_file(self.place, cache_path(label.file.key))
        except OSError:
            return False
        try:
            return os.fstat(number).st_size == label.file.size and write_label(number, label)
        finally:
            os.close(number)

    def sync_file(self, entry_id: int, size: int) -> None:
        """Check the partial file's size, then make bytes, times, owner and attributes durable."""
        with _opened(self.partial(entry_id)) as number:
            found = os.fstat(number).st_size
            if found != size:
                raise OSError(errno.EIO, f"the partial file has {found} bytes instead of {size}")
            os.fsync(number)

    def holds_the_same(self, entry_id: int, key: FileKey, start: int, most: int) -> bool:
        """Whether the partial file and the published one, if any, have the same ``most`` bytes from ``start`` on."""
        try:
            published = inside.open_file(self.place, cache_path(key))
        except FileNotFoundError:
            return True
        try:
            with _opened(self.partial(entry_id)) as number:
                for position in range(start, start + most, _READ_BYTES):
                    ours = os.pread(number, _READ_BYTES, position)
                    if ours != os.pread(published, _READ_BYTES, position):
                        return False
                    if not ours:
                        break
                return True
        finally:
            os.close(published)

    def rename(self, entry_id: int, key: FileKey) -> tuple[str, ...]:
        """Give the partial file its published name, and return the folders to sync.

        Whatever stands in the way goes: no live entry has it, for the source has shown this very name as a file.
        """
        target = cache_path(key)
        changed = self._make_folders(target.split("/")[:-1])
        if inside.is_folder(self.place, target):
            inside.remove_tree(self.place, target)
        inside.rename(self.place, f"partial/{entry_id}", target)
        return (*changed, os.path.dirname(target), "partial")

    def make_folders_of(self, key: FileKey) -> tuple[str, ...]:
        """Make the folders that a published name is in; returns those in which a new one was made."""
        return tuple(self._make_folders(cache_path(key).split("/")[:-1]))

    def _make_folders(self, names: list[str]) -> list[str]:
        """Make the folders ``names``, one in the other, below the cache folder; returns those in which a new one was
        made. Something else of such a name goes, a link too: the source has a folder there now."""
        changed = []
        path = names[0]
        for name in names[1:]:
            above, path = path, f"{path}/{name}"
            if inside.is_folder(self.place, path):
                continue
            with inside.folder(self.place, above) as place:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=place)
                ours().make_folder(name, place)
            changed.append(above)
        return changed

    def sync_folders(self, folders: tuple[str, ...]) -> None:
        for folder in dict.fromkeys(folders):
            with inside.folder(self.place, folder) as place:
                sync_names(place)

    def remove_partial(self, entry_id: int) -> None:
        with suppress(FileNotFoundError):
            inside.unlink(self.place, f"partial/{entry_id}")

    def remove_published(self, key: FileKey) -> None:
        """Remove the file of this name, and the folders that are empty then. A folder of this name stays."""
        target = cache_path(key)
        with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            inside.unlink(self.place, target)
        self.prune(os.path.dirname(target))

    def prune(self, folder: str) -> None:
        """Remove a folder below ``files`` (named from the cache folder), and those above it, while they are empty."""
        while folder.count("/") > 1:  # a source's own folder stays: its moved files are reached through it
            try:
                inside.rmdir(self.place, folder)
            except (FileNotFoundError, NotADirectoryError):
                pass  # gone with an earlier one
            except OSError:
                return
            folder = os.path.dirname(folder)

    # --- for recovery ---

    def contents(self) -> Contents:
        """All files there are. Measured: 10,000 files in 0.1 s."""
        published, partial = (dict(inside.sizes(self.place, tree)) for tree in TREES)
        elsewhere = tuple(name for names in (published, partial) for name in names if names[name] == inside.ELSEWHERE)
        for name in elsewhere:
            (published if name in published else partial).pop(name)
        return Contents(published, partial, elsewhere)

    def remove(self, name: str) -> None:
        """Remove a file that ``contents`` named."""
        with suppress(FileNotFoundError):
            inside.unlink(self.place, name)
        self.prune(os.path.dirname(name))

    def set_index_aside(self) -> str:
        """Rename a damaged index, so that a new one can be made; returns its new name. Of several the last is kept."""
        aside = f"{self.index}.damaged"
        with suppress(FileNotFoundError):
            os.unlink(f"{aside}-wal")
        os.replace(self.index, aside)
        with suppress(FileNotFoundError):
            os.replace(f"{self.index}-wal", f"{aside}-wal")
        with suppress(FileNotFoundError):
            os.unlink(f"{self.index}-shm")
        return aside


def holder(root: str) -> int | None:
    """The process that has this cache folder, found without touching the lock: whoever starts meanwhile must get it.

    None when nobody has it, or somebody in another container, who cannot be seen.
    """
    try:
        with open(f"{root}/lock", encoding="ascii") as lock:
            pid, inode = lock.readline(32).strip(), os.fstat(lock.fileno()).st_ino
        with open("/proc/locks", encoding="ascii") as locks:
            held = [line.split() for line in locks]
    except (OSError, UnicodeError):
        return None
    # 1: FLOCK ADVISORY WRITE 4711 08:01:1234 0 EOF; see proc_locks(5). The device is not that of stat on btrfs.
    found = any(fields[1] == "FLOCK" and fields[4] == pid and fields[5].endswith(f":{inode}") for fields in held)
    return int(pid) if found else None


def names_in(root: str) -> frozenset[str] | None:
    """What is there of a cache folder; None where there is no folder. Raises ``CacheError``. Blocks."""
    try:
        return frozenset(os.listdir(root))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CacheError(f"cache.path {root} cannot be used: {error.strerror or error}") from error


def unmake(root: str, new: str, before: frozenset[str] | None) -> None:
    """Take away again what was made by somebody who only looked at a cache folder that was ``new`` (its mark), and
    holds nothing: all but what was there ``before`` (as ``names_in`` said). Raises ``CacheError`` and ``OSError``.
    Blocks."""
    if before is not None and "lock" in before:
        return
    folder = Folder.take(root)
    try:
        if folder.token_before != new:
            return  # it has been used since, or is another one
        for name in frozenset(TREES) - (before or frozenset()):
            for path, _, _ in os.walk(f"{folder.place}/{name}", topdown=False):
                os.rmdir(path)
        for name in frozenset(FILES) - (before or frozenset()):
            with suppress(FileNotFoundError):
                os.unlink(f"{folder.place}/{name}")
    finally:
        folder.close()
    if before is None:
        os.rmdir(root)


def lacks_to_be_made(root: str) -> str:
    """Why a cache folder that is missing will not be made, or an empty text. Only the last name of its path is: where
    more is missing it may be a disk that is not mounted, and everything would go to the one below it. Blocks."""
    above = os.path.dirname(root)
    if os.path.lexists(above):
        return ""
    return f"cannot be made: {above} does not exist; is the SSD mounted? Where it is, run: mkdir -p {above}"


def refuse_foreign(root: str) -> None:
    """Recovery removes files that have no row: never let it loose on a folder that cachefs did not make. Only a lock
    file vouches for one: other programs, too, have an index."""
    said = _said(root)
    if said is not None:
        if _LOCK.fullmatch(said) is None:
            raise CacheError(
                f"cache.path {root} has a 'lock' that cachefs did not make: give cachefs an empty folder of its own"
            )
        return
    for name in TREES:
        if os.path.lexists(f"{root}/{name}") and (not os.path.isdir(f"{root}/{name}") or os.listdir(f"{root}/{name}")):
            raise CacheError(
                f"cache.path {root} has a '{name}' that cachefs did not make: give cachefs an empty folder of its own. "
                f"If this was its own, and has lost all but '{name}', make an empty file named lock beside that: then "
                "what files say of themselves is believed, those that have moved among them"
            )


def strangers(root: str) -> tuple[str, ...]:
    """The names in a folder, which has never been a cache, of what is not ours: cachefs leaves it alone, but nobody
    would want it there. Empty where that cannot be seen."""
    if os.path.lexists(f"{root}/lock"):
        return ()
    with suppress(OSError):
        return tuple(sorted(name for name in os.listdir(root) if name not in _NOBODYS and name[0] != "."))
    return ()


def _lock(root: str, place: int, token: str) -> tuple[int, str]:
    """The lock, and what it said before."""
    number = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=place)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        before = token_of(place)
        ours().give(number)
        _say(number, token)
    except BlockingIOError:
        holder = os.pread(number, 32, 0).decode("ascii", "replace").partition("\n")[0].strip()
        os.close(number)
        raise CacheBusy(
            f"the cache folder {root} is in use by another cachefs" + (f" (process {holder})" if holder else "")
        ) from None
    except OSError:
        _close(number)
        raise
    return number, before


def _say(number: int, token: str) -> None:
    """Write who has the folder into its lock. Where there is no room for even that, it says what it said before."""
    said = f"{os.getpid()}\n{token}\n".encode()
    try:
        os.pwrite(number, said, 0)  # over what it said before: a full SSD would not give the room back
        os.ftruncate(number, len(said))
        os.fsync(number)  # an SSD that is unplugged is known again by it
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise


def token_of(root: str | int) -> str:
    """What the lock file of a cache folder says beside the process: new with every start. Empty where there is none.
    Raises ``OSError``."""
    lines = (_said(root) or b"").decode("ascii", "replace").splitlines()
    return lines[1] if len(lines) > 1 else ""


def _said(root: str | int) -> bytes | None:
    """What is in the lock file; None where there is none."""
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        place = None if isinstance(root, str) else root
        number = os.open("lock" if place is not None else f"{root}/lock", flags, dir_fd=place)
    except FileNotFoundError:
        return None
    try:
        return os.pread(number, _LOCK_BYTES, 0)
    finally:
        _close(number)


def _has_mark(place: int, mark: Mark) -> bool:
    token = token_of(place)
    return token == mark.token if token else os.fstat(place).st_dev == mark.device


def _close(number: int) -> None:
    """The descriptor is gone whatever the file system answers."""
    with suppress(OSError):
        os.close(number)


@contextmanager
def _opened(path: str) -> Iterator[int]:
    number = open_below(path, os.O_RDONLY)  # the original may be one that nobody may write
    try:
        yield number
    finally:
        os.close(number)
