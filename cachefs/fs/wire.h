/* The kernel's wire format, as far as we read and write it ourselves (include/uapi/linux/fuse.h); written out because
 * the headers of Debian 12 are older than the kernels we run on.
 */
#ifndef CACHEFS_WIRE_H
#define CACHEFS_WIRE_H

#include <stdint.h>

struct in_header {
	uint32_t len;
	uint32_t opcode;
	uint64_t unique;
	uint64_t nodeid;
	uint32_t uid, gid, pid;
	uint32_t padding;
};

struct out_header {
	uint32_t len;
	int32_t error;
	uint64_t unique;
};

struct attr {
	uint64_t ino, size, blocks, atime, mtime, ctime;
	uint32_t atimensec, mtimensec, ctimensec;
	uint32_t mode, nlink, uid, gid, rdev, blksize, flags;
};

struct entry_out {
	uint64_t nodeid, generation, entry_valid, attr_valid;
	uint32_t entry_valid_nsec, attr_valid_nsec;
	struct attr attr;
};

struct attr_out {
	uint64_t attr_valid;
	uint32_t attr_valid_nsec, dummy;
	struct attr attr;
};

struct dirent_out {
	uint64_t ino, off;
	uint32_t namelen, type;
};

struct direntplus_out {
	struct entry_out entry;
	struct dirent_out dirent; /* followed by the name, padded to eight bytes */
};

struct init_in {
	uint32_t major, minor, max_readahead, flags, flags2, unused[11];
};

struct init_out {
	uint32_t major, minor, max_readahead, flags;
	uint16_t max_background, congestion_threshold;
	uint32_t max_write, time_gran;
	uint16_t max_pages, map_alignment;
	uint32_t flags2, max_stack_depth, unused[6];
};

struct getattr_in {
	uint32_t flags, dummy;
	uint64_t fh;
};

struct open_in {
	uint32_t flags, open_flags;
};

struct open_out {
	uint64_t fh;
	uint32_t open_flags;
	int32_t backing_id;
};

struct release_in {
	uint64_t fh;
	uint32_t flags, release_flags;
	uint64_t lock_owner;
};

struct read_in {
	uint64_t fh, offset;
	uint32_t size, read_flags;
	uint64_t lock_owner;
	uint32_t flags, padding;
};

struct forget_in {
	uint64_t nlookup;
};

struct batch_forget_in {
	uint32_t count, dummy;
};

struct forget_one {
	uint64_t nodeid, nlookup;
};

enum {
	OPCODE_LOOKUP = 1,
	OPCODE_FORGET = 2,
	OPCODE_GETATTR = 3,
	OPCODE_OPEN = 14,
	OPCODE_READ = 15,
	OPCODE_RELEASE = 18,
	OPCODE_INIT = 26,
	OPCODE_CREATE = 35,
	OPCODE_BATCH_FORGET = 42,
	OPCODE_READDIRPLUS = 44,
	FLAG_DONT_MASK = 1 << 6,
	FLAG_PARALLEL_DIROPS = 1 << 18,
	FLAG_HANDLE_KILLPRIV = 1 << 19,
	FLAG_NO_OPENDIR = 1 << 24,
	FLAG_INIT_EXT = 1 << 30,
	FLAG2_PASSTHROUGH = 1 << (37 - 32),
	GETATTR_WITH_HANDLE = 1 << 0,
	OPEN_KEEP_CACHE = 1 << 1,
	OPEN_NOFLUSH = 1 << 5,
	OPEN_PASSTHROUGH = 1 << 7,
};

#endif
