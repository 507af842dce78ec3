// Stands between a program and its files (LD_PRELOAD). It touches only files below FAULTS_DIR, and there does two things (the
// start of a program is concerned too, wherever that is, under the last part of its path):
//
//  - makes operations fail, slow, or stop midway, as long as the file FAULTS_CONTROL says so. That file is mapped into
//    every process that has the shim; the test writes to it while they run. `struct control` is its layout.
//  - appends what was done to the files to FAULTS_LOG, in the order in which it was done. `struct record` is the layout.
//
// Always: a file is known by the name behind its descriptor, so that it does not matter who opened it and when. What is
// recorded was done, and a sync covers all that was recorded before it: one lock spans both.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <pthread.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, WRITE = 2, TRUNCATE = 4, SYNC = 8, REMOVE = 16, SPAWN = 32 };

struct control {
    _Atomic uint32_t operations; // which ones are concerned; 0: none
    int32_t error;               // errno that they fail with; 0: they are only late
    uint32_t let_through;        // so many go well first
    uint32_t times;              // and then so many fail
    uint32_t kept_bytes;         // of a write that fails, so many bytes are written all the same
    uint32_t delay_ms;
    _Atomic uint32_t seen;       // how many were concerned so far
    _Atomic uint32_t hit;        // and how many failed
    char files[64];              // a pattern for the name below FAULTS_DIR
};

// The last one is written by the test, between those of the shim: what a client had been told by then.
enum kind { WROTE = 1, TRUNCATED, SYNCED, SYNC_FAILED, CREATED, REMOVED, NOTED };

struct record {
    uint32_t kind;
    uint32_t name_bytes;
    uint64_t offset; // or the new length
    uint64_t data_bytes;
};

static char dir[PATH_MAX];
static size_t dir_bytes;
static struct control *control;
static int log_fd = -1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static ssize_t (*real_pwrite)(int, const void *, size_t, off64_t);
static ssize_t (*real_write)(int, const void *, size_t);
static int (*real_open)(const char *, int, ...);
static int (*real_openat)(int, const char *, int, ...);
static int (*real_ftruncate)(int, off64_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_unlinkat)(int, const char *, int);
static int (*real_posix_spawnp)(pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *,
                                char *const[], char *const[]);

__attribute__((constructor)) static void begin(void) {
    real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
    real_write = dlsym(RTLD_NEXT, "write");
    real_open = dlsym(RTLD_NEXT, "open64");
    real_openat = dlsym(RTLD_NEXT, "openat64");
    real_ftruncate = dlsym(RTLD_NEXT, "ftruncate64");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_unlinkat = dlsym(RTLD_NEXT, "unlinkat");
    real_posix_spawnp = dlsym(RTLD_NEXT, "posix_spawnp");
    const char *below = getenv("FAULTS_DIR"), *how = getenv("FAULTS_CONTROL"), *log = getenv("FAULTS_LOG");
    if (!below || strlen(below) >= sizeof dir) return;
    if (how) {
        int fd = real_open(how, O_RDWR | O_CLOEXEC);
        void *mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (fd < 0 || mapped == MAP_FAILED) abort();
        control = mapped;
        close(fd);
    }
    if (log && (log_fd = real_open(log, O_WRONLY | O_APPEND | O_CLOEXEC)) < 0) abort();
    strcpy(dir, below);
    dir_bytes = strlen(dir);
}

// The name below our directory, "" for the directory itself; NULL for what does not concern us.
static const char *below(const char *path) {
    if (dir_bytes == 0 || strncmp(path, dir, dir_bytes) != 0) return NULL;
    if (path[dir_bytes] == '\0') return "";
    return path[dir_bytes] == '/' ? path + dir_bytes + 1 : NULL;
}

static const char *name_of(int fd, char path[PATH_MAX]) {
    char link[40];
    if (dir_bytes == 0) return NULL;
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t bytes = readlink(link, path, PATH_MAX - 1);
    errno = saved;
    if (bytes < 0) return NULL;
    path[bytes] = '\0';
    return below(path);
}

// The error that this operation is to fail with; 0: none.
static int fault(uint32_t operation, const char *name) {
    if (!control || !(atomic_load(&control->operations) & operation)) return 0;
    if (fnmatch(control->files, name, 0) != 0) return 0;
    if (control->delay_ms) usleep(control->delay_ms * 1000);
    uint32_t before = atomic_fetch_add(&control->seen, 1);
    if (before < control->let_through || before - control->let_through >= control->times) return 0;
    atomic_fetch_add(&control->hit, 1);
    return control->error;
}

static void record(enum kind kind, const char *name, uint64_t offset, const void *data, size_t bytes) {
    if (log_fd < 0) return;
    struct record head = {kind, strlen(name), offset, bytes};
    struct iovec parts[] = {{&head, sizeof head}, {(void *)name, head.name_bytes}, {(void *)data, bytes}};
    ssize_t whole = sizeof head + head.name_bytes + bytes;
    // Half a record would be evidence of nothing.
    if (writev(log_fd, parts, 3) != whole) abort();
}

static ssize_t faulty_write(int fd, const char *name, const void *data, size_t bytes, off64_t at, int sequential) {
    pthread_mutex_lock(&lock);
    int error = fault(WRITE, name);
    size_t wanted = bytes;
    if (error) wanted = control->kept_bytes < bytes ? control->kept_bytes : bytes;
    ssize_t done = wanted == 0 ? 0 : sequential ? real_write(fd, data, wanted) : real_pwrite(fd, data, wanted, at);
    int saved = errno;
    if (done > 0) record(WROTE, name, at, data, done);
    pthread_mutex_unlock(&lock);
    errno = error ? error : saved;
    return error ? -1 : done;
}

ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t at) {
    char path[PATH_MAX];
    const char *name = name_of(fd, path);
    return name ? faulty_write(fd, name, data, bytes, at, 0) : real_pwrite(fd, data, bytes, at);
}

ssize_t pwrite(int fd, const void *data, size_t bytes, off_t at) { return pwrite64(fd, data, bytes, at); }

ssize_t write(int fd, const void *data, size_t bytes) {
    char path[PATH_MAX];
    const char *name = name_of(fd, path);
    return name ? faulty_write(fd, name, data, bytes, lseek64(fd, 0, SEEK_CUR), 1) : real_write(fd, data, bytes);
}

int ftruncate64(int fd, off64_t bytes) {
    char path[PATH_MAX];
    const char *name = name_of(fd, path);
    if (!name) return real_ftruncate(fd, bytes);
    pthread_mutex_lock(&lock);
    int error = fault(TRUNCATE, name), done = -1;
    if (error) errno = error;
    else if ((done = real_ftruncate(fd, bytes)) == 0) record(TRUNCATED, name, bytes, NULL, 0);
    pthread_mutex_unlock(&lock);
    return done;
}

int ftruncate(int fd, off_t bytes) { return ftruncate64(fd, bytes); }

static int faulty_sync(int fd, int (*real)(int)) {
    char path[PATH_MAX];
    const char *name = name_of(fd, path);
    if (!name) return real(fd);
    pthread_mutex_lock(&lock);
    int error = fault(SYNC, name), done = error ? -1 : real(fd);
    int saved = error ? error : errno;
    record(done == 0 ? SYNCED : SYNC_FAILED, name, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    errno = saved;
    return done;
}

int fsync(int fd) { return faulty_sync(fd, real_fsync); }

int fdatasync(int fd) { return faulty_sync(fd, real_fdatasync); }

static int faulty_open(int at, const char *path, int flags, mode_t mode) {
    const char *name = below(path);
    if (!name) return real_openat(at, path, flags, mode);
    pthread_mutex_lock(&lock);
    int error = (flags & O_ACCMODE) == O_RDONLY ? 0 : fault(OPEN, name), fd = -1;
    if (error) {
        errno = error;
    } else {
        int is_new = (flags & O_CREAT) && access(path, F_OK) != 0;
        fd = real_openat(at, path, flags, mode);
        if (fd >= 0 && is_new) record(CREATED, name, 0, NULL, 0);
        else if (fd >= 0 && (flags & O_TRUNC)) record(TRUNCATED, name, 0, NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

#define MODE(flags, last)                                          \
    mode_t mode = 0;                                               \
    if ((flags) & (O_CREAT | __O_TMPFILE)) {                       \
        va_list more;                                              \
        va_start(more, last);                                      \
        mode = va_arg(more, mode_t);                               \
        va_end(more);                                              \
    }

int open64(const char *path, int flags, ...) { MODE(flags, flags) return faulty_open(AT_FDCWD, path, flags, mode); }

int open(const char *path, int flags, ...) { MODE(flags, flags) return faulty_open(AT_FDCWD, path, flags, mode); }

int openat64(int at, const char *path, int flags, ...) { MODE(flags, flags) return faulty_open(at, path, flags, mode); }

int openat(int at, const char *path, int flags, ...) { MODE(flags, flags) return faulty_open(at, path, flags, mode); }

int unlinkat(int at, const char *path, int flags) {
    const char *name = below(path);
    if (!name) return real_unlinkat(at, path, flags);
    pthread_mutex_lock(&lock);
    int error = fault(REMOVE, name), done = -1;
    if (error) errno = error;
    else if ((done = real_unlinkat(at, path, flags)) == 0) record(REMOVED, name, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return done;
}

// Rust starts programs by this, unless it has to do more in between than it can say here.
int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *how,
                 char *const arguments[], char *const environment[]) {
    const char *slash = strrchr(file, '/');
    int error = fault(SPAWN, slash ? slash + 1 : file);
    return error ? error : real_posix_spawnp(pid, file, actions, how, arguments, environment);
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
