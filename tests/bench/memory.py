"""What the daemon remembers of a large library, and whether it gives that back once the kernel has forgotten it."""

from __future__ import annotations

import time
from pathlib import Path

from tests.bench import daemons, probe
from tests.bench.figures import Memory
from tests.bench.forgetting import forget_names
from tests.bench.sample import files_for_entries, make_tree
from tests.bench.stage import Say, settings
from tests.demo.stop import Stop
from tests.standin.running import start_cachefs

_SETTLED_S = 2.0
_AT_MOST_S = 120.0
_POLL_S = 0.2


def measure_memory(place: Path, program: Path, entries: int, say: Say, stop: Stop) -> Memory:
    """Mount a cachefs over a tree of so many entries, walk it, and let the kernel forget it."""
    name = "memory"
    source = place / f"source-{name}"
    say(f"making a tree of {entries:,} entries")
    make_tree(source, files_for_entries(entries), stop)
    (place / "mounts" / name).mkdir(parents=True, exist_ok=True)
    running = start_cachefs(place / f"{name}.yaml", place / f"{name}.log", settings(place, name, source))
    try:
        pids = daemons.family(running.process.pid)
        start = settled(pids, stop)
        say(f"walking {entries:,} entries")
        walked, _ = probe.run(program, ["walk", str(running.mountpoint), "--", "."], stop)
        after = settled(pids, stop)
        say("letting the kernel forget them")
        forget_names(running.mountpoint)
        return Memory(walked, start, after, settled(pids, stop))
    finally:
        running.remove()


def settled(pids: tuple[int, ...], stop: Stop) -> int:
    """Resident bytes once the processes have been idle for a while: they work on forgotten names for seconds."""
    began = quiet_since = time.monotonic()
    cpu_s = daemons.cpu_s(pids)
    while (now := time.monotonic()) - quiet_since < _SETTLED_S and now - began < _AT_MOST_S:
        stop.wait(_POLL_S)
        used = daemons.cpu_s(pids)
        if used - cpu_s > 0.02:
            cpu_s, quiet_since = used, time.monotonic()
    return daemons.resident_bytes(pids)
