"""The tables of the index, their reference, and the way from each earlier version of them to the next.

Used by ``cache.index`` only. Whoever changes a table raises ``SCHEMA_VERSION`` and adds a function to ``MIGRATIONS``;
those that are there are never changed, since somebody's index waits for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

SCHEMA_VERSION = 4

SCHEMA = """
-- One row per file on the SSD. The row is the publication: it is written last when an entry is made and goes first
-- when one is dropped, so that after a crash a file without a row is rubbish and never the reverse.
CREATE TABLE entries (
    id              INTEGER PRIMARY KEY AUTOINCREMENT, -- names partial/<id>; AUTOINCREMENT: never used twice
    source          BLOB NOT NULL,      -- the source's name in cachefs.yaml
    path            BLOB NOT NULL,      -- below the source's folder; with the source the name below files/
    size            INTEGER NOT NULL,   -- fingerprint: bytes
    mtime_ns        TEXT NOT NULL,      -- fingerprint: decimal, since times after 2262 pass 63 bits (ext4 goes to 2446)
    source_inode    INTEGER,            -- fingerprint: as two's complement; NULL where the file system does not keep it
    filesystem      TEXT,               -- fingerprint: UUID; NULL where unknown
    inode           INTEGER NOT NULL,   -- st_ino in the mount, as two's complement: hard links have the same
    links           INTEGER NOT NULL,   -- hard links at the source when it was last looked at
    state           TEXT NOT NULL CHECK (state IN ('copying', 'cached')),
    ranges          BLOB NOT NULL,      -- copying: little-endian u64 pairs, only of bytes that fdatasync has confirmed;
                                        -- cached: empty, since all bytes are there
    reason          TEXT NOT NULL,      -- why it was copied, for people
    begun_at        REAL NOT NULL,      -- this and the other times: seconds since the epoch
    published_at    REAL,               -- NULL while copying
    last_read_at    REAL,               -- written in batches: may be a minute behind
    last_wanted_at  REAL,               -- when a plan last wanted it; written in batches
    watched_at      REAL,               -- when somebody last finished it
    labelled        INTEGER NOT NULL DEFAULT 0, -- 1: the published file says whose copy it is (cache.label)
    home            TEXT,               -- JSON of a moved file's place at its source (cache.homes); NULL: not moved
    UNIQUE (source, path)
);
-- What the user said to keep always.
CREATE TABLE pins (
    target          BLOB NOT NULL,      -- a path of the union, or a title when there is a rating key
    rating_key      TEXT NOT NULL,      -- Plex's numbers of a show, season or film; '' for a path
    created_at      REAL NOT NULL,
    stood_for       TEXT NOT NULL DEFAULT '[]', -- a title's files as Plex named them last: JSON, [[source, path], ...]
    PRIMARY KEY (target, rating_key)
);
-- 'schema': the version of these tables. 'identity': the sources this cache was made for; without it the index is new,
-- or the place of one that was lost. 'open': somebody has the index open, or was killed while he had. 'start': what the
-- lock file said at the last start; an older index says something else. 'aside': files of the SSD that are nobody's and
-- must not be removed, with zeros between them. 'asked': what people said of single files with cachefs copy and
-- evict, as JSON (cache.wishes). 'moved_from': the names of the sources from which files have moved to this folder, as
-- JSON, until cachefs restore has tidied up there: another folder in its place knows nothing of that.
CREATE TABLE meta (
    name            TEXT PRIMARY KEY,
    value           BLOB NOT NULL
);
-- The tag in the upper bits of the inode numbers of each device, in the order in which they were first seen.
CREATE TABLE devices (
    identity        TEXT PRIMARY KEY,
    tag             INTEGER NOT NULL UNIQUE
);
"""

Execute = Callable[[str], object]
"""Runs one statement, inside the one transaction in which an index is brought up to date."""


def _label_files(execute: Execute) -> None:
    """Files that were published before they carried labels are labelled by the start that finds them."""
    execute("ALTER TABLE entries ADD COLUMN labelled INTEGER NOT NULL DEFAULT 0")


def _remember_homes(execute: Execute) -> None:
    """Files can be moved: what is on the SSD may be the only copy."""
    execute("ALTER TABLE entries ADD COLUMN home TEXT")


def _remember_titles(execute: Execute) -> None:
    """What a pinned title stands for is kept pinned while Plex is away."""
    execute("ALTER TABLE pins ADD COLUMN stood_for TEXT NOT NULL DEFAULT '[]'")


MIGRATIONS: Mapping[int, Callable[[Execute], None]] = {1: _label_files, 2: _remember_homes, 3: _remember_titles}
"""From the version that is the key to the one after it."""


def newer(path: str, version: int) -> str:
    """What is said of an index that this cachefs cannot know."""
    return (
        f"the index {path} was made by a newer cachefs (version {version}; this one knows up to {SCHEMA_VERSION}): "
        "use that cachefs, or another cache.path"
    )
