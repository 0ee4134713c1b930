"""Which files were changed through the mount lately: what was seen of them before is not told to the kernel any more.

The kernel has a folder locked while it reads it, and while a name in it is made or removed through the mount: nothing
that was seen for one such request is overtaken by the other. But a large folder is told in many replies, from what was
seen for the first of them. Who is told in a later one of a file that was removed in between takes it for the file that
has its name by now, and what he writes is lost; of one that was written in between, he believes the old size.
"""

from __future__ import annotations

from collections import OrderedDict

from cachefs.model import FileKey

_MOST = 4096


class Touched:
    """Use from the event loop only."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._last: OrderedDict[FileKey, int] = OrderedDict()
        self._dropped = 0
        self.count = 0
        """How often anything was touched."""

    def touch(self, key: FileKey) -> None:
        """This file is being changed, or was just now."""
        self.count += 1
        self._last[key] = self.count
        self._last.move_to_end(key)
        if len(self._last) > self._most:
            self._dropped = self._last.popitem(last=False)[1]

    def since(self, count: int) -> list[FileKey] | None:
        """What was touched since the count was this; None when nobody knows any more."""
        if count < self._dropped:
            return None
        found = []
        for key, at in reversed(self._last.items()):
            if at <= count:
                break
            found.append(key)
        return found
