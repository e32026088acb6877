/*
 * The only file with OpenMP in it. One static region a call: which thread does a task never changes
 * a result, so nothing here can move a bit.
 */
#include "parallel.h"
#include "bnk.h"

/* Swift's clang brings no omp.h; these are all we need of it. */
extern int omp_get_max_threads(void);
extern int omp_get_num_threads(void);
extern int omp_get_thread_num(void);

int32_t bnk_default_threads(void)
{
    return omp_get_max_threads();
}

void bnk_parallel(int32_t threads, int64_t tasks, bnk_task *task, void *context)
{
    const int team = tasks < threads ? (int)tasks : threads;
    if (team <= 1) {
        task(context, 0, tasks);
        return;
    }
#pragma omp parallel num_threads(team)
    {
        /* The runtime may give fewer threads than asked for, in a nested region one. */
        const int64_t members = omp_get_num_threads();
        const int64_t me = omp_get_thread_num();
        task(context, tasks * me / members, tasks * (me + 1) / members);
    }
}
