/* Preloaded into cachefs, makes the kernel an older one: what it offers on /dev/fuse, and what uname(2) says.
 * OLDER_MINOR and OLDER_FLAGS: of FUSE_INIT (include/uapi/linux/fuse.h); OLDER_RELEASE: such as 6.8.0.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <unistd.h>

enum { OPENDIR = 27, INIT = 26, SHORT_INIT = 16, LONG_SINCE = 36, NO_OPENDIR = 1 << 24 };

struct request {
	uint32_t len, opcode;
	uint64_t unique, node;
	uint32_t uid, gid, pid, padding;
	uint32_t major, minor, readahead, flags, flags2; /* of INIT */
};

struct reply {
	uint32_t len;
	int32_t error;
	uint64_t unique;
};

static uint64_t known, opendir;

static ssize_t offered(struct request *request, ssize_t done)
{
	known = strtoull(getenv("OLDER_FLAGS"), NULL, 0);
	request->minor = (uint32_t)atoi(getenv("OLDER_MINOR"));
	request->flags &= (uint32_t)known;
	request->flags2 &= (uint32_t)(known >> 32);
	if (request->minor < LONG_SINCE)
		done = request->len = offsetof(struct request, major) + SHORT_INIT;
	return done;
}

ssize_t read(int fd, void *buffer, size_t size)
{
	ssize_t (*original)(int, void *, size_t) = dlsym(RTLD_NEXT, "read");
	struct request *request = buffer;
	struct stat found;
	ssize_t done = original(fd, buffer, size);
	if (done < (ssize_t)offsetof(struct request, major) || request->len != done || fstat(fd, &found) ||
	    found.st_rdev != makedev(10, 229))
		return done;
	if (request->opcode == OPENDIR && !(known & NO_OPENDIR))
		opendir = request->unique;
	return request->opcode == INIT ? offered(request, done) : done;
}

/* Before 5.1, ENOSYS was an error like any other. */
ssize_t writev(int fd, const struct iovec *parts, int count)
{
	ssize_t (*original)(int, const struct iovec *, int) = dlsym(RTLD_NEXT, "writev");
	struct reply *reply = parts[0].iov_base;
	if (opendir && parts[0].iov_len == sizeof(*reply) && reply->unique == opendir && reply->error == -ENOSYS)
		reply->error = -EIO;
	return original(fd, parts, count);
}

int uname(struct utsname *name)
{
	int (*original)(struct utsname *) = dlsym(RTLD_NEXT, "uname");
	int result = original(name);
	strcpy(name->release, getenv("OLDER_RELEASE"));
	return result;
}
