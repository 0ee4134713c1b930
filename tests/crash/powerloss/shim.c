/* Preloaded into the recorded process: every libc call that changes something below CRASH_ROOT is written to
 * CRASH_RECORD, in the order in which the calls took place and with their data. One call at a time.
 *
 * A record: struct head, then two texts and the data. Names are absolute and free of links. Files are told apart by
 * their inode number; a number that is created anew is another file. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { MARK, CREATE, MKDIR, WRITE, TRUNCATE, SYNC, SYNC_FOLDER, RENAME, UNLINK, RMDIR, XATTR, TIMES, UNKNOWN };

struct head {
    uint32_t kind, length1, length2, length3;
    uint64_t inode;
    int64_t number;
};

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static int record = -1;
static char root[PATH_MAX];
static size_t root_length;

__attribute__((constructor)) static void begin(void) {
    const char *name = getenv("CRASH_RECORD"), *top = getenv("CRASH_ROOT");
    if (!name || !top)
        return;
    snprintf(root, sizeof root, "%s", top);
    root_length = strlen(root);
    int low = syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    record = fcntl(low, F_DUPFD_CLOEXEC, 900);
    syscall(SYS_close, low);
}

static void put(const void *data, size_t length) {
    for (const char *at = data; length;) {
        long done = syscall(SYS_write, record, at, length);
        if (done <= 0)
            abort();
        at += done, length -= done;
    }
}

static void note(enum kind kind, uint64_t inode, int64_t number, const char *one, const char *other, const void *data,
                 size_t length) {
    struct head head = {kind, one ? strlen(one) : 0, other ? strlen(other) : 0, length, inode, number};
    put(&head, sizeof head);
    put(one, head.length1);
    put(other, head.length2);
    put(data, length);
}

static int below(const char *path) {
    return !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

/* Whether it never had a name (O_TMPFILE): what is in it is not there after a crash. */
static int never_named(const char *path) {
    static const char end[] = " (deleted)";
    const char *last = strrchr(path, '/');
    size_t length = strlen(path);
    return last && last[1] == '#' && length > sizeof end && !strcmp(path + length - sizeof end + 1, end);
}

/* The absolute name of what a descriptor leads to; whether it is ours. */
static int named(int number, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", number);
    long length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return below(path) && !never_named(path);
}

/* The absolute name of a last part in a folder, whether or not it exists; whether it is ours. */
static int placed(int folder, const char *path, char *full) {
    char above[PATH_MAX];
    const char *slash = strrchr(path, '/');
    snprintf(above, sizeof above, "%.*s", slash ? (int)(slash - path) : 1, slash ? path : ".");
    int number = syscall(SYS_openat, folder, above[0] ? above : "/", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    if (number < 0)
        return 0;
    named(number, full);
    syscall(SYS_close, number);
    strncat(full, "/", PATH_MAX - strlen(full) - 1);
    strncat(full, slash ? slash + 1 : path, PATH_MAX - strlen(full) - 1);
    return below(full);
}

static uint64_t inode_of(int number, int *is_folder) {
    struct stat info;
    if (fstat(number, &info))
        return 0;
    if (is_folder)
        *is_folder = S_ISDIR(info.st_mode);
    return info.st_ino;
}

void crash_mark(const char *text) {
    if (record < 0)
        return;
    pthread_mutex_lock(&turn);
    note(MARK, 0, 0, text, NULL, NULL, 0);
    pthread_mutex_unlock(&turn);
}

/* The process is killed where it would make this folder's names durable for the so-manieth time. */
static char fatal[PATH_MAX];
static int lives;
void crash_kill_at(const char *path, int times) {
    snprintf(fatal, sizeof fatal, "%s", path);
    lives = times;
}

static int synced(int number) {
    char path[PATH_MAX];
    if (fatal[0] && named(number, path) && !strcmp(path, fatal) && !--lives)
        syscall(SYS_exit_group, 9);
    return syscall(SYS_fsync, number);
}

static int opened(int folder, const char *path, int flags, mode_t mode) {
    char full[PATH_MAX];
    struct stat before;
    if (record < 0 || !(flags & (O_CREAT | O_TRUNC)) || (flags & O_TMPFILE) == O_TMPFILE)
        return syscall(SYS_openat, folder, path, flags, mode);
    pthread_mutex_lock(&turn);
    int existed = !fstatat(folder, path, &before, AT_SYMLINK_NOFOLLOW);
    int number = syscall(SYS_openat, folder, path, flags, mode);
    int error = errno;
    if (number >= 0 && named(number, full)) {
        if (!existed)
            note(CREATE, inode_of(number, NULL), mode, full, NULL, NULL, 0);
        else if (flags & O_TRUNC)
            note(TRUNCATE, inode_of(number, NULL), 0, NULL, NULL, NULL, 0);
    }
    pthread_mutex_unlock(&turn);
    errno = error;
    return number;
}

#define OPEN(name, parameters, folder) \
    int name parameters { \
        mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { \
            va_list rest; \
            va_start(rest, flags); \
            mode = va_arg(rest, mode_t); \
            va_end(rest); \
        } \
        return opened(folder, path, flags, mode); \
    }
OPEN(open, (const char *path, int flags, ...), AT_FDCWD)
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD)
OPEN(openat, (int folder, const char *path, int flags, ...), folder)
OPEN(openat64, (int folder, const char *path, int flags, ...), folder)

/* A call on a descriptor: the call, and what is noted when it has worked. */
#define ON_FILE(number, call, noted) \
    if (record < 0) \
        return call; \
    char full[PATH_MAX]; \
    pthread_mutex_lock(&turn); \
    __typeof__(call) result = call; \
    int error = errno; \
    if (result >= 0 && named(number, full)) { \
        int is_folder = 0; \
        uint64_t inode = inode_of(number, &is_folder); \
        (void)is_folder; \
        noted; \
    } \
    pthread_mutex_unlock(&turn); \
    errno = error; \
    return result

ssize_t write(int number, const void *data, size_t length) {
    off_t at = record < 0 ? 0 : lseek(number, 0, SEEK_CUR);
    ON_FILE(number, (ssize_t)syscall(SYS_write, number, data, length),
            note(WRITE, inode, at, NULL, NULL, data, result));
}

static ssize_t pwritten(int number, const void *data, size_t length, off_t at) {
    ON_FILE(number, (ssize_t)syscall(SYS_pwrite64, number, data, length, at),
            note(WRITE, inode, at, NULL, NULL, data, result));
}
ssize_t pwrite(int number, const void *data, size_t length, off_t at) { return pwritten(number, data, length, at); }
ssize_t pwrite64(int number, const void *data, size_t length, off_t at) { return pwritten(number, data, length, at); }

static int cut(int number, off_t size) {
    ON_FILE(number, (int)syscall(SYS_ftruncate, number, size), note(TRUNCATE, inode, size, NULL, NULL, NULL, 0));
}
int ftruncate(int number, off_t size) { return cut(number, size); }
int ftruncate64(int number, off_t size) { return cut(number, size); }

int fsync(int number) {
    ON_FILE(number, synced(number),
            note(is_folder ? SYNC_FOLDER : SYNC, inode, 0, full, NULL, NULL, 0));
}
int fdatasync(int number) {
    ON_FILE(number, (int)syscall(SYS_fdatasync, number), note(is_folder ? SYNC_FOLDER : SYNC, inode, 1, full, NULL, NULL, 0));
}

int fsetxattr(int number, const char *name, const void *value, size_t length, int flags) {
    ON_FILE(number, (int)syscall(SYS_fsetxattr, number, name, value, length, flags),
            note(XATTR, inode, 0, name, NULL, value, length));
}
int fremovexattr(int number, const char *name) {
    ON_FILE(number, (int)syscall(SYS_fremovexattr, number, name), note(XATTR, inode, 1, name, NULL, NULL, 0));
}

int futimens(int number, const struct timespec times[2]) {
    ON_FILE(number, (int)syscall(SYS_utimensat, number, NULL, times, 0),
            note(TIMES, inode, times ? times[1].tv_sec * 1000000000LL + times[1].tv_nsec : 0, NULL, NULL, NULL, 0));
}

/* A call on one name. */
#define ON_NAME(folder, path, call, noted) \
    if (record < 0) \
        return call; \
    char full[PATH_MAX]; \
    pthread_mutex_lock(&turn); \
    int ours = placed(folder, path, full); \
    int result = call; \
    int error = errno; \
    if (!result && ours) \
        noted; \
    pthread_mutex_unlock(&turn); \
    errno = error; \
    return result

static int made(int folder, const char *path, mode_t mode) {
    ON_NAME(folder, path, (int)syscall(SYS_mkdirat, folder, path, mode), note(MKDIR, 0, 0, full, NULL, NULL, 0));
}
int mkdir(const char *path, mode_t mode) { return made(AT_FDCWD, path, mode); }
int mkdirat(int folder, const char *path, mode_t mode) { return made(folder, path, mode); }

static int removed(int folder, const char *path, int flags) {
    ON_NAME(folder, path, (int)syscall(SYS_unlinkat, folder, path, flags),
            note(flags & AT_REMOVEDIR ? RMDIR : UNLINK, 0, 0, full, NULL, NULL, 0));
}
int unlink(const char *path) { return removed(AT_FDCWD, path, 0); }
int unlinkat(int folder, const char *path, int flags) { return removed(folder, path, flags); }
int rmdir(const char *path) { return removed(AT_FDCWD, path, AT_REMOVEDIR); }

static int renamed(int old_folder, const char *old, int new_folder, const char *new, unsigned flags) {
    char target[PATH_MAX] = "";
    if (record >= 0)
        placed(new_folder, new, target);
    ON_NAME(old_folder, old, (int)syscall(SYS_renameat2, old_folder, old, new_folder, new, flags),
            note(flags & ~RENAME_NOREPLACE ? UNKNOWN : RENAME, 0, 0, full, target, NULL, 0));
}
int rename(const char *old, const char *new) { return renamed(AT_FDCWD, old, AT_FDCWD, new, 0); }
int renameat(int old_folder, const char *old, int new_folder, const char *new) {
    return renamed(old_folder, old, new_folder, new, 0);
}
int renameat2(int old_folder, const char *old, int new_folder, const char *new, unsigned flags) {
    return renamed(old_folder, old, new_folder, new, flags);
}

/* What nobody does there today; a recording with one of these is refused. */
static int unknown(const char *what, int number) {
    char full[PATH_MAX];
    if (record >= 0 && named(number, full)) {
        pthread_mutex_lock(&turn);
        note(UNKNOWN, 0, 0, full, what, NULL, 0);
        pthread_mutex_unlock(&turn);
    }
    return 0;
}
ssize_t writev(int number, const struct iovec *parts, int count) {
    unknown("writev", number);
    return syscall(SYS_writev, number, parts, count);
}
int fallocate(int number, int mode, off_t at, off_t length) {
    unknown("fallocate", number);
    return syscall(SYS_fallocate, number, mode, at, length);
}
ssize_t copy_file_range(int from, off_t *from_at, int to, off_t *to_at, size_t length, unsigned flags) {
    unknown("copy_file_range", to);
    return syscall(SYS_copy_file_range, from, from_at, to, to_at, length, flags);
}

/* The same, of calls that give a file a further name. */
#define UNKNOWN_NAME(what, folder, path, call) \
    ON_NAME(folder, path, call, note(UNKNOWN, 0, 0, full, what, NULL, 0))

int linkat(int old_folder, const char *old, int new_folder, const char *new, int flags) {
    UNKNOWN_NAME("linkat", new_folder, new, (int)syscall(SYS_linkat, old_folder, old, new_folder, new, flags));
}
int link(const char *old, const char *new) { return linkat(AT_FDCWD, old, AT_FDCWD, new, 0); }
int symlinkat(const char *target, int folder, const char *path) {
    UNKNOWN_NAME("symlinkat", folder, path, (int)syscall(SYS_symlinkat, target, folder, path));
}
int symlink(const char *target, const char *path) { return symlinkat(target, AT_FDCWD, path); }

/* The same, of calls that change the file that a path leads to, by links, too. */
static void unknown_at(const char *what, int folder, const char *path) {
    int number = record < 0 ? -1 : syscall(SYS_openat, folder, path, O_PATH | O_CLOEXEC, 0);
    if (number < 0)
        return;
    unknown(what, number);
    syscall(SYS_close, number);
}
int truncate(const char *path, off_t size) {
    unknown_at("truncate", AT_FDCWD, path);
    return syscall(SYS_truncate, path, size);
}
int truncate64(const char *path, off_t size) { return truncate(path, size); }
int utimensat(int folder, const char *path, const struct timespec times[2], int flags) {
    struct stat found; /* what a folder's times are after a power cut is all the same */
    if (fstatat(folder, path, &found, flags) || !S_ISDIR(found.st_mode))
        unknown_at("utimensat", folder, path);
    return syscall(SYS_utimensat, folder, path, times, flags);
}
int setxattr(const char *path, const char *name, const void *value, size_t length, int flags) {
    unknown_at("setxattr", AT_FDCWD, path);
    return syscall(SYS_setxattr, path, name, value, length, flags);
}
int removexattr(const char *path, const char *name) {
    unknown_at("removexattr", AT_FDCWD, path);
    return syscall(SYS_removexattr, path, name);
}
