/* The one way to use several threads. */
#ifndef BNK_PARALLEL_H
#define BNK_PARALLEL_H

#include <stdint.h>

/* Does the tasks [begin, end). */
typedef void bnk_task(void *context, int64_t begin, int64_t end);

/* Tasks that may be done in any order and at the same time. No task may wait for another. */
typedef struct bnk_phase {
    bnk_task *task;
    int64_t tasks; /* 0: nothing to do */
} bnk_phase;

/* Tasks of the phase that has the most: more threads than these have nothing to do. */
int64_t bnk_most_tasks(const bnk_phase *phases, int count);

/* Does the phases, each when the one before it is done, all by one team of at most `threads` threads:
 * [0, tasks) is cut into neighbouring ranges of nearly equal length, one a thread. Returns when all is
 * done. */
void bnk_parallel(int32_t threads, const bnk_phase *phases, int count, void *context);

#endif
