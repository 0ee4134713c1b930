"""How a file system says that it takes no more: there is no room, or the user, or the folder, has used up a quota.

Used by whoever goes on reading when nothing can be written. Blocks.
"""

from __future__ import annotations

import errno
import os
import tempfile

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_PAGE = 4096


def takes_nothing(folder: str) -> bool:
    """Whether a new file can be written there. SQLite does not tell an exceeded quota from a disk that fails."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_PAGE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno in NO_ROOM
    return False
