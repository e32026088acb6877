/*
 * The setting that says whose threads a call runs on, and the caller's pool. A pool that is replaced
 * may be freed afterwards: the setter waits until no call uses it any more.
 */
#include "threading.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

static _Atomic int32_t threading = BNK_THREADING_AUTO;

/* The pool in use and the one before it, which a setter may still wait for. */
static bnk_pool pools[2];
static int current;
static _Atomic int32_t forks; /* between the first process and this one */
static pthread_mutex_t setting_lock = PTHREAD_MUTEX_INITIALIZER; /* one setter at a time */
static pthread_mutex_t pool_lock = PTHREAD_MUTEX_INITIALIZER;    /* pools and current */
static pthread_cond_t pool_is_idle = PTHREAD_COND_INITIALIZER;

/* ---- fork ---- */

/* A child has none of its parent's threads. Our own runtime starts new ones there; GNU's waits for the
 * old ones forever, and so may a pool. */

static void before_fork(void)
{
    pthread_mutex_lock(&pool_lock);
}

static void in_parent(void)
{
    pthread_mutex_unlock(&pool_lock);
}

static void in_child(void)
{
    static const pthread_mutex_t unlocked = PTHREAD_MUTEX_INITIALIZER;
    static const pthread_cond_t no_waiters = PTHREAD_COND_INITIALIZER;
    bnk_forget_other_openmp();
    forks++;
    if (threading != BNK_THREADING_OWN) threading = BNK_THREADING_AUTO;
    pools[0] = pools[1] = (bnk_pool){ .run = NULL };
    setting_lock = unlocked; /* its owner, if it had one, is not here */
    pool_is_idle = no_waiters;
    pthread_mutex_unlock(&pool_lock);
}

/* Before anybody can fork: a child cannot be told afterwards from which process it came. */
__attribute__((constructor)) static void watch_forks(void)
{
    pthread_atfork(before_fork, in_parent, in_child);
}

/* ---- the setting ---- */

static void choose(int32_t kind, bnk_pool pool)
{
    pthread_mutex_lock(&setting_lock);
    pthread_mutex_lock(&pool_lock);
    bnk_pool *old = &pools[current];
    current = !current;
    pools[current] = pool;
    threading = kind;
    while (old->users > 0) pthread_cond_wait(&pool_is_idle, &pool_lock);
    const bnk_pool dismissed = *old;
    *old = (bnk_pool){ .run = NULL };
    pthread_mutex_unlock(&pool_lock);
    pthread_mutex_unlock(&setting_lock);
    if (dismissed.release) dismissed.release(dismissed.pool);
}

int32_t bnk_set_threading(int32_t kind)
{
    if (kind == BNK_THREADING_SHARED && !bnk_other_openmp())
        return bnk_other_openmp_is_lost() ? BNK_SHARED_RUNTIME_FORKED : BNK_SHARED_RUNTIME_ABSENT;
    choose(kind, (bnk_pool){ .run = NULL });
    return 0;
}

void bnk_set_pool(bnk_run run, void *pool, void (*release)(void *pool))
{
    choose(run ? BNK_THREADING_POOL : BNK_THREADING_AUTO,
           (bnk_pool){ .run = run, .pool = pool, .release = release });
}

int32_t bnk_threading(void)
{
    return threading;
}

/* ---- calls ---- */

bnk_workers bnk_hire(void)
{
    bnk_workers workers = { .pool = { .run = NULL }, .other = NULL };
    if (threading == BNK_THREADING_POOL) {
        pthread_mutex_lock(&pool_lock);
        if (pools[current].run) { /* else it was taken back meanwhile */
            pools[current].users++;
            workers.pool = pools[current];
            workers.slot = current;
            workers.forks = forks;
        }
        pthread_mutex_unlock(&pool_lock);
        if (workers.pool.run) return workers;
    }
    if (threading != BNK_THREADING_OWN) workers.other = bnk_other_openmp();
    return workers;
}

int bnk_were_left_behind(const bnk_workers *workers)
{
    return workers->forks != forks;
}

void bnk_dismiss(bnk_workers workers)
{
    if (!workers.pool.run) return;
    pthread_mutex_lock(&pool_lock);
    /* In a child that was forked meanwhile nobody counts: its own pool may stand there. */
    if (!bnk_were_left_behind(&workers) && --pools[workers.slot].users == 0)
        pthread_cond_broadcast(&pool_is_idle);
    pthread_mutex_unlock(&pool_lock);
}
