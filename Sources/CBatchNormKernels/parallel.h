/* The one way to use several threads. Called by the operations; implemented in parallel.c. */
#ifndef BNK_PARALLEL_H
#define BNK_PARALLEL_H

#include <stdint.h>

/* Does the tasks [begin, end). */
typedef void bnk_task(void *context, int64_t begin, int64_t end);

/* Cuts [0, tasks) into at most `threads` neighbouring ranges of nearly equal length, does each on a
 * thread of its own and returns when all are done. No task may wait for another. */
void bnk_parallel(int32_t threads, int64_t tasks, bnk_task *task, void *context);

#endif
