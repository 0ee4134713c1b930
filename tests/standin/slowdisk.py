"""A slow, faulty disk: a FUSE file system over a folder, in a process of its own.

``python -m tests.standin.slowdisk FOLDER MOUNTPOINT --control SOCKET``. Tests and the demo start it through
``slowdisk_control.slow_disk``. Every operation is counted, delayed and perhaps failed by ``slowdisk_physics.Disk``,
then done on the backing folder in a worker thread.

Two limits of stock libfuse hold here too: a hung lookup blocks other lookups in the same folder, and twelve hung
read-aheads block the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import sys
from dataclasses import asdict
from functools import partial
from typing import Any

import pyfuse3
import trio

from tests.standin.slowdisk_control import DiskCounts
from tests.standin.slowdisk_operations import SlowOperations
from tests.standin.slowdisk_physics import Disk
from tests.standin.slowdisk_process import SlowDiskSettings
from tests.standin.slowdisk_rules import Fault, Part, Slowness

MAX_TASKS = 4000
UNBLOCK_EVERY_S = 0.2


async def answer(disk: Disk, stream: trio.SocketStream) -> None:
    """One connection, one command, one answer."""
    line = b""
    while not line.endswith(b"\n"):
        if not (received := await stream.receive_some(65536)):
            return
        line += received
    request = json.loads(line)
    try:
        reply = await carry_out(disk, request.pop("command"), request)
    except (KeyError, TypeError, ValueError) as error:
        reply = {"error": repr(error)}
    with trio.move_on_after(5), contextlib.suppress(trio.BrokenResourceError):  # whoever asked may have given up
        await stream.send_all(json.dumps(reply).encode() + b"\n")


async def carry_out(disk: Disk, command: str, arguments: dict[str, Any]) -> dict[str, object]:
    if command == "counts":
        counts = (dict(disk.operations), disk.read_bytes, disk.written_bytes, disk.wake_ups, disk.held, disk.asleep)
        return asdict(DiskCounts(*counts))
    if "kinds" in arguments:
        arguments["kinds"] = frozenset(arguments["kinds"])
    if command == "fault":
        disk.add_fault(Fault(_part(arguments), **arguments))
    elif command == "slow_down":
        disk.slow_down(Slowness(_part(arguments), **arguments))
    elif command == "settings":
        disk.change_settings(arguments["changes"])
    elif command in ("until_asked", "until_held"):
        await getattr(disk, command)(**arguments)
    elif command in ("reset", "release", "sleep", "wake"):
        getattr(disk, command)(**arguments)
    else:
        raise ValueError(f"no such command: {command}")
    return {}


def _part(arguments: dict[str, Any]) -> Part:
    """Takes it out of the arguments of a command."""
    return Part(arguments.pop("path"), arguments.pop("kinds"), arguments.pop("exact"))


# --- process ---


async def serve(disk: Disk, control: str, ready_fd: int | None, owner_fd: int | None) -> None:
    """Serve until the mount goes, a signal comes, or the owner's end of the pipe closes."""
    listening = trio.socket.socket(trio.socket.AF_UNIX)
    await listening.bind(control)
    listening.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, partial(answer, disk), [trio.SocketListener(listening)])
        nursery.start_soon(stop_on_signal, nursery.cancel_scope)
        if owner_fd is not None:
            nursery.start_soon(stop_without_owner, owner_fd, nursery.cancel_scope)
        if ready_fd is not None:
            os.write(ready_fd, b"1")
            os.close(ready_fd)
        await pyfuse3.main(max_tasks=MAX_TASKS)
        nursery.cancel_scope.cancel()


def never_block_for_long() -> None:
    """Interrupt system calls now and then.

    pyfuse3 reads the FUSE device, which blocks, while it holds the GIL. A client that is killed between its poll and
    its read leaves it there, with the whole process (3 times in 750 kills), until another request comes. A signal
    makes that read return with EINTR, which pyfuse3 takes for nothing.
    """
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, UNBLOCK_EVERY_S, UNBLOCK_EVERY_S)


async def stop_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            scope.cancel()


async def stop_without_owner(owner_fd: int, scope: trio.CancelScope) -> None:
    await trio.lowlevel.wait_readable(owner_fd)
    scope.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description="a slow, faulty disk over a folder")
    parser.add_argument("folder")
    parser.add_argument("mountpoint")
    parser.add_argument("--control", required=True, help="unix socket for commands, JSON lines")
    parser.add_argument("--settings", default="{}", help="fields of SlowDiskSettings, as JSON")
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--owner-fd", type=int)
    given = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.umask(0)
    never_block_for_long()
    disk = Disk(SlowDiskSettings(**json.loads(given.settings)))
    options = {*pyfuse3.default_options, "fsname=slowdisk"} | ({"allow_other"} if os.geteuid() == 0 else set())
    pyfuse3.init(SlowOperations(given.folder, disk), given.mountpoint, options)
    try:
        trio.run(serve, disk, given.control, given.ready_fd, given.owner_fd)
    finally:
        pyfuse3.close(unmount=True)
    # A worker thread may be stuck in the backing folder; the mount is gone, nobody waits for it.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
