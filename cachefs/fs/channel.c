/* The channel between libfuse and the kernel: what libfuse and pyfuse3 have no setting for.
 *
 * A shared object that is loaded with RTLD_GLOBAL before pyfuse3 (see channel.py). It defines fuse_session_mount(), so
 * pyfuse3's call is bound to it; it calls libfuse's own, then installs its own read and writev for the session through
 * libfuse's public fuse_session_custom_io() (since 3.13). No Python runs in either. It reads and edits messages of the
 * kernel's wire format only (include/uapi/linux/fuse.h); one session per process, as in pyfuse3.
 *
 * What it does, and what happens without it:
 *   - read never blocks. pyfuse3 reads the device while it holds the GIL; a client that is killed between its poll and
 *     its read would freeze the whole process.
 *   - INIT: FUSE_PARALLEL_DIROPS, or one slow lookup blocks all others in its folder; a larger max_background, or
 *     fourteen readers of a hung source stall everybody's read-ahead; no FUSE_HANDLE_KILLPRIV, so that the kernel itself
 *     drops set-uid bits when somebody else writes; FUSE_DONT_MASK when channel.py wants it, or the kernel takes the
 *     umask off new files below a default ACL as well; no limit to read-ahead but the one that mounting.py sets.
 *   - the node id of the latest request, which pyfuse3 does not hand to its statfs handler.
 *   - passthrough (Linux 6.9): INIT asks for it when channel.py wants it, and the reply to OPEN or CREATE names the
 *     backing file that Python has put into the handle: bit 62 of fh marks it, the low 32 bits are the backing id.
 *     The kernel then serves that handle's reads and mmaps from the backing file; the handle keeps its number.
 *   - folders whose changes are watched: bit 61 of fh in the reply to OPENDIR lets the kernel keep the listing, bit 60
 *     says that the one it has is still right.
 */

#define _GNU_SOURCE
#define FUSE_USE_VERSION 312

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

/* linux/fuse.h; written out because the headers of Debian 12 are older than the kernels we run on. */
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

struct open_out {
	uint64_t fh;
	uint32_t open_flags;
	int32_t backing_id;
};

enum {
	OPCODE_OPEN = 14,
	OPCODE_INIT = 26,
	OPCODE_OPENDIR = 27,
	OPCODE_CREATE = 35,
	FLAG_DONT_MASK = 1 << 6,
	FLAG_PARALLEL_DIROPS = 1 << 18,
	FLAG_HANDLE_KILLPRIV = 1 << 19,
	FLAG_INIT_EXT = 1 << 30,
	FLAG2_PASSTHROUGH = 1 << (37 - 32),
	OPEN_KEEP_CACHE = 1 << 1,
	OPEN_CACHE_DIR = 1 << 3,
	OPEN_PASSTHROUGH = 1 << 7,
	MAX_BACKGROUND = 512, /* the kernel's own default is 12 */
	CONGESTION_THRESHOLD = 384,
	MAX_READAHEAD = 1 << 30, /* the kernel takes the smaller of this and the mount's read_ahead_kb */
	STACK_DEPTH = 1, /* a backing file on a stacked file system (overlayfs) is refused with ELOOP */
	OPENS = 8192,    /* at most 4096 requests are under way at once (mounting.py) */
	WINDOW = 64,
};

#define HANDLE_MARK ((uint64_t)1 << 62)
#define CACHE_FOLDER_MARK ((uint64_t)1 << 61)
#define KEEP_FOLDER_MARK ((uint64_t)1 << 60)

/* For channel.py. */
int cachefs_channel_bound = 0;       /* fuse_session_mount was ours, and the session runs over our read and writev */
uint64_t cachefs_channel_node = 0;   /* node id of the latest request; valid until its handler first awaits */
uint32_t cachefs_channel_flags = 0;  /* flags of the INIT reply as sent */

int cachefs_channel_fd = -1;         /* the session's device, for the ioctls on backing files */
int cachefs_channel_wanted = 0;      /* set before the mount: ask for passthrough if the kernel offers it */
int cachefs_channel_masking = 0;     /* set before the mount: Python applies the caller's umask */
int cachefs_channel_passthrough = 0; /* the kernel offered it and was asked for it */

static uint64_t init_unique = 0;
static uint32_t init_offered = 0, init_offered2 = 0;

/* Requests to open that have no reply yet, by unique number (0: free): replies do not say what they answer. Only the
 * event loop's thread reads requests and writes their replies; other threads write notifications only (unique 0). */
static uint64_t opens[OPENS];

static uint64_t *find_open(uint64_t unique, uint64_t wanted)
{
	for (unsigned step = 0; step < WINDOW; step++) {
		uint64_t *slot = &opens[((unique >> 1) + step) % OPENS];
		if (*slot == wanted)
			return slot;
	}
	return NULL;
}

static void note_open(uint64_t unique)
{
	uint64_t *slot = find_open(unique, 0);
	if (slot != NULL)
		*slot = unique;
	else
		fprintf(stderr, "cachefs: too many opens under way\n"); /* cannot be: see OPENS */
}

static ssize_t channel_read(int fd, void *buffer, size_t size, void *userdata)
{
	(void)userdata;
	ssize_t done = read(fd, buffer, size);
	if (done < 0) {
		if (errno == EAGAIN)
			errno = EINTR; /* the one error that pyfuse3 takes for "nothing there, wait again" */
		return done;
	}
	if ((size_t)done < sizeof(struct in_header))
		return done;
	const struct in_header *header = buffer;
	cachefs_channel_node = header->nodeid;
	if (header->opcode == OPCODE_INIT) {
		const struct init_in *offer = (const void *)(header + 1);
		init_unique = header->unique;
		init_offered = (size_t)done >= sizeof(*header) + offsetof(struct init_in, flags2) ? offer->flags : 0;
		if (init_offered & FLAG_INIT_EXT && (size_t)done >= sizeof(*header) + sizeof(*offer))
			init_offered2 = offer->flags2;
	} else if (header->opcode == OPCODE_OPEN || header->opcode == OPCODE_CREATE ||
		   header->opcode == OPCODE_OPENDIR) {
		note_open(header->unique);
	}
	return done;
}

static void edit_init(struct init_out *reply)
{
	if (init_offered & FLAG_PARALLEL_DIROPS)
		reply->flags |= FLAG_PARALLEL_DIROPS;
	if (cachefs_channel_masking && init_offered & FLAG_DONT_MASK)
		reply->flags |= FLAG_DONT_MASK;
	reply->flags &= ~(uint32_t)FLAG_HANDLE_KILLPRIV;
	reply->max_readahead = MAX_READAHEAD;
	reply->max_background = MAX_BACKGROUND;
	reply->congestion_threshold = CONGESTION_THRESHOLD;
	if (cachefs_channel_wanted && init_offered2 & FLAG2_PASSTHROUGH) {
		reply->flags |= FLAG_INIT_EXT;
		reply->flags2 |= FLAG2_PASSTHROUGH;
		reply->max_stack_depth = STACK_DEPTH;
		cachefs_channel_passthrough = 1;
	}
	cachefs_channel_flags = reply->flags;
}

/* A successful reply to OPEN or CREATE ends with struct open_out. */
static ssize_t write_open(int fd, struct iovec *parts)
{
	char payload[512];
	size_t size = parts[1].iov_len;
	if (size < sizeof(struct open_out) || size > sizeof(payload))
		return writev(fd, parts, 2);
	struct open_out reply;
	memcpy(payload, parts[1].iov_base, size);
	memcpy(&reply, payload + size - sizeof(reply), sizeof(reply));
	if (reply.fh & HANDLE_MARK) {
		reply.open_flags = (reply.open_flags & ~(uint32_t)OPEN_KEEP_CACHE) | OPEN_PASSTHROUGH;
		reply.backing_id = (int32_t)(reply.fh & 0xffffffff);
	} else if (reply.fh & CACHE_FOLDER_MARK) {
		reply.open_flags |= OPEN_CACHE_DIR | (reply.fh & KEEP_FOLDER_MARK ? OPEN_KEEP_CACHE : 0);
	}
	memcpy(payload + size - sizeof(reply), &reply, sizeof(reply));
	struct iovec edited[2] = {parts[0], {.iov_base = payload, .iov_len = size}};
	return writev(fd, edited, 2);
}

static ssize_t channel_writev(int fd, struct iovec *parts, int count, void *userdata)
{
	(void)userdata;
	const struct out_header *header = parts[0].iov_base;
	uint64_t *open = header->unique != 0 ? find_open(header->unique, header->unique) : NULL;
	if (open != NULL) {
		*open = 0;
		if (header->error == 0 && count == 2)
			return write_open(fd, parts);
	}
	if (init_unique == 0 || count != 2 || parts[0].iov_len != sizeof(*header) || header->unique != init_unique ||
	    header->error != 0 || parts[1].iov_len != sizeof(struct init_out))
		return writev(fd, parts, count);

	struct init_out reply;
	memcpy(&reply, parts[1].iov_base, sizeof(reply));
	edit_init(&reply);
	init_unique = 0;
	struct iovec edited[2] = {parts[0], {.iov_base = &reply, .iov_len = sizeof(reply)}};
	return writev(fd, edited, 2);
}

static const struct fuse_custom_io channel = {.writev = channel_writev, .read = channel_read};

int fuse_session_mount(struct fuse_session *session, const char *mountpoint)
{
	int (*original)(struct fuse_session *, const char *) =
		(int (*)(struct fuse_session *, const char *))dlsym(RTLD_NEXT, "fuse_session_mount");
	if (original == NULL) {
		fprintf(stderr, "cachefs: libfuse has no fuse_session_mount: %s\n", dlerror());
		return -1;
	}
	int result = original(session, mountpoint);
	if (result != 0)
		return result;
	int fd = fuse_session_fd(session);
	int flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fuse_session_custom_io(session, &channel, fd) != 0)
		return 0; /* mounted all the same, without the channel: channel.py says so */
	if (fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0)
		perror("cachefs: the FUSE device cannot be made non-blocking");
	cachefs_channel_fd = fd;
	cachefs_channel_bound = 1;
	return 0;
}
