"""Looks at the machine that cachefs is to run on; every function blocks and returns plain facts.

``check`` and ``doctor`` call them in worker threads, each under a deadline, and judge what they found. Nothing is
changed here but for an unnamed file that is written to an existing cache folder and vanishes at once.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cachefs import mounts
from cachefs.cache.folder import lacks_to_be_made
from cachefs.control.client import Client
from cachefs.errors import CachefsError
from cachefs.fs import channel
from cachefs.model import Status

FUSE_DEVICE = Path("/dev/fuse")
FUSE_CONF = Path("/etc/fuse.conf")
_MOST_WATCHES = Path("/proc/sys/fs/inotify/max_user_watches")
_LIBFUSE = ("libfuse3.so.3", "libfuse3.so.4")  # 4 since libfuse 3.17
_CONTAINER_MARK = "container"
"""An environment variable that container engines or their images set (systemd's CONTAINER_INTERFACE)."""
RIGHT_MISSING = (
    "the right to mount is missing; start the container with --cap-add SYS_ADMIN --security-opt apparmor=unconfined, "
    "or with --privileged"
)
NOT_SHARED = (
    "the mountpoint has to lie in a volume that is bound with :rshared, and that the host shares (mount --make-rshared)"
)
_CAP_SYS_ADMIN = 21  # linux/capability.h
_FUSE_NUMBER = os.makedev(10, 229)  # Documentation/admin-guide/devices.txt

Identity = tuple[int, int]
"""Device and inode number: equal for the same folder under two names, bind mounts included."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder as it is now; ``problem`` says why it cannot be used, and is empty when it can."""

    path: Path
    problem: str = ""
    missing: bool = False
    identity: Identity | None = None
    lineage: frozenset[Identity] = frozenset()
    """The folder itself and everything above it, symbolic links resolved."""
    empty: bool = False
    real: Path | None = None
    """Its path with symbolic links resolved."""

    @property
    def device(self) -> int | None:
        return None if self.identity is None else self.identity[0]

    def lies_in(self, other: Folder) -> bool:
        return other.identity is not None and other.identity in self.lineage


@dataclass(frozen=True, slots=True)
class Storage:
    """The cache folder (or the nearest one above, while it is still to be made), and its file system."""

    folder: Folder
    to_be_made: bool = False
    total_bytes: int = 0
    free_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Fuse:
    """What mounting needs; empty texts where all is well."""

    device_problem: str
    fusermount_missing: bool
    others_refused: bool
    """An ordinary user may not open the mount to others."""
    right_missing: bool = False
    """Root, but without CAP_SYS_ADMIN, as in a container that was not given it."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the system offers to this process."""

    kernel: str
    libfuse: str
    """Its version; empty when there is none."""
    has_channel: bool
    """The object between libfuse and the kernel is built and can be loaded."""
    uid: int
    can_administrate: bool
    """CAP_SYS_ADMIN."""
    encoding: str
    """Of file names."""
    most_watches: int | None
    """Folders that a user's programs may watch with inotify; None where the system does not tell."""


@dataclass(frozen=True, slots=True)
class Place:
    """The mountpoint: what is mounted there, and which daemon answers; ``folder`` only when nothing is mounted."""

    mount: mounts.Mount | None
    daemon_pid: int | None
    folder: Folder | None
    has_parent: bool = False
    """The folder is missing, but could be made."""
    other: str = ""
    """The mountpoint of another daemon that answers on the control socket."""


def look_at_folder(path: Path) -> Folder:
    """A source, or anything that must be a folder that can be listed."""
    try:
        found = os.stat(path)
        if not stat.S_ISDIR(found.st_mode):
            return Folder(path, problem="is no folder")
        real = Path(os.path.realpath(path))
        lineage = frozenset(_lineage(real))
        with os.scandir(path) as listing:
            empty = next(listing, None) is None
    except FileNotFoundError:
        return Folder(path, problem="does not exist", missing=True)
    except OSError as error:
        return Folder(path, problem=f"cannot be read: {error.strerror}")
    return Folder(path, identity=(found.st_dev, found.st_ino), lineage=lineage, empty=empty, real=real)


def look_at_cache(path: Path) -> Storage:
    """The cache folder, whether it can be written or made, and the size of its file system."""
    existing = _nearest_existing(path)
    folder = look_at_folder(existing)
    if not folder.problem:
        problem = lacks_to_be_made(str(path)) if existing != path else ""
        problem = problem or _why_not_writable(existing, to_be_made=existing != path)
        folder = Folder(existing, problem, False, folder.identity, folder.lineage, folder.empty)
    try:
        space = os.statvfs(existing)
    except OSError as error:
        return Storage(Folder(existing, f"cannot be read: {error.strerror}"))
    return Storage(folder, existing != path, space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize)


def is_system(storage: Storage) -> bool:
    """Whether it is on the disk that ``/`` is on."""
    return storage.folder.device == os.stat("/").st_dev


def look_at_fuse(uid: int) -> Fuse:
    """The FUSE device, and for an ordinary user what stands in for being root."""
    return Fuse(
        device_problem=_fuse_device_problem(),
        fusermount_missing=uid != 0 and shutil.which("fusermount3") is None,
        others_refused=uid != 0 and not _others_allowed(),
        right_missing=uid == 0 and not _has_capability(_CAP_SYS_ADMIN),
    )


def unseen_outside(mountpoint: Path) -> bool:
    """Whether this is a container, and nobody outside of it will see a mount at ``mountpoint``."""
    if not os.environ.get(_CONTAINER_MARK):
        return False
    holder = mounts.holding(mounts.all_now(), mounts.resolve_now(mountpoint))
    return holder is None or not holder.is_shared


def look_at_machine() -> Machine:
    """Kernel, libraries and rights; asks no disk but the one that programs are on."""
    return Machine(
        kernel=os.uname().release,
        libfuse=_libfuse_version(),
        has_channel=channel.is_loaded(),
        uid=user(),
        can_administrate=_has_capability(_CAP_SYS_ADMIN),
        encoding=sys.getfilesystemencoding(),
        most_watches=_number_in(_MOST_WATCHES),
    )


def user() -> int:
    return os.geteuid()


def look_at_daemon(socket: Path) -> Status | None:
    """What the running daemon says of itself; None when none answers."""
    try:
        with Client(socket) as client:
            return client.status()
    except CachefsError:
        return None


def look_at_mountpoint(mountpoint: Path, socket: Path) -> Place:
    """What is at the mountpoint; a mount that is there is never touched."""
    mount = mounts.mounted_at(mountpoint)
    folder = look_at_folder(mountpoint) if mount is None else None
    status = look_at_daemon(socket)
    has_parent = folder is not None and folder.missing and mountpoint.parent.is_dir()
    other = status.mountpoint if status is not None and status.mountpoint != str(mountpoint) else ""
    return Place(mount, status.pid if status is not None and not other else None, folder, has_parent, other)


def look_at_socket(path: Path) -> str:
    """Why the control socket cannot be made, or an empty text."""
    if os.path.lexists(path) and not path.is_socket():
        return f"{path} exists and is no socket; remove it or choose another path"
    folder = _nearest_existing(path.parent)
    if not folder.is_dir():
        return f"{folder} is no folder"
    return _why_no_files(folder) or ("" if os.access(folder, os.W_OK | os.X_OK) else f"{folder} cannot be written")


def readable_by_everybody(path: Path) -> bool:
    """Whether a file with a secret in it is open to every user of the machine."""
    try:
        return bool(os.stat(path).st_mode & stat.S_IROTH)
    except OSError:
        return False


def _lineage(real: Path) -> Iterator[Identity]:
    for folder in (real, *real.parents):
        found = os.stat(folder)
        yield found.st_dev, found.st_ino


def _nearest_existing(path: Path) -> Path:
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def _why_no_files(folder: Path) -> str:
    """As on /proc, which says of itself that root may write."""
    mount = mounts.holding(mounts.all_now(), folder)
    return f"{folder} is on {mount.fstype}, which has no files" if mount is not None and mount.is_of_kernel else ""


def _why_not_writable(folder: Path, to_be_made: bool) -> str:
    if to_be_made and _why_no_files(folder):
        return f"cannot be made: {_why_no_files(folder)}"
    if to_be_made:
        return "" if os.access(folder, os.W_OK | os.X_OK) else f"cannot be made: {folder} cannot be written"
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"cachefs")
            file.flush()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):  # what it holds is served all the same
            return f"cannot be written: {error.strerror}"
    return ""


def _fuse_device_problem() -> str:
    try:
        device = os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
        try:
            number = os.fstat(device).st_rdev
        finally:
            os.close(device)
    except FileNotFoundError:
        return "does not exist; run: modprobe fuse (in a container, start it with --device /dev/fuse)"
    except PermissionError:
        return "may not be opened; in a container, start it with --device /dev/fuse --cap-add SYS_ADMIN"
    except OSError as error:
        return f"cannot be opened: {error.strerror}; run: modprobe fuse"
    return "" if number == _FUSE_NUMBER else "is no FUSE device; in a container, start it with --device /dev/fuse"


def _others_allowed() -> bool:
    try:
        lines = FUSE_CONF.read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.split("#")[0].strip() == "user_allow_other" for line in lines)


def _libfuse_version() -> str:
    """Of the library that pyfuse3 uses: the one that is loaded already, else the one that would be."""
    loaded = loaded_libfuse(Path("/proc/self/maps").read_text(errors="surrogateescape"))
    for name in (loaded,) if loaded else _LIBFUSE:
        try:
            version = ctypes.CDLL(name).fuse_pkgversion
        except (OSError, AttributeError):
            continue
        version.restype = ctypes.c_char_p
        return str(version().decode())
    return ""


def loaded_libfuse(maps: str) -> str:
    """The file of the libfuse in a process's ``maps`` (proc_pid_maps(5)); empty when there is none."""
    paths = (line.split(maxsplit=5)[5] for line in maps.splitlines() if "/libfuse3.so." in line)
    return next(paths, "")


def _has_capability(number: int) -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


def _number_in(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
