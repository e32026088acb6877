/*
 * allocations.c — counts heap memory of a process that it is preloaded into (LD_PRELOAD), for
 * `harness --memory`. Stacks of threads and mmap are not counted; the harness adds the peak RSS.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stdlib.h>

void allocations_reset(void);
void allocations_read(long *count, long *peak, long *kept);

static atomic_long number, live, highest;

/* glibc's own names for its allocator: no dlsym, which allocates, on the way. */
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t),
    *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static void *took(void *memory)
{
    if (!memory) return memory;
    atomic_fetch_add(&number, 1);
    long size = (long)malloc_usable_size(memory), now = atomic_fetch_add(&live, size) + size;
    long seen = atomic_load(&highest);
    while (now > seen && !atomic_compare_exchange_weak(&highest, &seen, now)) {}
    return memory;
}
static void gave(void *memory)
{
    if (memory) atomic_fetch_sub(&live, (long)malloc_usable_size(memory));
}

void *malloc(size_t size)
{
    return took(__libc_malloc(size));
}
void *calloc(size_t count, size_t size)
{
    return took(__libc_calloc(count, size));
}
void *memalign(size_t alignment, size_t size)
{
    return took(__libc_memalign(alignment, size));
}
void *aligned_alloc(size_t alignment, size_t size)
{
    return memalign(alignment, size);
}
int posix_memalign(void **memory, size_t alignment, size_t size)
{
    *memory = memalign(alignment, size);
    return *memory ? 0 : ENOMEM;
}
void *realloc(void *memory, size_t size)
{
    gave(memory);
    return took(__libc_realloc(memory, size));
}
void free(void *memory)
{
    gave(memory);
    __libc_free(memory);
}

void allocations_reset(void)
{
    atomic_store(&number, 0);
    atomic_store(&live, 0);
    atomic_store(&highest, 0);
}
void allocations_read(long *count, long *peak, long *kept)
{
    *count = atomic_load(&number);
    *peak = atomic_load(&highest);
    *kept = atomic_load(&live);
}
