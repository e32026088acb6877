/*
 * Whose threads do the tasks: our runtime's, those of another one in the process, a pool's. Every task
 * is done once, in the order of the phases, and nobody is waited for who is not there.
 */
#include "check.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../Sources/CBatchNormKernels/parallel.h"
#include "bnk.h"
#include "pools.h"

/* ---- three phases that watch each other ---- */

enum { PHASES = 3, MAX_TASKS = 40 };

typedef struct watched {
    _Atomic int32_t times[PHASES][MAX_TASKS]; /* that a task was done */
    _Atomic int32_t done[PHASES];
    _Atomic int32_t too_early; /* tasks that met an unfinished phase before theirs */
    _Atomic int32_t empty;     /* calls without a task */
    int32_t tasks[PHASES];
} watched;

static void do_tasks(watched *w, int phase, int64_t begin, int64_t end)
{
    if (begin >= end) w->empty++;
    for (int64_t i = begin; i < end; i++) {
        for (int before = 0; before < phase; before++)
            if (w->done[before] != w->tasks[before]) w->too_early++;
        w->times[phase][i]++;
        w->done[phase]++;
    }
}

static void phase_0(void *context, int64_t begin, int64_t end)
{
    do_tasks(context, 0, begin, end);
}

static void phase_1(void *context, int64_t begin, int64_t end)
{
    do_tasks(context, 1, begin, end);
}

static void phase_2(void *context, int64_t begin, int64_t end)
{
    do_tasks(context, 2, begin, end);
}

static const int32_t shapes[][PHASES] = {
    { 1, 1, 1 },    { 7, 1, 9 }, { 1, 12, 1 }, { 0, 5, 8 },  { 8, 5, 0 },
    { 40, 40, 40 }, { 0, 6, 0 }, { 3, 0, 0 },  { 2, 40, 3 }, { 0, 0, 0 },
};

/* No cmocka in here: it may run on any thread. The reason it went wrong, or NULL. */
static const char *run_phases(const int32_t *tasks, int32_t threads)
{
    watched w = { .too_early = 0 };
    memcpy(w.tasks, tasks, sizeof w.tasks);
    const bnk_phase phases[] = { { phase_0, tasks[0] },
                                 { phase_1, tasks[1] },
                                 { phase_2, tasks[2] } };
    bnk_parallel(threads, phases, PHASES, &w);
    if (w.too_early) return "a task began before the phase before it was done";
    if (w.empty) return "a member was called without a task";
    for (int phase = 0; phase < PHASES; phase++)
        for (int32_t i = 0; i < MAX_TASKS; i++)
            if (w.times[phase][i] != (i < tasks[phase])) return "a task was not done once";
    return NULL;
}

static const char *run_all_phases(void)
{
    static const int32_t threads[] = { 1, 2, 3, 8 };
    for (size_t s = 0; s < LENGTH(shapes); s++)
        for (size_t t = 0; t < LENGTH(threads); t++) {
            const char *failure = run_phases(shapes[s], threads[t]);
            if (failure) return failure;
        }
    return NULL;
}

static int back_to_auto(void **state)
{
    (void)state;
    return bnk_set_threading(BNK_THREADING_AUTO);
}

/* ---- the process's runtime: the first tests run without one ---- */

static int is_ours(const char *name)
{
    return strncmp(name, "libomp", 6) == 0 || strncmp(name, "libiomp5", 8) == 0;
}

static void alone_we_use_our_own(void **state)
{
    (void)state;
    check(bnk_threading() == BNK_THREADING_AUTO, "at first it is %d", bnk_threading());
    check(is_ours(bnk_thread_runtime()), "auto is %s", bnk_thread_runtime());
    check(bnk_set_threading(BNK_THREADING_SHARED) == BNK_SHARED_RUNTIME_ABSENT, "is there one?");
    check(bnk_threading() == BNK_THREADING_AUTO, "a refused setting made it %d", bnk_threading());
    const char *failure = run_all_phases();
    check(!failure, "%s", failure);
}

static void a_runtime_that_comes_is_noticed(void **state)
{
    (void)state;
    load_libgomp();
    check(strcmp(bnk_thread_runtime(), "libgomp.so.1") == 0, "auto is %s", bnk_thread_runtime());
    check(bnk_default_threads() >= 1, "%d threads", bnk_default_threads());
    const char *failure = run_all_phases();
    check(!failure, "auto: %s", failure);

    check(bnk_set_threading(BNK_THREADING_SHARED) == 0, "shared was refused");
    check(strcmp(bnk_thread_runtime(), "libgomp.so.1") == 0, "shared is %s", bnk_thread_runtime());
    check(bnk_set_threading(BNK_THREADING_OWN) == 0, "own was refused");
    check(is_ours(bnk_thread_runtime()), "own is %s", bnk_thread_runtime());
    failure = run_all_phases();
    check(!failure, "own: %s", failure);
}

/* ---- nested ---- */

typedef struct nested {
    _Atomic(const char *) failure;
    _Atomic int32_t members;
} nested;

static void inside_a_region(void *context)
{
    nested *n = context;
    const char *failure = run_all_phases();
    if (failure) n->failure = failure;
    n->members++;
}

static void inside_a_region_of_the_callers(void **state)
{
    (void)state;
    for (int32_t kind = BNK_THREADING_AUTO; kind <= BNK_THREADING_SHARED; kind++) {
        nested n = { .members = 0 };
        check(bnk_set_threading(kind) == 0, "%d was refused", kind);
        on_libgomp(inside_a_region, &n);
        check(n.members == 2, "%d members", n.members);
        check(!n.failure, "threading %d: %s", kind, n.failure);
    }
}

/* ---- fork ---- */

static void after_a_fork(void **state)
{
    (void)state;
    for (int32_t kind = BNK_THREADING_AUTO; kind <= BNK_THREADING_POOL; kind++) {
        if (kind == BNK_THREADING_POOL)
            bnk_set_pool(pool_threads, NULL, NULL);
        else
            check(bnk_set_threading(kind) == 0, "%d was refused", kind);
        check(!run_all_phases(), "before the fork"); /* the threads are there now */
        fflush(NULL);
        const pid_t child = fork();
        check(child >= 0, "fork");
        if (child == 0) { /* no cmocka in here: the child only says what it found */
            alarm(60);    /* a team of threads that are not there would be waited for */
            if (!is_ours(bnk_thread_runtime())) _exit(2);
            if (run_all_phases()) _exit(3);
            if (bnk_threading() != (kind == BNK_THREADING_OWN ? kind : BNK_THREADING_AUTO))
                _exit(4);
            if (bnk_set_threading(BNK_THREADING_SHARED) != BNK_SHARED_RUNTIME_FORKED) _exit(5);
            bnk_set_pool(pool_threads, NULL, NULL);
            if (run_all_phases()) _exit(6);
            _exit(0);
        }
        int status = 0;
        check(waitpid(child, &status, 0) == child, "waitpid");
        check(WIFEXITED(status) && WEXITSTATUS(status) == 0,
              "threading %d: the child's status is %x", kind, (unsigned)status);
        check(bnk_threading() == kind, "the parent's threading became %d", bnk_threading());
        check(!run_all_phases(), "the parent after the fork");
    }
}

/* A pool one of whose members forks, on the calling thread or on one of its own. */
typedef struct forking {
    bool on_own_thread;
    pid_t child; /* 0 in the child, -1 before the fork */
    int32_t calls;
    int32_t calls_at_fork;
} forking;

/* In the child of a thread of the pool there is nothing but this thread. */
static void *fork_here(void *argument)
{
    forking *f = argument;
    fflush(NULL);
    f->child = fork();
    if (f->child == 0) {
        alarm(60);
        f->calls_at_fork = f->calls;
        if (f->on_own_thread) _exit(run_all_phases() ? 2 : 0);
    }
    return NULL;
}

static void forking_pool(void *pool, int32_t members, bnk_member member, void *context)
{
    forking *f = pool;
    f->calls++;
    if (f->child == -1) {
        pthread_t thread;
        if (!f->on_own_thread)
            fork_here(f);
        else if (pthread_create(&thread, NULL, fork_here, f) != 0 ||
                 pthread_join(thread, NULL) != 0)
            abort();
    }
    for (int32_t i = 0; i < members; i++) member(context, i);
}

/* The call goes on in both processes, in the child without the pool, which the parent may have freed. */
static void forked_by_a_member(void **state)
{
    (void)state;
    for (int on_own_thread = 0; on_own_thread < 2; on_own_thread++) {
        forking f = { .on_own_thread = on_own_thread, .child = -1 };
        bnk_set_pool(forking_pool, &f, NULL);
        const char *failure = run_all_phases();
        if (f.child == 0) {
            if (failure) _exit(3);
            if (f.calls != f.calls_at_fork) _exit(4);
            if (bnk_threading() != BNK_THREADING_AUTO) _exit(5);
            /* A pool of the child's own is counted from the start: taking it back waits for nobody. */
            bnk_set_pool(pool_threads, NULL, NULL);
            if (run_all_phases()) _exit(6);
            bnk_set_pool(NULL, NULL, NULL);
            _exit(0);
        }
        check(!failure, "the parent: %s", failure);
        int status = 0;
        check(f.child > 0 && waitpid(f.child, &status, 0) == f.child, "waitpid");
        check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s: the child's status is %x",
              on_own_thread ? "a thread of the pool" : "the calling thread", (unsigned)status);
    }
}

/* ---- pools ---- */

static void pools_do_every_task_once(void **state)
{
    (void)state;
    for (size_t p = 0; p < LENGTH(pools); p++) {
        bnk_set_pool(pools[p].run, NULL, NULL);
        check(bnk_threading() == BNK_THREADING_POOL, "it is %d", bnk_threading());
        check(strcmp(bnk_thread_runtime(), "pool") == 0, "it is %s", bnk_thread_runtime());
        const char *failure = run_all_phases();
        check(!failure, "%s: %s", pools[p].name, failure);
    }
}

/* One call a phase, as many members as there are tasks or threads; none for a single task. */
static void a_pool_is_called_as_often_as_need_be(void **state)
{
    (void)state;
    for (int32_t threads = 1; threads <= 5; threads++)
        for (size_t s = 0; s < LENGTH(shapes); s++) {
            pool_log log = { 0, 0, 0 };
            int32_t calls = 0, members = 0;
            for (int phase = 0; phase < PHASES; phase++) {
                const int32_t tasks = shapes[s][phase];
                const int32_t wide = tasks < threads ? tasks : threads;
                if (wide > 1) calls++, members += wide;
            }
            bnk_set_pool(pool_forward, &log, NULL);
            const char *failure = run_phases(shapes[s], threads);
            check(!failure, "%s", failure);
            check(log.calls == calls && log.members == members,
                  "shape %zu, %d threads: %d calls with %d members, expected %d with %d", s,
                  threads, log.calls, log.members, calls, members);
            check(log.widest <= threads, "%d members on %d threads", log.widest, threads);
        }
}

typedef struct gate {
    _Atomic int entered, open, released, used_after;
} gate;

static void wait_for(_Atomic int *flag)
{
    while (!*flag) usleep(100);
}

static void run_behind_gate(void *pool, int32_t members, bnk_member member, void *context)
{
    gate *g = pool;
    g->entered = 1;
    wait_for(&g->open);
    pool_forward(NULL, members, member, context);
    if (g->released) g->used_after = 1;
}

static void release_gate(void *pool)
{
    ((gate *)pool)->released++;
}

static void *call(void *failure)
{
    *(const char **)failure = run_phases(shapes[5], 4);
    return NULL;
}

static void *replace(void *replaced)
{
    bnk_set_threading(BNK_THREADING_OWN);
    *(_Atomic int *)replaced = 1;
    return NULL;
}

/* A call keeps the pool that it began with, and whoever replaces that waits for the call. */
static void a_pool_in_use_is_waited_for(void **state)
{
    (void)state;
    gate g = { 0, 0, 0, 0 };
    _Atomic int replaced = 0;
    const char *failure = "none";
    pthread_t caller, replacer;
    bnk_set_pool(run_behind_gate, &g, release_gate);
    check(pthread_create(&caller, NULL, call, &failure) == 0, "pthread_create");
    wait_for(&g.entered);
    check(pthread_create(&replacer, NULL, replace, &replaced) == 0, "pthread_create");
    while (bnk_threading() == BNK_THREADING_POOL) usleep(100);
    usleep(20000); /* nothing says that the setter waits; it gets the time to do wrong */
    check(!replaced && !g.released, "the setter returned although a call used the pool");
    /* Other calls go on meanwhile. */
    const char *meanwhile = run_phases(shapes[5], 3);
    check(!meanwhile, "%s", meanwhile);
    g.open = 1;
    check(pthread_join(caller, NULL) == 0 && pthread_join(replacer, NULL) == 0, "pthread_join");
    check(!failure, "%s", failure);
    check(replaced && g.released == 1 && !g.used_after, "replaced %d, released %d, used after %d",
          replaced, g.released, g.used_after);
}

static _Atomic int keep_changing;

static void *change(void *unused)
{
    (void)unused;
    for (int i = 0; keep_changing; i++) {
        bnk_set_threading(i % 3);
        bnk_set_pool(i % 2 ? pool_backward : pool_threads, NULL, NULL);
    }
    return NULL;
}

static void settings_change_under_calls(void **state)
{
    (void)state;
    keep_changing = 1;
    pthread_t changers[2];
    for (int i = 0; i < 2; i++)
        check(pthread_create(&changers[i], NULL, change, NULL) == 0, "pthread_create");
    const char *failure = NULL;
    for (int i = 0; i < 20 && !failure; i++) failure = run_all_phases();
    keep_changing = 0;
    for (int i = 0; i < 2; i++) check(pthread_join(changers[i], NULL) == 0, "pthread_join");
    check(!failure, "%s", failure);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(alone_we_use_our_own, back_to_auto),
        cmocka_unit_test_teardown(pools_do_every_task_once, back_to_auto),
        cmocka_unit_test_teardown(a_runtime_that_comes_is_noticed, back_to_auto),
        cmocka_unit_test_teardown(inside_a_region_of_the_callers, back_to_auto),
        cmocka_unit_test_teardown(after_a_fork, back_to_auto),
        cmocka_unit_test_teardown(forked_by_a_member, back_to_auto),
        cmocka_unit_test_teardown(a_pool_is_called_as_often_as_need_be, back_to_auto),
        cmocka_unit_test_teardown(a_pool_in_use_is_waited_for, back_to_auto),
        cmocka_unit_test_teardown(settings_change_under_calls, back_to_auto),
    };
    return cmocka_run_group_tests_name("kernels: parallel", tests, NULL, NULL);
}
