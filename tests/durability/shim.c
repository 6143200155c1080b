/* Preloaded into a process: every write step to files below one folder is recorded, and can be made to go wrong.

   A step is a system call that changes what is below the folder, or that makes it durable. Before step `kill_at`
   the process kills itself with SIGKILL (a write is done half before it); from step `fail_at` on writes fail with
   `fail_errno`; from step `clock_at` on the wall clock is `clock_by` seconds off. Only what goes through libc is
   seen: memory-mapped writes are not. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX];
static size_t root_length;
static int log_file = -1;
static long steps, kill_at = -1, fail_at = -1, clock_at = -1, clock_by;
static int fail_errno;

struct head {
    char kind;
    char pad[7];
    uint64_t node;
    int64_t offset;
    uint32_t path, other, data, spare;
};

static void put(const void *bytes, size_t length) {
    const char *at = bytes;
    while (length) {
        long done = syscall(SYS_write, log_file, at, length);
        if (done <= 0) abort();
        at += done;
        length -= (size_t)done;
    }
}

static void note(char kind, uint64_t node, int64_t offset, const char *path, const char *other, const void *data,
                 size_t length) {
    if (log_file < 0) return;
    struct head head = {.kind = kind, .node = node, .offset = offset};
    head.path = (uint32_t)strlen(path);
    head.other = (uint32_t)strlen(other);
    head.data = (uint32_t)length;
    put(&head, sizeof head);
    put(path, head.path);
    put(other, head.other);
    put(data, length);
}

int shim_arm(const char *folder, const char *log, long kill, long fail, int error, long at, long by) {
    strncpy(root, folder, sizeof root - 1);
    root_length = strlen(root);
    steps = 0;
    kill_at = kill, fail_at = fail, fail_errno = error, clock_at = at, clock_by = by;
    log_file = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    return log_file < 0 ? -1 : 0;
}

void shim_disarm(void) { root_length = 0; }

long shim_steps(void) { return steps; }

void shim_mark(const char *text) {
    pthread_mutex_lock(&guard);
    note('M', 0, 0, text, "", "", 0);
    pthread_mutex_unlock(&guard);
}

static int below(const char *path) {
    return root_length && !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

static int path_of(int descriptor, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    long length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
    return length > 0;
}

/* The absolute path of a name; 1 if it is below the folder. */
static int named(int at, const char *name, char *path) {
    if (!root_length) return 0;
    if (name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
    } else {
        char start[PATH_MAX];
        if (at == AT_FDCWD ? syscall(SYS_getcwd, start, sizeof start) < 0 : !path_of(at, start)) return 0;
        if (snprintf(path, PATH_MAX, "%s/%s", start, name) >= PATH_MAX) return 0;
    }
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/') path[--length] = 0;
    return below(path);
}

/* What is open: 1 if it is a file or a folder below the folder. */
static int known(int descriptor, char *path, struct stat *about) {
    if (!root_length || syscall(SYS_fstat, descriptor, about)) return 0;
    if (!S_ISREG(about->st_mode) && !S_ISDIR(about->st_mode)) return 0;
    return path_of(descriptor, path) && below(path);
}

static uint64_t node_of(const char *path) {
    struct stat about;
    return lstat(path, &about) ? 0 : about.st_ino;
}

static void die(void) {
    syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
    for (;;) pause();
}

/* Before a step: 1 if it must fail. What frees room or only says that all is safe succeeds on a full disk. */
static int reached(int takes_room) {
    if (steps == kill_at) die();
    if (fail_at < 0 || steps < fail_at || (fail_errno == ENOSPC && !takes_room)) return 0;
    errno = fail_errno;
    return 1;
}

#define STEP(takes_room, failed)                                                                                      \
    pthread_mutex_lock(&guard);                                                                                       \
    if (reached(takes_room)) {                                                                                        \
        pthread_mutex_unlock(&guard);                                                                                 \
        return failed;                                                                                                \
    }
#define DONE(result, ...)                                                                                             \
    int failure = errno;                                                                                              \
    if ((result) >= 0) {                                                                                              \
        note(__VA_ARGS__);                                                                                            \
        steps++;                                                                                                      \
    }                                                                                                                 \
    errno = failure;                                                                                                  \
    pthread_mutex_unlock(&guard);                                                                                     \
    return result;

static int opened(int at, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    int writes = (flags & O_ACCMODE) != O_RDONLY;
    if ((!writes && !(flags & O_CREAT)) || !named(at, name, path))
        return (int)syscall(SYS_openat, at, name, flags, mode);
    struct stat before;
    int there = !stat(path, &before);
    int creates = !there && (flags & O_CREAT), cuts = there && (flags & O_TRUNC) && before.st_size > 0;
    if (!creates && !cuts) {
        if (fail_errno == EROFS && fail_at >= 0 && steps >= fail_at && writes) {
            errno = EROFS;
            return -1;
        }
        return (int)syscall(SYS_openat, at, name, flags, mode);
    }
    STEP(creates, -1)
    int file = (int)syscall(SYS_openat, at, name, flags, mode);
    struct stat about = {0};
    if (file >= 0) syscall(SYS_fstat, file, &about);
    DONE(file, creates ? 'C' : 'T', about.st_ino, 0, path, "", "", 0)
}

#define MODE                                                                                                          \
    mode_t mode = 0;                                                                                                  \
    if (flags & (O_CREAT | O_TMPFILE)) {                                                                              \
        va_list rest;                                                                                                 \
        va_start(rest, flags);                                                                                        \
        mode = va_arg(rest, mode_t);                                                                                  \
        va_end(rest);                                                                                                 \
    }
int open(const char *name, int flags, ...) { MODE return opened(AT_FDCWD, name, flags, mode); }
int open64(const char *name, int flags, ...) { MODE return opened(AT_FDCWD, name, flags, mode); }
int openat(int at, const char *name, int flags, ...) { MODE return opened(at, name, flags, mode); }
int openat64(int at, const char *name, int flags, ...) { MODE return opened(at, name, flags, mode); }
int creat(const char *name, mode_t mode) { return opened(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode); }

/* Write at a place, or, at -1, where the descriptor is. */
static ssize_t written(int descriptor, const void *data, size_t length, off_t place) {
    char path[PATH_MAX];
    struct stat about;
    if (!length || !known(descriptor, path, &about)) {
        if (place >= 0) return syscall(SYS_pwrite64, descriptor, data, length, place);
        return syscall(SYS_write, descriptor, data, length);
    }
    pthread_mutex_lock(&guard);
    int half = steps == kill_at || (steps == fail_at && fail_errno == ENOSPC && length > 1);
    if (!half && reached(1)) {
        pthread_mutex_unlock(&guard);
        return -1;
    }
    syscall(SYS_fstat, descriptor, &about);
    off_t offset = place >= 0 ? place : syscall(SYS_lseek, descriptor, 0, SEEK_CUR);
    if (place < 0 && syscall(SYS_fcntl, descriptor, F_GETFL) & O_APPEND) offset = about.st_size;
    if (half) length /= 2;
    ssize_t done = place >= 0 ? syscall(SYS_pwrite64, descriptor, data, length, place)
                              : syscall(SYS_write, descriptor, data, length);
    if (steps == kill_at) die();
    DONE(done, 'W', about.st_ino, offset, path, "", data, done > 0 ? (size_t)done : 0)
}

ssize_t write(int descriptor, const void *data, size_t length) { return written(descriptor, data, length, -1); }
ssize_t pwrite(int descriptor, const void *data, size_t length, off_t place) {
    return written(descriptor, data, length, place);
}
ssize_t pwrite64(int descriptor, const void *data, size_t length, off_t place) {
    return written(descriptor, data, length, place);
}

ssize_t writev(int descriptor, const struct iovec *parts, int count) {
    ssize_t total = 0;
    for (int number = 0; number < count; number++) {
        ssize_t done = written(descriptor, parts[number].iov_base, parts[number].iov_len, -1);
        if (done < 0) return total ? total : -1;
        total += done;
        if ((size_t)done < parts[number].iov_len) break;
    }
    return total;
}

static ssize_t copied(int from, off_t *source, int to, off_t *target, size_t length) {
    char buffer[1 << 16];
    ssize_t total = 0;
    while (length) {
        size_t most = length < sizeof buffer ? length : sizeof buffer;
        ssize_t got = source ? syscall(SYS_pread64, from, buffer, most, *source) : syscall(SYS_read, from, buffer, most);
        if (got <= 0) return total ? total : got;
        ssize_t done = written(to, buffer, (size_t)got, target ? *target : -1);
        if (done < 0) return total ? total : -1;
        if (source) *source += done;
        if (target) *target += done;
        total += done;
        length -= (size_t)done;
    }
    return total;
}

ssize_t sendfile(int to, int from, off_t *source, size_t length) {
    char path[PATH_MAX];
    struct stat about;
    if (!known(to, path, &about)) return syscall(SYS_sendfile, to, from, source, length);
    return copied(from, source, to, NULL, length);
}
ssize_t sendfile64(int to, int from, off_t *source, size_t length) { return sendfile(to, from, source, length); }
ssize_t copy_file_range(int from, off_t *source, int to, off_t *target, size_t length, unsigned flags) {
    char path[PATH_MAX];
    struct stat about;
    if (!known(to, path, &about)) return syscall(SYS_copy_file_range, from, source, to, target, length, flags);
    return copied(from, source, to, target, length);
}

static int cut(int descriptor, off_t length) {
    char path[PATH_MAX];
    struct stat about;
    if (!known(descriptor, path, &about)) return (int)syscall(SYS_ftruncate, descriptor, length);
    STEP(length > about.st_size, -1)
    int done = (int)syscall(SYS_ftruncate, descriptor, length);
    DONE(done, 'T', about.st_ino, length, path, "", "", 0)
}
int ftruncate(int descriptor, off_t length) { return cut(descriptor, length); }
int ftruncate64(int descriptor, off_t length) { return cut(descriptor, length); }

static int allocated(int descriptor, int mode, off_t offset, off_t length) {
    char path[PATH_MAX];
    struct stat about;
    if (!known(descriptor, path, &about)) return (int)syscall(SYS_fallocate, descriptor, mode, offset, length);
    STEP(1, -1)
    int done = (int)syscall(SYS_fallocate, descriptor, mode, offset, length);
    off_t end = !mode && offset + length > about.st_size ? offset + length : about.st_size;
    DONE(done, 'T', about.st_ino, end, path, "", "", 0)
}
int fallocate(int descriptor, int mode, off_t offset, off_t length) {
    return allocated(descriptor, mode, offset, length);
}
int fallocate64(int descriptor, int mode, off_t offset, off_t length) {
    return allocated(descriptor, mode, offset, length);
}
int posix_fallocate(int descriptor, off_t offset, off_t length) {
    return allocated(descriptor, 0, offset, length) ? errno : 0;
}
int posix_fallocate64(int descriptor, off_t offset, off_t length) {
    return allocated(descriptor, 0, offset, length) ? errno : 0;
}

static int synced(int descriptor, long call) {
    char path[PATH_MAX];
    struct stat about;
    if (!known(descriptor, path, &about)) return (int)syscall(call, descriptor);
    STEP(0, -1)
    int done = 0; /* nobody cuts the power of this machine: what is on its disk does not matter, time does */
    DONE(done, 'S', about.st_ino, 0, path, "", "", 0)
}
int fsync(int descriptor) { return synced(descriptor, SYS_fsync); }
int fdatasync(int descriptor) { return synced(descriptor, SYS_fdatasync); }

static int renamed(int at, const char *name, int to, const char *other, unsigned flags) {
    char path[PATH_MAX], target[PATH_MAX];
    int ours = named(at, name, path);
    if (!named(to, other, target) && !ours) return (int)syscall(SYS_renameat2, at, name, to, other, flags);
    STEP(0, -1)
    uint64_t node = node_of(path);
    int done = (int)syscall(SYS_renameat2, at, name, to, other, flags);
    DONE(done, 'R', node, 0, path, target, "", 0)
}
int rename(const char *name, const char *other) { return renamed(AT_FDCWD, name, AT_FDCWD, other, 0); }
int renameat(int at, const char *name, int to, const char *other) { return renamed(at, name, to, other, 0); }
int renameat2(int at, const char *name, int to, const char *other, unsigned flags) {
    return renamed(at, name, to, other, flags);
}

static int linked(int at, const char *name, int to, const char *other, int flags) {
    char path[PATH_MAX], target[PATH_MAX];
    named(at, name, path);
    if (!named(to, other, target)) return (int)syscall(SYS_linkat, at, name, to, other, flags);
    STEP(1, -1)
    int done = (int)syscall(SYS_linkat, at, name, to, other, flags);
    DONE(done, 'L', node_of(target), 0, path, target, "", 0)
}
int link(const char *name, const char *other) { return linked(AT_FDCWD, name, AT_FDCWD, other, 0); }
int linkat(int at, const char *name, int to, const char *other, int flags) {
    return linked(at, name, to, other, flags);
}

static int removed(int at, const char *name, int flags) {
    char path[PATH_MAX];
    if (!named(at, name, path)) return (int)syscall(SYS_unlinkat, at, name, flags);
    STEP(0, -1)
    uint64_t node = node_of(path);
    int done = (int)syscall(SYS_unlinkat, at, name, flags);
    DONE(done, 'U', node, 0, path, "", "", 0)
}
int unlink(const char *name) { return removed(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return removed(AT_FDCWD, name, AT_REMOVEDIR); }
int unlinkat(int at, const char *name, int flags) { return removed(at, name, flags); }
int remove(const char *name) {
    int done = unlink(name);
    return done && errno == EISDIR ? rmdir(name) : done;
}

static int folder_made(int at, const char *name, mode_t mode) {
    char path[PATH_MAX];
    if (!named(at, name, path)) return (int)syscall(SYS_mkdirat, at, name, mode);
    STEP(1, -1)
    int done = (int)syscall(SYS_mkdirat, at, name, mode);
    DONE(done, 'D', node_of(path), 0, path, "", "", 0)
}
int mkdir(const char *name, mode_t mode) { return folder_made(AT_FDCWD, name, mode); }
int mkdirat(int at, const char *name, mode_t mode) { return folder_made(at, name, mode); }

int clock_gettime(clockid_t which, struct timespec *now) {
    int done = (int)syscall(SYS_clock_gettime, which, now);
    if (!done && which == CLOCK_REALTIME && clock_at >= 0 && steps >= clock_at) now->tv_sec += clock_by;
    return done;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec precise;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &precise)) return -1;
    now->tv_sec = precise.tv_sec, now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *where) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where) *where = now.tv_sec;
    return now.tv_sec;
}
