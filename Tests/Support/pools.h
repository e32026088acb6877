/* pools.h — pools of threads as callers may bring them, from the plainest to the oddest. */
#ifndef POOLS_H
#define POOLS_H

#include <stdint.h>

/* bnk_run and bn_run_members. `pool` is a pool_log or NULL. */
typedef void pool_run(void *pool, int32_t members, void (*member)(void *, int32_t), void *context);

typedef struct pool_log {
    _Atomic int32_t calls;   /* of the pool */
    _Atomic int32_t members; /* of all calls together */
    _Atomic int32_t widest;  /* members of one call, at most */
} pool_log;

pool_run pool_forward;  /* on the calling thread, one member after another */
pool_run pool_backward; /* the same, the last one first */
pool_run pool_threads;  /* each member on a thread of its own, started for it */

static const struct {
    const char *name;
    pool_run *run;
} pools[] = { { "forward", pool_forward },
              { "backward", pool_backward },
              { "threads", pool_threads } };

/* GNU's OpenMP runtime comes into the process, as PyTorch brings it, and starts its threads. Stays. */
void load_libgomp(void);
/* omp_set_num_threads of that runtime, for the calling thread. */
void libgomp_set_threads(int threads);
/* On two of its threads, unless it is nested in another such call: body(context). */
void on_libgomp(void (*body)(void *context), void *context);

#endif
