/*
 * The only file that runs OpenMP. Which thread does a task never changes a result, so nothing here
 * can move a bit.
 */
#if defined(__linux__)
#define _GNU_SOURCE /* dladdr */
#include <dlfcn.h>
#include <string.h>
#endif

#include "parallel.h"

#include <stdatomic.h>
#include <stddef.h>

#include "bnk.h"
#include "threading.h"

/* Swift's clang brings no omp.h; these are all we need of it. */
extern int omp_get_max_threads(void);
extern int omp_get_num_threads(void);
extern int omp_get_thread_num(void);
extern int omp_get_num_procs(void);

/* The runtime that is asked about threads; NULL: our own. A pool has no say: then it is AUTO's. */
static const bnk_openmp *runtime_in_use(void)
{
    return bnk_threading() != BNK_THREADING_OWN ? bnk_other_openmp() : NULL;
}

static int32_t processors(void)
{
    const bnk_openmp *other = runtime_in_use();
    return other ? other->processors() : omp_get_num_procs();
}

int32_t bnk_default_threads(void)
{
    const bnk_openmp *other = runtime_in_use();
    const int32_t threads = other ? other->max_threads() : omp_get_max_threads();
    return threads > 0 ? threads
                       : processors(); /* libomp makes OMP_NUM_THREADS=-3 a number of its own */
}

/* A runtime that cannot start a thread ends the process, so that the number cannot be the caller's alone. More
 * threads than processors gain nothing; ANYWHERE of them run everywhere, so that the same program can be tried on
 * a small machine. Asked is the runtime, which knows the processors even when it has bound this thread to one. */
int32_t bnk_most_threads(int32_t wanted)
{
    enum { ANYWHERE = 64 };
    static _Atomic int32_t most =
        ANYWHERE; /* threads may be allowed different numbers: the largest seen */
    if (wanted <= most) return wanted;
    const int32_t here = processors();
    int32_t known = most;
    while (here > known && !atomic_compare_exchange_weak(&most, &known, here)) {}
    known = most;
    return wanted < known ? wanted : known;
}

const char *bnk_thread_runtime(void)
{
    const bnk_workers workers = bnk_hire();
    bnk_dismiss(workers);
    if (workers.pool.run) return "pool";
    if (workers.other) return workers.other->name;
#if defined(__linux__)
    Dl_info info;
    if (dladdr((const void *)omp_get_max_threads, &info) && info.dli_fname) {
        const char *slash = strrchr(info.dli_fname, '/');
        return slash ? slash + 1 : info.dli_fname;
    }
#endif
    return "libomp";
}

/* ---- a team ---- */

/* Member `me`'s part of a phase. */
static void share(const bnk_phase *phase, void *context, int64_t me, int64_t members)
{
    const int64_t begin = phase->tasks * me / members;
    const int64_t end = phase->tasks * (me + 1) / members;
    if (begin < end) phase->task(context, begin, end);
}

typedef struct work {
    const bnk_phase *phases;
    int count;
    void *context;
    const bnk_openmp *other;
} work;

/* A runtime may give fewer threads than asked for, in a nested region one: so the number is asked for
 * inside. */

static void run_on_own(int threads, const work *w)
{
#pragma omp parallel num_threads(threads)
    {
        const int members = omp_get_num_threads();
        const int me = omp_get_thread_num();
        for (int i = 0; i < w->count; i++) {
            if (i > 0) {
#pragma omp barrier
            }
            share(&w->phases[i], w->context, me, members);
        }
    }
}

static void member_of_other(void *argument)
{
    const work *w = argument;
    const int members = w->other->num_threads();
    const int me = w->other->thread_num();
    for (int i = 0; i < w->count; i++) {
        if (i > 0) w->other->barrier();
        share(&w->phases[i], w->context, me, members);
    }
}

typedef struct pool_work {
    const bnk_phase *phase;
    void *context;
    int32_t members;
} pool_work;

static void member_of_pool(void *argument, int32_t me)
{
    const pool_work *w = argument;
    share(w->phase, w->context, me, w->members);
}

/* Members may run one after another, so that none can wait for the others: one call a phase. */
static void run_on_pool(int threads, const work *w, const bnk_workers *workers)
{
    for (int i = 0; i < w->count; i++) {
        const bnk_phase *phase = &w->phases[i];
        /* Whoever forked while it ran a member has the call in the child as well, but none of the pool's threads. */
        if (phase->tasks <= 1 || bnk_were_left_behind(workers)) {
            share(phase, w->context, 0, 1);
            continue;
        }
        pool_work mine = { phase, w->context, threads };
        if (phase->tasks < threads) mine.members = (int32_t)phase->tasks;
        workers->pool.run(workers->pool.pool, mine.members, member_of_pool, &mine);
    }
}

int64_t bnk_most_tasks(const bnk_phase *phases, int count)
{
    int64_t most = 0;
    for (int i = 0; i < count; i++)
        if (phases[i].tasks > most) most = phases[i].tasks;
    return most;
}

void bnk_parallel(int32_t threads, const bnk_phase *phases, int count, void *context)
{
    /* Empty phases at either end must not cost a barrier; nobody has one in the middle. */
    while (count > 0 && phases[count - 1].tasks == 0) count--;
    while (count > 0 && phases[0].tasks == 0) phases++, count--;

    const int64_t most = bnk_most_tasks(phases, count);
    const int team = most < threads ? (int)most : threads;
    if (team <= 1) {
        for (int i = 0; i < count; i++) share(&phases[i], context, 0, 1);
        return;
    }
    const bnk_workers workers = bnk_hire();
    work w = { phases, count, context, workers.other };
    if (workers.pool.run)
        run_on_pool(team, &w, &workers);
    else if (workers.other)
        workers.other->parallel(member_of_other, &w, (unsigned)team, 0);
    else
        run_on_own(team, &w);
    bnk_dismiss(workers);
}
