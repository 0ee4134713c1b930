"""``make container``: builds the image, runs cachefs and an unprivileged Plex beside it, stops, kills and upgrades one
while the other goes on; says each rule as it is seen to hold. As root, with podman, buildah and runc; no Docker needed.

``--base IMAGE`` builds on another image than debian:trixie-slim, ``--build-option=…`` is handed to buildah: a machine
that reaches its package index in its own way says so there (``--build-option=-v=/etc/pip.conf:/etc/pip.conf:ro``).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cachefs.mounts import all_now, unmount
from tests.container.engine import (
    CLIENTS,
    GRACE_S,
    Container,
    Failed,
    attempt,
    build,
    container,
    podman,
    run,
    variables,
    wait_until,
)
from tests.mount.views import shared
from tests.standin.library import SampleLibrary, build_library
from tests.standin.library_in_plex import put_in_plex
from tests.standin.plex import StandInPlex, run_stand_in_plex

REPOSITORY = Path(__file__).resolve().parents[2]
DEBIAN = "docker.io/library/debian:trixie-slim"
IMAGE, UPGRADE = "localhost/cachefs-trial:one", "localhost/cachefs-trial:two"
SMALLEST = ("--device", "/dev/fuse", "--cap-add", "SYS_ADMIN")
APPARMOR = ("--security-opt", "apparmor=unconfined")
GONE, DEAD = "ENOENT", ("ENOTCONN", "ECONNABORTED")

_LIST = """
import errno, os, sys
try:
    print(*sorted(os.listdir(sys.argv[1])), sep=",")
except OSError as error:
    print(errno.errorcode[error.errno])
"""
_STATE = """
import os, sys
try:
    print(os.getxattr(sys.argv[1], "user.cachefs.state").decode())
except OSError as error:
    print(error.errno)
"""


def say(text: str) -> None:
    sys.stdout.write(f"  ok  {text}\n")
    sys.stdout.flush()


def must(holds: bool, rule: str, seen: object = "") -> None:
    if not holds:
        raise Failed(f"not so: {rule}; seen: {seen}")
    say(rule)


def listed(plex: Container, path: str) -> str:
    """What Plex sees in a folder; an error by its name."""
    return plex.execute("python3", "-c", _LIST, path).out.strip()


def state(plex: Container, path: str) -> str:
    return plex.execute("python3", "-c", _STATE, path).out.strip()


def privileges() -> tuple[str, ...]:
    enabled = Path("/sys/module/apparmor/parameters/enabled")
    return SMALLEST + (APPARMOR if enabled.exists() and enabled.read_text().strip() == "Y" else ())


class Trial:
    """The folders of one trial, and the containers beside each other."""

    def __init__(self, folder: Path, library: SampleLibrary, server: StandInPlex) -> None:
        self.folder = folder
        self.library = library
        self.server = server
        self.items = put_in_plex(library, server, "/data/media")
        self.host = folder / "host"
        self.video = library.films[0].video.path
        (folder / "ssd").mkdir()

    def environment(self, mountpoint: str, source: str) -> list[str]:
        """No file is needed: all of the configuration is in variables."""
        return variables(
            {
                "CACHEFS_MOUNTPOINT": mountpoint,
                "CACHEFS_SOURCES__0__PATH": source,
                "CACHEFS_CACHE__PATH": "/cache",
                "CACHEFS_PLEX__URL": self.server.url,
                "CACHEFS_PLEX__CLOUD_URL": self.server.url,
                "CACHEFS_PLEX_TOKEN": self.server.token,
                "PUID": "99",
                "PGID": "100",
                "UMASK": "002",
            }
        )

    def options(self, mountpoint: str, source: str, volume: str) -> list[str | Path]:
        return [*self.environment(mountpoint, source), "-v", volume, "-v", f"{self.folder}/ssd:/cache"]

    @contextmanager
    def plex(self, name: str, volume: str) -> Iterator[Container]:
        """An unprivileged container that only reads."""
        with container(name, IMAGE, ["--entrypoint", "sleep", "-v", volume], ["infinity"]) as running:
            yield running


def try_what_is_missing(trial: Trial) -> None:
    """A container that lacks something says what."""
    apart = trial.options("/mnt/cachefs/media", "/media", f"{trial.host}:/mnt/cachefs:rshared")
    apart += ["-v", f"{trial.library.root}:/media"]
    bare = attempt(IMAGE, apart)
    must(bare.code == 3 and "--device /dev/fuse" in bare.all, "without /dev/fuse it ends with 3 and says so", bare)
    weak = attempt(IMAGE, [*apart, "--device", "/dev/fuse"])
    must(weak.code == 3 and "--cap-add SYS_ADMIN" in weak.all, "without CAP_SYS_ADMIN it ends with 3 and says so", weak)
    private = trial.options("/mnt/cachefs/media", "/media", f"{trial.host}:/mnt/cachefs")
    private += ["-v", f"{trial.library.root}:/media", *privileges()]
    with container("cachefs-private", IMAGE, private) as alone:
        wait_until(alone.is_healthy, "a container of its own is healthy", alone)
        must(":rshared" in alone.log(), "without :rshared it says that nobody else will see the mount", alone.log())
    empty = attempt(IMAGE, privileges())
    must(empty.code == 2 and "there is no configuration" in empty.all, "without a configuration it says so", empty)


def try_apart(trial: Trial) -> None:
    """At a mountpoint of its own, below a folder that the host shares."""
    options = trial.options("/mnt/cachefs/media", "/media", f"{trial.host}:/mnt/cachefs:rshared")
    options += ["-v", f"{trial.library.root}:/media", *privileges()]
    names = ",".join(sorted(os.listdir(trial.library.root)))
    film = f"/data/media/{trial.video}"
    with trial.plex("plex", f"{trial.host}:/data:rslave") as plex:
        must(listed(plex, "/data/media") == GONE, "before the first start Plex finds no folder")
        with container("cachefs", IMAGE, options) as cachefs:
            wait_until(cachefs.is_healthy, "it is healthy", cachefs)
            must(listed(plex, "/data/media") == names, "Plex sees the mount appear", listed(plex, "/data/media"))
            trial.server.on_deck(None, next(iter(trial.items.films.values())))
            wait_until(lambda: state(plex, film) == "cached", "what is on deck is cached", cachefs)
            say("what Plex has on deck is cached, and Plex reads it from the SSD")
            owner = os.stat(trial.folder / "ssd" / "files")
            must(
                (owner.st_uid, owner.st_gid, owner.st_mode & 0o777) == (99, 100, 0o775), "PUID, PGID, UMASK rule there"
            )

            stopped = cachefs.stop()
            must(stopped.took_s < GRACE_S and cachefs.exit_code() == 0, "it stops in its grace period", stopped)
            must(listed(plex, "/data/media") == GONE, "stopped: Plex finds no folder, not an empty one")
            must(os.listdir(trial.host) == [] and not left(trial.host), "stopped: nothing is left on the host")
            cachefs.start()
            wait_until(cachefs.is_healthy, "it is healthy again", cachefs)
            must(state(plex, film) == "cached", "started: Plex, which was not, sees the library from the SSD")

            cachefs.kill()
            must(listed(plex, "/data/media") in DEAD, "killed: Plex gets an error", listed(plex, "/data/media"))
            cachefs.start()
            wait_until(cachefs.is_healthy, "it is healthy again", cachefs)
            must(listed(plex, "/data/media") == names, "started after a kill: Plex sees the library again")

            server = json.loads(cachefs.execute("cachefs", "status", "--json").out)["pid"]
            cachefs.execute("sh", "-c", f"kill -STOP {server}")
            must(not cachefs.is_healthy(), "a server that does not answer is unhealthy")
            cachefs.execute("sh", "-c", f"kill -KILL {server}")
            wait_until(cachefs.is_healthy, "it is healthy again", cachefs)
            must(state(plex, film) == "cached", "the keeper has started another: Plex sees the library again")
        podman("tag", IMAGE, UPGRADE)
        with container("cachefs", UPGRADE, options) as cachefs:
            wait_until(cachefs.is_healthy, "the new version is healthy", cachefs)
            must(state(plex, film) == "cached", "upgraded: Plex sees the library from the same SSD")
    must(os.listdir(trial.host) == [] and not left(trial.host), "removed: nothing is left on the host")


def try_in_place(trial: Trial) -> None:
    """Over the source itself: Plex's volume stays, and gets :rslave."""
    library = trial.host / "media"
    shutil.copytree(trial.library.root, library)
    names = ",".join(sorted(os.listdir(library)))
    shutil.rmtree(trial.folder / "ssd")
    (trial.folder / "ssd").mkdir()
    options = [*trial.options("/host/media", "/host/media", f"{trial.host}:/host:rshared"), *privileges()]
    film = f"/data/media/{trial.video}"
    with (
        trial.plex("plex", f"{trial.host}:/data:rslave") as plex,
        trial.plex("plex-private", f"{library}:/data/media") as private,
        container("cachefs", IMAGE, options) as cachefs,
    ):
        wait_until(cachefs.is_healthy, "it is healthy", cachefs)
        wait_until(lambda: state(plex, film) == "cached", "what is on deck is cached", cachefs)
        say("in place: Plex reads the cached film from the SSD, at its old path")
        must(state(private, film).isdigit(), "in place: a private volume goes on showing the slow files")
        cachefs.stop()
        must(listed(plex, "/data/media") == names, "in place, stopped: Plex sees the slow files")
        cachefs.start()
        wait_until(cachefs.is_healthy, "it is healthy again", cachefs)
        must(state(plex, film) == "cached", "in place, started: the SSD again")
        cachefs.kill()
        seen = listed(plex, "/data/media")
        must(
            seen in (*DEAD, names),
            "in place, container killed: an error or the slow files, never an empty folder",
            seen,
        )
        must(listed(private, "/data/media") == names, "in place, killed: a private volume shows the slow files")
        cachefs.start()
        wait_until(cachefs.is_healthy, "it is healthy again", cachefs)
        must(state(plex, film) == "cached", "in place, started after a kill: the SSD again")
    must(not left(trial.host), "in place, removed: nothing is left on the host")


def left(host: Path) -> list[Path]:
    """What is mounted below the shared folder."""
    return [mount.path for mount in all_now() if host in mount.path.parents]


def clear(host: Path) -> None:
    for path in reversed(left(host)):
        unmount(path, force=True)


def try_all(base: str, build_options: Sequence[str]) -> None:
    sys.stdout.write(f"building the image on {base}\n")
    build(IMAGE, REPOSITORY, ["--build-arg", f"BASE={base}", *build_options])
    inspected = podman("image", "inspect", "--format", "{{.Size}}", IMAGE)
    say(f"the image has {int(inspected.out) / 1e6:.0f} MB with all of its base")
    inside = attempt(IMAGE, ["--entrypoint", "sh"], ["-c", "command -v gcc cc pip"])
    if base == DEBIAN:
        must(not inside.out.strip(), "there is no compiler in it, and no pip", inside.out)
    with tempfile.TemporaryDirectory(prefix="cachefs-") as made, run_stand_in_plex() as server:
        folder = Path(made)
        (folder / "host").mkdir()
        with shared(folder / "host") as host:
            trial = Trial(folder, build_library(folder / "library"), server)
            try:
                try_what_is_missing(trial)
                try_apart(trial)
                try_in_place(trial)
            finally:
                clear(host)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make container", description=__doc__)
    parser.add_argument("--base", default=DEBIAN)
    parser.add_argument("--build-option", action="append", default=[])
    options = parser.parse_args()
    missing = [name for name in CLIENTS if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        sys.stderr.write(f"run this as root, with {', '.join(CLIENTS)} (missing: {', '.join(missing) or 'nothing'})\n")
        return 2
    try:
        try_all(options.base, options.build_option)
    except Failed as error:
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        run("podman", "rmi", "-f", UPGRADE, check=False)
    sys.stdout.write("all of it holds\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
