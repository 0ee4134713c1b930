"""What only the index has and nobody could find out again: pins, people's wishes, and the numbers of devices.

The part of ``cache.store`` that holds them in memory, on the event loop; ``cache.keepsake`` has them a second time.
"""

from __future__ import annotations

import logging

from cachefs.cache.keepsake import Keepsake
from cachefs.cache.recovery import Opened
from cachefs.cache.schema import SCHEMA_VERSION
from cachefs.cache.shelf import FORGET_S, Shelf
from cachefs.cache.wishes import Wishes
from cachefs.errors import CacheError, IndexFull
from cachefs.model import FileKey, Pin

log = logging.getLogger(__name__)


class Facts:
    """Use from the event loop only. What is changed here is durable when the change returns."""

    def __init__(self, shelf: Shelf, opened: Opened) -> None:
        self.wishes = Wishes(opened.asked, shelf.keep_asked, lambda key: shelf.bars.forbids(key, None))
        """What people said of single files."""
        self._shelf = shelf
        self._pins = {(pin.target, pin.rating_key): pin for pin in opened.pins}
        self._tags = dict(opened.kept.devices) if opened.kept is not None else {}

    def pins(self) -> tuple[Pin, ...]:
        return tuple(self._pins.values())

    async def add_pin(self, pin: Pin) -> None:
        """Raises ``CacheError``; then nothing has changed."""
        ledger = self._shelf.ledger
        await ledger.change_kept(ledger.index.add_pin, pin)
        self._pins[pin.target, pin.rating_key] = pin

    async def remove_pin(self, target: str) -> bool:
        """Forget the pins of this path or title; False when there are none. Raises ``CacheError``."""
        found = [name for name in self._pins if name[0] == target]
        if found:
            ledger = self._shelf.ledger
            await ledger.change_kept(ledger.index.remove_pin, target)
            for name in found:
                self._pins.pop(name, None)
        return bool(found)

    async def device_tag(self, identity: str) -> int:
        """See ``Store.device_tag``."""
        if identity not in self._tags:
            ledger = self._shelf.ledger
            self._tags[identity] = await ledger.change_kept(ledger.index.device_tag, identity)
        return self._tags[identity]

    async def renamed(self, old: FileKey, new: FileKey, *, exchanged: bool) -> None:
        """See ``Store.renamed``."""
        if self.wishes.renamed(old, new, exchanged=exchanged):
            await self._save_wishes()

    async def perhaps_renamed(self, old: FileKey, new: FileKey) -> None:
        """See ``Store.perhaps_renamed``."""
        if self.wishes.perhaps_renamed(old, new):
            await self._save_wishes()

    async def _save_wishes(self) -> None:
        self._shelf.note_change()
        if not self._shelf.presence.overdue(FORGET_S):
            await self.wishes.save(FORGET_S)

    async def keep(self, opened: Opened) -> None:
        """The SSD may be back without them: it was emptied, or has lost its index."""
        has = opened.kept.devices if opened.kept is not None else {}
        same = self._tags.items() <= has.items() and {*self.pins()} <= {*opened.pins}
        if same and self.wishes.all() == opened.asked:
            return
        ledger = self._shelf.ledger
        kept = Keepsake(SCHEMA_VERSION, "", dict(self._tags), self.pins(), self.wishes.all(), ledger.moved_from)
        try:
            await ledger.change_kept(ledger.index.keep, kept)
        except IndexFull as error:
            log.debug("%s", error)
        except CacheError as error:
            await self._shelf.trouble(error)
