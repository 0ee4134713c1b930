"""A root with a source and an SSD, and everything that moves files between them: as the daemon puts it together.

For ``moving``, which is recorded in one, and ``rebuilt``, which opens what a power cut has left of it.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from cachefs.cache.moving import Movers
from cachefs.cache.store import open_store
from cachefs.fs.changes import Changes
from cachefs.fs.elsewhere import Elsewhere
from cachefs.fs.homes import Homes
from cachefs.fs.routing import Routing
from cachefs.fs.source import Source
from cachefs.fs.union import Union
from cachefs.paths import Layout
from cachefs.status import Counters
from tests.crash.content import content
from tests.crash.powerloss.scenario import LIMITS, MEDIA, SEED, SOURCES, size_of
from tests.engine.fskit import Rooms

OUTSIDE = "sources"
"""On the same disk as the source's folder."""
FOLDER = f"{OUTSIDE}/{MEDIA}"
SSD = "ssd"
ATTRIBUTE = "user.who"
"""Every file of the source has one, which says its version."""
_TIMEOUT_S = 60.0


def data_of(version: int) -> bytes:
    """Whatever its name: files are renamed."""
    return content(SEED, "moved", version, size_of("", version))


def begin(root: Path) -> None:
    """The two empty folders."""
    (root / FOLDER).mkdir(parents=True)
    (root / SSD).mkdir()


@asynccontextmanager
async def house(root: Path, homes_of: Callable[[Union], Homes] = Homes) -> AsyncIterator[Rooms]:
    """What is below ``root``, recovered. The source is said to be at a path of its own, wherever the root is."""
    async with open_store(root / SSD, LIMITS, SOURCES) as store:
        source = Source(MEDIA, os.fspath(root / FOLDER), timeout_s=_TIMEOUT_S, ttl_s=0.0, watch_changes=False)
        store.make_place_of(MEDIA)
        elsewhere = Elsewhere(store.moves, store.place_of, (MEDIA,))
        await elsewhere.open()
        union = Union([source], Layout((MEDIA,)), store, store.device_tag, elsewhere=elsewhere)
        await union.open_sources()
        counters = Counters()
        routing = Routing(union, store, counters)
        movers = Movers(store, union.files, homes_of(union), routing.hold, lambda: None, on=False)
        try:
            changes = Changes(union, routing, movers)
            yield Rooms({MEDIA: root / FOLDER}, store, union, routing, changes, counters, movers)
        finally:
            elsewhere.close()
            source.close()
