-- An index as version 1 of the schema wrote it (sqlite3 .dump): the tests of migration begin here.
BEGIN TRANSACTION;
CREATE TABLE devices (
    identity        TEXT PRIMARY KEY,
    tag             INTEGER NOT NULL UNIQUE
);
INSERT INTO "devices" VALUES('ext4:aa',0);
INSERT INTO "devices" VALUES('fuse:bb',1);
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
    UNIQUE (source, path)
);
INSERT INTO "entries" VALUES(3,X'4D65646961',X'53686F772FFF2E6D6B76',10,'5',7,'uuid',-9223372036854775801,2,'cached',X'','on deck for Ann',1.5,2.5,3.5,4.5,5.5);
INSERT INTO "entries" VALUES(4,X'4D65646961',X'62',100,'1180591620717411303424',NULL,NULL,8,1,'copying',X'00000000000000000A0000000000000014000000000000001E00000000000000','pinned',1.5,NULL,NULL,NULL,NULL);
CREATE TABLE meta (
    name            TEXT PRIMARY KEY,
    value           BLOB NOT NULL
);
INSERT INTO "meta" VALUES('schema',X'31');
INSERT INTO "meta" VALUES('identity',X'7B224D65646961223A20222F6D6E742F6D65646961227D');
CREATE TABLE pins (
    target          BLOB NOT NULL,      -- a path of the union, or a title when there is a rating key
    rating_key      TEXT NOT NULL,      -- Plex's number of a show, season or film; '' for a path
    created_at      REAL NOT NULL,
    PRIMARY KEY (target, rating_key)
);
INSERT INTO "pins" VALUES(X'54562F53686F77','',6.5);
INSERT INTO "pins" VALUES(X'48656174','12',7.5);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('entries',9);
COMMIT;
