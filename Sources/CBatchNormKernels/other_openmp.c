/*
 * Finds the OpenMP runtime that another library has loaded: PyTorch's libgomp, say. Nothing is loaded
 * here and nothing linked: a library that is in the process already is opened once more, so that it
 * stays, and asked for its entries.
 */
#if defined(__linux__)
#define _GNU_SOURCE /* dl_iterate_phdr */
#endif

#include "other_openmp.h"

#include <stddef.h>

#if defined(__linux__)

#include <dlfcn.h>
#include <limits.h>
#include <link.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

extern int omp_get_max_threads(void); /* our own runtime's */

static bnk_openmp found; /* written once, before `other` points to it */
static _Atomic(const bnk_openmp *) other;
static atomic_ullong searched; /* libraries that had ever been loaded at the last search */
static atomic_bool is_child;
static pthread_mutex_t search_lock = PTHREAD_MUTEX_INITIALIZER;

static int first_entry(struct dl_phdr_info *info, size_t size, void *loaded)
{
    if (size >= offsetof(struct dl_phdr_info, dlpi_adds) + sizeof info->dlpi_adds)
        *(unsigned long long *)loaded = info->dlpi_adds;
    return 1;
}

/* How many libraries have been loaded since the process began; the loader counts them. */
static unsigned long long libraries_loaded(void)
{
    unsigned long long loaded = 0;
    dl_iterate_phdr(first_entry, &loaded);
    return loaded;
}

/* GNU's alone. Two runtimes of LLVM's family (libomp, libiomp5) end the process when the second one
 * starts, so that one of them must never be switched to after our own, nor our own after it. */
static const char *const runtimes[] = { "libgomp" };
enum { RUNTIMES = sizeof runtimes / sizeof runtimes[0] };

typedef struct candidates {
    char paths[RUNTIMES][PATH_MAX]; /* the first one loaded of each kind; "": none */
} candidates;

static const char *file_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* "libgomp.so.1", or "libgomp-24e2ab19.so.1.0.0", as wheels rename it. */
static int is_runtime(const char *file, const char *name)
{
    const size_t length = strlen(name);
    return strncmp(file, name, length) == 0 && (file[length] == '.' || file[length] == '-');
}

static int collect(struct dl_phdr_info *info, size_t size, void *context)
{
    (void)size;
    candidates *all = context;
    if (!info->dlpi_name) return 0;
    for (int i = 0; i < RUNTIMES; i++)
        if (!all->paths[i][0] && is_runtime(file_of(info->dlpi_name), runtimes[i]) &&
            strlen(info->dlpi_name) < PATH_MAX)
            strcpy(all->paths[i], info->dlpi_name);
    return 0;
}

/* ISO C knows no way from an object pointer to a function pointer; POSIX asks for this one. */
static int entry(void *library, const char *name, void *function)
{
    void *address = dlsym(library, name);
    memcpy(function, &address, sizeof address);
    return address != NULL;
}

static int open_runtime(const char *path, bnk_openmp *runtime)
{
    void *library = dlopen(path, RTLD_NOLOAD | RTLD_LAZY);
    if (!library) return 0;
    if (entry(library, "GOMP_parallel", &runtime->parallel) &&
        entry(library, "GOMP_barrier", &runtime->barrier) &&
        entry(library, "omp_get_max_threads", &runtime->max_threads) &&
        entry(library, "omp_get_num_threads", &runtime->num_threads) &&
        entry(library, "omp_get_thread_num", &runtime->thread_num) &&
        entry(library, "omp_get_num_procs", &runtime->processors) &&
        runtime->max_threads != omp_get_max_threads) {
        snprintf(runtime->name, sizeof runtime->name, "%s", file_of(path));
        return 1; /* the library is never closed: it must outlive our use of it */
    }
    dlclose(library);
    return 0;
}

/* Whether this process was forked and has not called exec since (PF_FORKNOEXEC, proc(5)): then libraries
 * may have come from the parent. True if nobody can tell. */
static int was_forked(void)
{
    enum { FORKED_WITHOUT_EXEC = 0x40 };
    char text[512];
    FILE *file = fopen("/proc/self/stat", "re");
    if (!file) return 1;
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    const char *after_name = strrchr(text, ')'); /* a name may have spaces and parentheses */
    unsigned flags;
    return !after_name || sscanf(after_name + 1, " %*c %*d %*d %*d %*d %*d %u", &flags) != 1 ||
           (flags & FORKED_WITHOUT_EXEC) != 0;
}

static void search(void)
{
    candidates all = { 0 };
    dl_iterate_phdr(collect, &all);
    for (int i = 0; i < RUNTIMES && !atomic_load(&other); i++) {
        bnk_openmp runtime;
        if (!all.paths[i][0] || !open_runtime(all.paths[i], &runtime)) continue;
        /* GNU's runtime does not survive a fork: a child that uses the parent's waits forever. */
        if (was_forked()) {
            is_child = 1;
            break;
        }
        found = runtime;
        atomic_store(&other, &found);
    }
}

const bnk_openmp *bnk_other_openmp(void)
{
    const bnk_openmp *known = atomic_load_explicit(&other, memory_order_acquire);
    if (known || atomic_load_explicit(&is_child, memory_order_relaxed)) return known;
    const unsigned long long loaded = libraries_loaded();
    if (loaded == searched) return NULL;
    pthread_mutex_lock(&search_lock);
    if (loaded != searched && !atomic_load(&other)) {
        search();
        searched = loaded;
    }
    pthread_mutex_unlock(&search_lock);
    return other;
}

void bnk_forget_other_openmp(void)
{
    is_child = 1;
    other = NULL;
}

int bnk_other_openmp_is_lost(void)
{
    return is_child;
}

#else /* no way to look */

const bnk_openmp *bnk_other_openmp(void)
{
    return NULL;
}

void bnk_forget_other_openmp(void) {}

int bnk_other_openmp_is_lost(void)
{
    return 0;
}

#endif
