/*
 * Does one piece of work on files, over and over, and says how long each pass took.
 *
 * Compiled and run by probe.py for every folder that the benchmark compares: the same program, the same files, the same
 * order, and no Python between the clock and the system calls. Reads only.
 *
 *   probe WORK ROOT [-m MS] [-q AT_LEAST] [-p AT_MOST] [-b BLOCK] [-n COUNT] [-l LIST] [-d PATH]... [--] FILE...
 *
 * Passes are made until they took MS milliseconds in all, AT_LEAST to AT_MOST of them. Before each pass, and outside of the
 * clock, the kernel drops the pages of every -d PATH. FILEs, and the names in the file LIST, are relative to ROOT.
 * Prints the units of one pass (bytes, or operations), then the nanoseconds of each pass. Any error ends it with 1.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MAX_DROPS 64
#define REOPEN_BYTES (1 << 20)

static const char *drops[MAX_DROPS];
static int n_drops, n_files;
static char **files;
static size_t block = 1 << 20;
static long count = 1000;
static char **names;
static long n_names;
static uint64_t random_state;

static void fail(const char *what)
{
    fprintf(stderr, "probe: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int open_file(const char *name)
{
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        fail(name);
    return fd;
}

static char *buffer_of(size_t size)
{
    char *buffer = aligned_alloc(4096, (size + 4095) & ~(size_t)4095);
    if (buffer == NULL)
        fail("memory");
    memset(buffer, 1, size); /* its own page faults are not the file's */
    return buffer;
}

static off_t size_of(const char *name)
{
    struct stat seen;
    if (stat(name, &seen) < 0)
        fail(name);
    return seen.st_size;
}

/* xorshift64: every folder is asked for the same places. */
static uint64_t next_random(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static long read_whole(int fd, char *buffer)
{
    long total = 0;
    ssize_t got;
    while ((got = pread(fd, buffer, block, total)) > 0)
        total += got;
    if (got < 0)
        fail("read");
    return total;
}

static void read_block(int fd, char *buffer, size_t size, off_t at)
{
    if (pread(fd, buffer, size, at) != (ssize_t)size)
        fail("a read was short");
}

/* --- the works: each does one pass with the files open already (fds), and returns its units ------------------------- */

static long sequential(int *fds, char *buffer)
{
    long total = 0;
    for (int i = 0; i < n_files; i++)
        total += read_whole(fds[i], buffer);
    return total;
}

static pthread_barrier_t together;

static void *one_stream(void *fd)
{
    char *own = buffer_of(block);
    pthread_barrier_wait(&together);
    long total = read_whole(*(int *)fd, own);
    free(own);
    return (void *)total;
}

static long streams(int *fds, char *buffer)
{
    pthread_t threads[n_files];
    long total = 0;
    (void)buffer;
    pthread_barrier_init(&together, NULL, n_files);
    for (int i = 0; i < n_files; i++)
        if (pthread_create(&threads[i], NULL, one_stream, &fds[i]))
            fail("thread");
    for (int i = 0; i < n_files; i++) {
        void *got;
        pthread_join(threads[i], &got);
        total += (long)got;
    }
    pthread_barrier_destroy(&together);
    return total;
}

static long at_random(int *fds, char *buffer)
{
    off_t blocks = size_of(files[0]) / (off_t)block;
    for (long i = 0; i < count; i++)
        read_block(fds[i % n_files], buffer, block, (off_t)(next_random() % blocks) * block);
    return count;
}

static long stat_names(int *fds, char *buffer)
{
    struct stat seen;
    (void)fds, (void)buffer;
    for (long i = 0; i < n_names; i++)
        if (lstat(names[i], &seen) < 0)
            fail(names[i]);
    return n_names;
}

static long walk_folder(int parent, const char *name)
{
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *folder = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *entry;
    struct stat seen;
    long entries = 0;
    if (folder == NULL)
        fail(name);
    while ((entry = readdir(folder)) != NULL) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        if (fstatat(fd, entry->d_name, &seen, AT_SYMLINK_NOFOLLOW) < 0)
            fail(entry->d_name);
        entries += 1 + (S_ISDIR(seen.st_mode) ? walk_folder(fd, entry->d_name) : 0);
    }
    closedir(folder);
    return entries;
}

static long walk(int *fds, char *buffer)
{
    (void)fds, (void)buffer;
    return walk_folder(AT_FDCWD, files[0]);
}

static long open_close(int *fds, char *buffer)
{
    (void)fds, (void)buffer;
    for (long i = 0; i < count; i++)
        close(open_file(files[i % n_files]));
    return count;
}

static long open_read_close(int *fds, char *buffer)
{
    (void)fds;
    for (long i = 0; i < count; i++) {
        int fd = open_file(files[i % n_files]);
        read_block(fd, buffer, block, 0);
        close(fd);
    }
    return count;
}

static long seek_by_reopening(int *fds, char *buffer)
{
    off_t places = size_of(files[0]) / REOPEN_BYTES;
    (void)fds;
    for (long i = 0; i < count; i++) {
        off_t at = (off_t)(next_random() % places) * REOPEN_BYTES;
        int fd = open_file(files[i % n_files]);
        for (off_t end = at + REOPEN_BYTES; at < end; at += block)
            read_block(fd, buffer, block, at);
        close(fd);
    }
    return count;
}

static const struct work {
    const char *name;
    long (*pass)(int *fds, char *buffer);
    int on_open_files;
} works[] = {
    {"sequential", sequential, 1}, {"streams", streams, 1},
    {"random", at_random, 1},      {"stat", stat_names, 0},
    {"walk", walk, 0},             {"open-close", open_close, 0},
    {"open-read-close", open_read_close, 0}, {"reopen", seek_by_reopening, 0},
};

/* --- around them ---------------------------------------------------------------------------------------------------- */

static void drop_pages(void)
{
    for (int i = 0; i < n_drops; i++) {
        int fd = open_file(drops[i]);
        int error = posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        close(fd);
        if (error) {
            errno = error;
            fail(drops[i]);
        }
    }
}

static void read_names(const char *list)
{
    FILE *from = fopen(list, "r");
    char *line = NULL;
    size_t room = 0;
    ssize_t length;
    if (from == NULL)
        fail(list);
    while ((length = getline(&line, &room, from)) > 0) {
        line[length - 1] = 0;
        if ((names = realloc(names, (n_names + 1) * sizeof *names)) == NULL)
            fail("memory");
        names[n_names++] = strdup(line);
    }
    fclose(from);
}

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static int64_t one_pass(const struct work *work, int number, char *buffer, long *units)
{
    int fds[n_files + 1];
    drop_pages();
    random_state = 0x9E3779B97F4A7C15ULL + number;
    for (int i = 0; work->on_open_files && i < n_files; i++)
        fds[i] = open_file(files[i]);
    int64_t began = now();
    *units = work->pass(fds, buffer);
    int64_t took = now() - began;
    for (int i = 0; work->on_open_files && i < n_files; i++)
        close(fds[i]);
    return took;
}

int main(int argc, char **argv)
{
    long min_ms = 0, at_least = 1, at_most = 1, units = 0;
    int option;
    if (argc < 3)
        return 2;
    const struct work *work = NULL;
    for (size_t i = 0; i < sizeof works / sizeof *works; i++)
        if (!strcmp(works[i].name, argv[1]))
            work = &works[i];
    const char *root = argv[2];
    argc -= 2, argv += 2;
    while ((option = getopt(argc, argv, "m:q:p:b:n:l:d:")) != -1) {
        switch (option) {
        case 'm': min_ms = atol(optarg); break;
        case 'q': at_least = atol(optarg); break;
        case 'p': at_most = atol(optarg); break;
        case 'b': block = atol(optarg); break;
        case 'n': count = atol(optarg); break;
        case 'l': read_names(optarg); break;
        case 'd': if (n_drops < MAX_DROPS) { drops[n_drops++] = optarg; break; } /* fall through */
        default: return 2;
        }
    }
    files = argv + optind;
    n_files = argc - optind;
    if (work == NULL || chdir(root) < 0)
        fail(work == NULL ? "no such work" : root);
    char *buffer = buffer_of(block);
    int64_t took[at_most], total = 0;
    long done = 0;
    while (done < at_most && (done < at_least || total < min_ms * 1000000LL)) {
        took[done] = one_pass(work, done, buffer, &units);
        total += took[done++];
    }
    printf("%ld", units);
    for (long i = 0; i < done; i++)
        printf(" %lld", (long long)took[i]);
    printf("\n");
    return 0;
}
