#include "pools.h"

#include "check.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static void note(void *pool, int32_t members)
{
    pool_log *log = pool;
    if (!log) return;
    log->calls++;
    log->members += members;
    if (members > log->widest) log->widest = members;
}

void pool_forward(void *pool, int32_t members, void (*member)(void *, int32_t), void *context)
{
    note(pool, members);
    for (int32_t i = 0; i < members; i++) member(context, i);
}

void pool_backward(void *pool, int32_t members, void (*member)(void *, int32_t), void *context)
{
    note(pool, members);
    for (int32_t i = members - 1; i >= 0; i--) member(context, i);
}

typedef struct started {
    pthread_t thread;
    void (*member)(void *, int32_t);
    void *context;
    int32_t number;
} started;

static void *start(void *argument)
{
    const started *s = argument;
    s->member(s->context, s->number);
    return NULL;
}

void pool_threads(void *pool, int32_t members, void (*member)(void *, int32_t), void *context)
{
    note(pool, members);
    started *list = calloc((size_t)members, sizeof *list);
    if (!list) abort();
    for (int32_t i = 0; i < members; i++) {
        list[i] = (started){ .member = member, .context = context, .number = i };
        if (pthread_create(&list[i].thread, NULL, start, &list[i]) != 0) abort();
    }
    for (int32_t i = 0; i < members; i++)
        if (pthread_join(list[i].thread, NULL) != 0) abort();
    free(list);
}

static void (*gomp_parallel)(void (*)(void *), void *, unsigned, unsigned);
static void (*gomp_set_threads)(int);

static void nothing(void *context)
{
    (void)context;
}

void load_libgomp(void)
{
    void *library = dlopen("libgomp.so.1", RTLD_NOW | RTLD_LOCAL);
    check(library != NULL, "libgomp.so.1, which gcc brings: %s", dlerror());
    void *address = dlsym(library, "GOMP_parallel");
    memcpy(&gomp_parallel, &address, sizeof address);
    address = dlsym(library, "omp_set_num_threads");
    memcpy(&gomp_set_threads, &address, sizeof address);
    on_libgomp(nothing, NULL);
}

void libgomp_set_threads(int threads)
{
    gomp_set_threads(threads);
}

void on_libgomp(void (*body)(void *context), void *context)
{
    gomp_parallel(body, context, 2, 0);
}
