/* The channel between libfuse and the kernel: what libfuse and pyfuse3 have no setting for.
 *
 * A shared object that is loaded with RTLD_GLOBAL before pyfuse3 (see channel.py). It defines fuse_session_mount(), so
 * pyfuse3's call is bound to it; it calls libfuse's own, then installs its own read and writev for the session through
 * libfuse's public fuse_session_custom_io() (since 3.13). It reads and edits messages of the kernel's wire format only
 * (wire.h); one session per process, as in pyfuse3.
 *
 * What it does, and what happens without it:
 *   - read never blocks. pyfuse3 reads the device while it holds the GIL; a client that is killed between its poll and
 *     its read would freeze the whole process.
 *   - INIT: FUSE_PARALLEL_DIROPS, or one slow lookup blocks all others in its folder; a larger max_background, or
 *     fourteen readers of a hung source stall everybody's read-ahead; no FUSE_HANDLE_KILLPRIV, so that the kernel itself
 *     drops set-uid bits when somebody else writes; FUSE_DONT_MASK when channel.py wants it, or the kernel takes the
 *     umask off new files below a default ACL as well; no limit to read-ahead but the one that mounting.py sets.
 *   - the node id and number of the latest request, which pyfuse3 does not hand to its statfs and readdir handlers.
 *   - passthrough (Linux 6.9): INIT asks for it when channel.py wants it, and the reply to OPEN or CREATE names the
 *     backing file that Python has put into the handle: bit 62 of fh marks it, the low 32 bits are the backing id.
 *     The kernel then serves that handle's reads and mmaps from the backing file; the handle keeps its number.
 *   - requests that need no Python are answered here: leaves.c has look-ups, attributes and listings, offers.c opens,
 *     closes and reads. Each of them declines what it does not know, and Python is asked.
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
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "channel.h"

enum {
	MAX_BACKGROUND = 512, /* the kernel's own default is 12 */
	CONGESTION_THRESHOLD = 384,
	MAX_READAHEAD = 1 << 30, /* the kernel takes the smaller of this and the mount's read_ahead_kb */
	STACK_DEPTH = 1, /* a backing file on a stacked file system (overlayfs) is refused with ELOOP */
	PENDING = 8192,  /* at most 4096 requests are under way at once (mounting.py) */
	WINDOW = 64,
	LOOK_AGAIN_NS = 30 * 1000,
	STAY_NS = 2 * 1000 * 1000,
};

#define HANDLE_MARK ((uint64_t)1 << 62)

/* For channel.py. */
int cachefs_channel_bound = 0;       /* fuse_session_mount was ours, and the session runs over our read and writev */
uint64_t cachefs_channel_node = 0;   /* node id of the latest request; valid until its handler first awaits */
uint64_t cachefs_channel_unique = 0; /* its number, likewise */
uint32_t cachefs_channel_flags = 0;  /* flags of the INIT reply as sent */

int cachefs_channel_fd = -1;         /* the session's device, for the ioctls on backing files */
int cachefs_channel_wanted = 0;      /* set before the mount: ask for passthrough if the kernel offers it */
int cachefs_channel_masking = 0;     /* set before the mount: Python applies the caller's umask */
int cachefs_channel_passthrough = 0; /* the kernel offered it and was asked for it */
int cachefs_channel_no_opendir = 0;  /* the kernel offered to do without opendir */

static uint64_t init_unique = 0;
static uint32_t init_offered = 0, init_offered2 = 0;

/* Requests whose reply is edited, by unique number (0: free): replies do not say what they answer. Only the event loop's
 * thread reads requests and writes their replies; other threads write notifications only (unique 0). */
static struct pending {
	uint64_t unique;
	void *payload; /* takes the place of an empty reply */
	size_t size;
	bool open;
} pending[PENDING];

static struct pending *find_pending(uint64_t unique, uint64_t wanted)
{
	for (unsigned step = 0; step < WINDOW; step++) {
		struct pending *slot = &pending[((unique >> 1) + step) % PENDING];
		if (slot->unique == wanted)
			return slot;
	}
	return NULL;
}

static void expect(uint64_t unique, bool open, size_t size)
{
	struct pending *slot = find_pending(unique, 0);
	if (slot != NULL)
		*slot = (struct pending){.unique = unique, .open = open, .size = size};
	else
		fprintf(stderr, "cachefs: too many requests under way\n"); /* cannot be: see PENDING */
}

/* How many bytes the reply to this READDIRPLUS may have. */
uint64_t cachefs_reply_room(uint64_t unique)
{
	struct pending *slot = find_pending(unique, unique);
	return slot != NULL ? slot->size : 0;
}

/* The empty reply to this request gets a payload, which is ours from now on. */
bool attach_reply(uint64_t unique, void *payload, size_t size)
{
	struct pending *slot = find_pending(unique, unique);
	if (slot == NULL) {
		free(payload);
		return false;
	}
	slot->payload = payload;
	slot->size = size;
	return true;
}

uint64_t now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* A successful reply; false when whoever asked is gone. */
bool send_reply(int fd, uint64_t unique, const void *payload, size_t size)
{
	struct out_header header = {(uint32_t)(sizeof(header) + size), 0, unique};
	struct iovec parts[2] = {{&header, sizeof(header)}, {(void *)payload, size}};
	return writev(fd, parts, size != 0 ? 2 : 1) >= 0;
}

bool send_error(int fd, uint64_t unique, int error)
{
	struct out_header header = {sizeof(header), -error, unique};
	return write(fd, &header, sizeof(header)) >= 0 || errno == ENOENT; /* whoever asked is gone */
}

static void note_init(const struct in_header *header, size_t size)
{
	const struct init_in *offer = (const void *)(header + 1);
	init_unique = header->unique;
	init_offered = size >= sizeof(*header) + offsetof(struct init_in, flags2) ? offer->flags : 0;
	if (init_offered & FLAG_INIT_EXT && size >= sizeof(*header) + sizeof(*offer))
		init_offered2 = offer->flags2;
	cachefs_channel_no_opendir = (init_offered & FLAG_NO_OPENDIR) != 0;
}

/* Whether the request is dealt with. */
static bool answered(int fd, struct in_header *header, size_t size)
{
	void *body = header + 1;
	size_t room = size - sizeof(*header);
	switch (header->opcode) {
	case OPCODE_LOOKUP:
		return room > 1 && answer_lookup(fd, header, body);
	case OPCODE_GETATTR:
		return room >= sizeof(struct getattr_in) && answer_getattr(fd, header, body);
	case OPCODE_READDIRPLUS:
		return room >= sizeof(struct read_in) && answer_readdir(fd, header, body);
	case OPCODE_FORGET:
		return room >= sizeof(struct forget_in) &&
		       answer_forget(header, ((const struct forget_in *)body)->nlookup);
	case OPCODE_BATCH_FORGET:
		return room >= sizeof(struct batch_forget_in) && answer_batch_forget(header, body);
	case OPCODE_OPEN:
		return room >= sizeof(struct open_in) && answer_open(fd, header, body);
	case OPCODE_RELEASE:
		return room >= sizeof(struct release_in) && answer_release(fd, header, body);
	case OPCODE_READ:
		return room >= sizeof(struct read_in) && answer_read(fd, header, body);
	default:
		return false;
	}
}

static void note(const struct in_header *header, size_t size)
{
	cachefs_channel_node = header->nodeid;
	cachefs_channel_unique = header->unique;
	if (header->opcode == OPCODE_INIT)
		note_init(header, size);
	else if (header->opcode == OPCODE_OPEN || header->opcode == OPCODE_CREATE)
		expect(header->unique, true, 0);
	else if (header->opcode == OPCODE_READDIRPLUS && size >= sizeof(*header) + sizeof(struct read_in))
		expect(header->unique, false, ((const struct read_in *)(header + 1))->size);
}

/* Another request, if it comes very soon: whoever was answered often asks again at once, and to be woken up again takes
 * longer than to look a few times. */
static ssize_t read_again(int fd, void *buffer, size_t size)
{
	ssize_t done = read(fd, buffer, size);
	if (done >= 0 || errno != EAGAIN)
		return done;
	uint64_t until = now_ns() + LOOK_AGAIN_NS;
	do {
		done = read(fd, buffer, size);
	} while (done < 0 && errno == EAGAIN && now_ns() < until);
	return done;
}

/* Requests until one is for Python; the event loop must get its turn in between. */
static ssize_t channel_read(int fd, void *buffer, size_t size, void *userdata)
{
	(void)userdata;
	struct in_header *header = buffer;
	ssize_t done = read(fd, buffer, size);
	uint64_t until = 0;
	while (done >= (ssize_t)sizeof(*header)) {
		if (!answered(fd, header, (size_t)done)) {
			note(header, (size_t)done);
			return done;
		}
		uint64_t now = now_ns();
		until = until != 0 ? until : now + STAY_NS;
		if (now >= until) {
			errno = EINTR;
			return -1;
		}
		done = read_again(fd, buffer, size);
	}
	if (done < 0 && errno == EAGAIN)
		errno = EINTR; /* the one error that pyfuse3 takes for "nothing there, wait again" */
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
	} else {
		edit_open(&reply);
	}
	memcpy(payload + size - sizeof(reply), &reply, sizeof(reply));
	struct iovec edited[2] = {parts[0], {.iov_base = payload, .iov_len = size}};
	return writev(fd, edited, 2);
}

static ssize_t write_payload(int fd, struct iovec *parts, int count, struct pending *found)
{
	const struct out_header *header = parts[0].iov_base;
	struct out_header longer = {header->len + (uint32_t)found->size, 0, header->unique};
	struct iovec edited[2] = {{&longer, sizeof(longer)}, {found->payload, found->size}};
	bool fits = header->error == 0 && count == 1;
	ssize_t done = fits ? writev(fd, edited, found->size != 0 ? 2 : 1) : writev(fd, parts, count);
	free(found->payload);
	return done < 0 || !fits ? done : (ssize_t)sizeof(*header);
}

static ssize_t channel_writev(int fd, struct iovec *parts, int count, void *userdata)
{
	(void)userdata;
	const struct out_header *header = parts[0].iov_base;
	struct pending *slot = header->unique != 0 ? find_pending(header->unique, header->unique) : NULL;
	if (slot != NULL) {
		struct pending found = *slot;
		slot->unique = 0;
		if (found.open && header->error == 0 && count == 2)
			return write_open(fd, parts);
		if (found.payload != NULL)
			return write_payload(fd, parts, count, &found);
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
