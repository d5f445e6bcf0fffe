/* Stands between a program and the C library, and sees every file operation below one folder.
 *
 * It counts them, writes a log of them, and makes one of them fail or the last: a disk error, a
 * full disk, half a write, an interrupted call, or a SIGKILL for the process group. Python, PyTorch
 * and libraries in Rust all reach files through the functions below, so that nothing is left out
 * as it would be if Python's own functions were replaced.
 *
 * Used by LD_PRELOAD. What to do is in a small file that other processes map, too: `struct state`.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define MOST_FILES 4096
#define PATH_BYTES 1024

enum fault { NONE, KILL, IO_ERROR, FULL, SHORT, INTERRUPTED };

struct state {
    int64_t count;   /* events so far */
    int64_t at;      /* the event that fails; 0: none does */
    int64_t fault;   /* enum fault */
    int64_t repeats; /* how many events fail, from that one on */
    int64_t fired;   /* how many did */
    int64_t no_sync; /* whether fsync only counts */
    char prefix[PATH_BYTES];
    char log[PATH_BYTES];  /* empty: none is written */
    char place[256];       /* where the program is, in its own words */
    char last[PATH_BYTES]; /* the event that failed: what it does, and to which path */
};

struct entry { /* of the log: this, then three texts and the bytes that were written */
    int64_t number, offset, length;
    int32_t name, path, other;
    char what[12];
};

static struct state *state;
static int log_file = -1;
static char *paths[MOST_FILES]; /* of open files and folders below the prefix */
static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

/* Begin to watch, as the state in a file says. */
int faults_attach(const char *path) {
    int file = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    if (file < 0) return -1;
    void *there = mmap(NULL, sizeof(struct state), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    syscall(SYS_close, file);
    if (there == MAP_FAILED) return -1;
    state = there;
    if (state->log[0]) {
        int flags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC;
        log_file = (int)syscall(SYS_openat, AT_FDCWD, state->log, flags, 0600);
    }
    return 0;
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("SCHEMABANK_FAULTS");
    if (path && *path && faults_attach(path)) abort();
}

static int below(const char *path) {
    size_t length = strlen(state->prefix);
    return !strncmp(path, state->prefix, length) && (path[length] == '/' || !path[length]);
}

/* The path that is meant, in `into`; whether it lies below the prefix. */
static int resolved(int folder, const char *path, char *into) {
    if (!state || !state->prefix[0] || !path) return 0;
    if (path[0] == '/') {
        snprintf(into, PATH_BYTES, "%s", path);
    } else if (folder == AT_FDCWD) {
        char here[PATH_BYTES / 2];
        if (!getcwd(here, sizeof here) || strlen(path) >= sizeof here) return 0;
        snprintf(into, PATH_BYTES, "%s/%s", here, path);
    } else {
        if (folder < 0 || folder >= MOST_FILES || !paths[folder]) return 0;
        snprintf(into, PATH_BYTES, "%s/%s", paths[folder], path);
    }
    return below(into);
}

static const char *open_path(int file) {
    return state && file >= 0 && file < MOST_FILES ? paths[file] : NULL;
}

static void put(const void *from, size_t length) {
    while (length) {
        ssize_t done = syscall(SYS_write, log_file, from, length);
        if (done <= 0) abort();
        from = (const char *)from + done;
        length -= (size_t)done;
    }
}

static void note(const char *what, const char *path, const char *other, int64_t offset,
                 const void *bytes, int64_t length) {
    if (log_file < 0) return;
    struct entry entry = {state->count, offset, length, (int32_t)strlen(state->place),
                          (int32_t)strlen(path), (int32_t)strlen(other), ""};
    snprintf(entry.what, sizeof entry.what, "%s", what);
    put(&entry, sizeof entry);
    put(state->place, (size_t)entry.name);
    put(path, (size_t)entry.path);
    put(other, (size_t)entry.other);
    if (bytes) put(bytes, (size_t)length);
}

/* Whether such an event can fail so; one that cannot lets the next one that can. */
static int applies(enum fault fault, const char *what) {
    static const char *const full[] = {"create", "write", "mkdir", "rename", "truncate", "fsync"};
    static const char *const slow[] = {"open", "create", "read", "write", "fsync", "truncate", "flock"};
    const char *const *names = fault == FULL ? full : slow;
    size_t count = fault == FULL ? sizeof full / sizeof *full : sizeof slow / sizeof *slow;
    if (fault == KILL) return 1;
    if (fault == IO_ERROR) return strcmp(what, "point");
    if (fault == SHORT) return !strcmp(what, "write");
    for (size_t i = 0; i < count; i++)
        if (!strcmp(names[i], what)) return 1;
    return 0;
}

/* Whether this event fails, and how. */
static enum fault event(const char *what, const char *path) {
    int64_t number = ++state->count;
    enum fault fault = (enum fault)state->fault;
    if (!state->at || number < state->at || state->fired >= state->repeats) return NONE;
    if (!applies(fault, what)) return NONE;
    if (!state->fired++) snprintf(state->last, PATH_BYTES, "%s %s", what, path);
    return fault;
}

static void end_all(void) {
    kill(0, SIGKILL); /* the process group, this process, too */
    for (;;) pause();
}

/* Whether an operation that writes no bytes fails; errno says how. */
static int fails(const char *what, const char *path) {
    switch (event(what, path)) {
    case KILL: end_all(); return 1;
    case IO_ERROR: errno = EIO; return 1;
    case FULL: errno = ENOSPC; return 1;
    case INTERRUPTED: errno = EINTR; return 1;
    default: return 0;
    }
}

/* An event that is no operation on a file, such as a step of a training. */
void faults_point(const char *what) {
    if (!state) return;
    pthread_mutex_lock(&lock);
    if (event("point", what) == KILL) end_all();
    note("point", what, "", 0, NULL, 0);
    pthread_mutex_unlock(&lock);
}

#define GUARDED(known, what, path, call, after) \
    do { \
        if (!(known)) { return call; } \
        pthread_mutex_lock(&lock); \
        int result = -1; \
        if (!fails(what, path)) { \
            result = call; \
            int kept = errno; \
            if (result >= 0) { after; } \
            errno = kept; \
        } \
        pthread_mutex_unlock(&lock); \
        return result; \
    } while (0)

/* Files that were made below the prefix, so that one is known again under another name. */
static struct {
    ino_t number;
    char *path;
} made[MOST_FILES];
static int num_made;

/* A library may rename by a system call of its own, which nobody else sees. Who opens the file next,
 * or waits for its folder, tells. Such a rename is in the log, and cannot be made to fail. */
static void seen(ino_t number, const char *path, int is_new) {
    struct stat other;
    for (int i = 0; i < num_made; i++) {
        if (made[i].number != number) continue;
        int is_moved = strcmp(made[i].path, path);
        if (is_moved && !is_new && fstatat(AT_FDCWD, made[i].path, &other, 0))
            note("rename", made[i].path, path, 0, NULL, 0);
        if (is_moved) {
            free(made[i].path);
            made[i].path = strdup(path);
        }
        return;
    }
    if (!is_new || num_made == MOST_FILES) return;
    made[num_made].number = number;
    made[num_made++].path = strdup(path);
}

static void seen_in(const char *folder) {
    DIR *there = opendir(folder);
    if (!there) return; /* it is a file */
    char full[2 * PATH_BYTES];
    for (struct dirent *entry; (entry = readdir(there));) {
        if (entry->d_type != DT_REG) continue;
        snprintf(full, sizeof full, "%s/%s", folder, entry->d_name);
        seen(entry->d_ino, full, 0);
    }
    closedir(there);
}

static void opened(int file, const char *path, int flags, int was_there) {
    if (file < MOST_FILES) {
        free(paths[file]);
        paths[file] = strdup(path);
    }
    int writes = (flags & O_ACCMODE) != O_RDONLY;
    struct stat there;
    if (!fstat(file, &there) && S_ISREG(there.st_mode)) seen(there.st_ino, path, !was_there);
    if (writes && (!was_there || (flags & O_TRUNC)))
        note(was_there ? "cut" : "create", path, "", 0, NULL, 0);
    else
        note("open", path, "", 0, NULL, 0);
}

static int open_in(int folder, const char *path, int flags, mode_t mode) {
    REAL(openat);
    char full[PATH_BYTES];
    int known = resolved(folder, path, full);
    struct stat there;
    int was_there = known && !fstatat(AT_FDCWD, full, &there, 0);
    const char *what = (flags & O_ACCMODE) == O_RDONLY ? "open" : "create";
    GUARDED(known, what, full, real(folder, path, flags, mode),
            opened(result, full, flags, was_there));
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

int open(const char *path, int flags, ...) { MODE(flags) return open_in(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return open_in(AT_FDCWD, path, flags, mode); }
int openat(int in, const char *path, int flags, ...) { MODE(flags) return open_in(in, path, flags, mode); }
int openat64(int in, const char *path, int flags, ...) { MODE(flags) return open_in(in, path, flags, mode); }

int close(int file) {
    REAL(close);
    if (open_path(file)) {
        pthread_mutex_lock(&lock);
        free(paths[file]);
        paths[file] = NULL;
        pthread_mutex_unlock(&lock);
    }
    return real(file);
}

static int64_t position(int file) {
    struct stat there;
    if (fcntl(file, F_GETFL) & O_APPEND) return fstat(file, &there) ? 0 : there.st_size;
    return lseek(file, 0, SEEK_CUR);
}

ssize_t write(int file, const void *bytes, size_t length) {
    REAL(write);
    const char *path = open_path(file);
    if (!path) return real(file, bytes, length);
    pthread_mutex_lock(&lock);
    enum fault fault = event("write", path);
    int64_t offset = position(file);
    ssize_t done = -1;
    size_t part = length > 1 ? length / 2 : length;
    if (fault == IO_ERROR || fault == INTERRUPTED || fault == FULL) {
        errno = fault == IO_ERROR ? EIO : fault == FULL ? ENOSPC : EINTR;
    } else {
        done = real(file, bytes, fault == NONE ? length : part);
        if (fault == KILL) end_all();
        if (done > 0) note("write", path, "", offset, bytes, done);
    }
    pthread_mutex_unlock(&lock);
    return done;
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    REAL(writev);
    if (!open_path(file)) return real(file, parts, count);
    for (int i = 0; i < count; i++) /* a short write is allowed */
        if (parts[i].iov_len) return write(file, parts[i].iov_base, parts[i].iov_len);
    return 0;
}

ssize_t read(int file, void *bytes, size_t length) {
    REAL(read);
    const char *path = open_path(file);
    if (!path) return real(file, bytes, length);
    pthread_mutex_lock(&lock);
    ssize_t done = -1;
    switch (event("read", path)) {
    case KILL: end_all(); break;
    case IO_ERROR: errno = EIO; break;
    case INTERRUPTED: errno = EINTR; break;
    default:
        done = real(file, bytes, length);
        note("read", path, "", 0, NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    return done;
}

static int synced(int file, const char *path) {
    REAL(fsync);
    if (log_file >= 0) seen_in(path);
    return state->no_sync ? 0 : real(file);
}

int fsync(int file) {
    REAL(fsync);
    const char *path = open_path(file);
    GUARDED(path, "fsync", path, path ? synced(file, path) : real(file),
            note("fsync", path, "", 0, NULL, 0));
}

static int renamed(const char *from, const char *to) {
    size_t length = strlen(from);
    for (int i = 0; i < MOST_FILES; i++) { /* open files keep a path that is there */
        if (!paths[i] || strncmp(paths[i], from, length)) continue;
        if (paths[i][length] && paths[i][length] != '/') continue;
        char full[2 * PATH_BYTES];
        snprintf(full, sizeof full, "%s%s", to, paths[i] + length);
        free(paths[i]);
        paths[i] = strdup(full);
    }
    for (int i = 0; i < num_made; i++) {
        if (strncmp(made[i].path, from, length)) continue;
        if (made[i].path[length] && made[i].path[length] != '/') continue;
        char full[2 * PATH_BYTES];
        snprintf(full, sizeof full, "%s%s", to, made[i].path + length);
        free(made[i].path);
        made[i].path = strdup(full);
    }
    note("rename", from, to, 0, NULL, 0);
    return 0;
}

int rename(const char *from, const char *to) {
    REAL(rename);
    char a[PATH_BYTES], b[PATH_BYTES];
    int known = resolved(AT_FDCWD, from, a) && resolved(AT_FDCWD, to, b);
    GUARDED(known, "rename", b, real(from, to), renamed(a, b));
}

int renameat(int in, const char *from, int into, const char *to) {
    REAL(renameat);
    char a[PATH_BYTES], b[PATH_BYTES];
    int known = resolved(in, from, a) && resolved(into, to, b);
    GUARDED(known, "rename", b, real(in, from, into, to), renamed(a, b));
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    char full[PATH_BYTES];
    int known = resolved(AT_FDCWD, path, full);
    GUARDED(known, "mkdir", full, real(path, mode), note("mkdir", full, "", 0, NULL, 0));
}

static int unlinked(int in, const char *path, int flags) {
    REAL(unlinkat);
    char full[PATH_BYTES];
    int known = resolved(in, path, full);
    const char *what = flags & AT_REMOVEDIR ? "rmdir" : "unlink";
    GUARDED(known, what, full, real(in, path, flags), note(what, full, "", 0, NULL, 0));
}

int unlinkat(int in, const char *path, int flags) { return unlinked(in, path, flags); }
int unlink(const char *path) { return unlinked(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinked(AT_FDCWD, path, AT_REMOVEDIR); }

static int shortened(const char *path, off_t length) {
    REAL(truncate);
    char full[PATH_BYTES];
    int known = resolved(AT_FDCWD, path, full);
    GUARDED(known, "truncate", full, real(path, length),
            note("truncate", full, "", length, NULL, 0));
}

static int shortened_open(int file, off_t length) {
    REAL(ftruncate);
    const char *path = open_path(file);
    GUARDED(path, "truncate", path, real(file, length),
            note("truncate", path, "", length, NULL, 0));
}

int truncate(const char *path, off_t length) { return shortened(path, length); }
int truncate64(const char *path, off64_t length) { return shortened(path, length); }
int ftruncate(int file, off_t length) { return shortened_open(file, length); }
int ftruncate64(int file, off64_t length) { return shortened_open(file, length); }

int flock(int file, int operation) {
    REAL(flock);
    const char *path = open_path(file);
    GUARDED(path, "flock", path, real(file, operation), (void)0);
}
