/*
 * harness.h — what the harness measures the library against: the limit (limits.c, limit_choice.c), and the
 * bare arithmetic of tiny tensors (bare.c).
 */
#ifndef HARNESS_H
#define HARNESS_H

#include <stddef.h>
#include <stdint.h>

#include "cell.h"

/* How a thread walks through a block of memory. */
typedef struct walk {
    int streams; /* 1, 2, 4 or 8 parts of the block, side by side */
    int ahead;   /* bytes between what is prefetched and what is read; 0: nothing is prefetched */
} walk;

/* One way to sweep over tensors: first the reads, then what is written. */
typedef struct sweep {
    int threads;
    size_t bytes; /* of each tensor */
    int reads;    /* of inputs, before anything is written: 0, 1 (a) or 2 (a and b) */
    int together; /* a and b in one loop, not one after the other */
    walk read;
    int tensors; /* 1: nothing is written. 2: out = a. 3: out = f(a, b). 4: that, and second = b */
    int nontemporal; /* kind of store */
    walk write;
    int back; /* the last block is written first: some of it is still in the cache */
} sweep;

/* The tensors are aligned to 64 bytes; those that are not used may be anything. */
void limit_run(const sweep *how, void *out, const void *a, const void *b, void *second);

/* Contenders that are sweeps, appended to a list; both return its new length. Their names: read, copy, triad
 * or tetrad, of one to four tensors; -xK: K streams; -near, -far: prefetched so far; -nt: non-temporal
 * stores; -serial: one thread. Behind +reads, how the inputs are read before: -both: in one loop; -back: the
 * last block is written first. */

/* Every limit of a cell: plain ones, the best of either kind of store, and these after a read of the
 * inputs, where one is needed. */
int add_limits(cell *k, contender *list, int count);
/* The speed of the machine: reading alone, copy and triad. */
int add_memory_sweeps(cell *k, contender *list, int count);
/* How many tensors such a contender moves. */
int tensors_swept(const contender *c);

/* The most elements that bare_run_* take. */
enum { BARE_MAX = 1 << 16 };

/* Batch normalization as a loop in a program would do it: one thread, no checks, sums of the
 * element type. grad_output NULL: forward. frozen: statistics are running_mean and running_var. */
typedef struct bare_job {
    int64_t n, c, s;
    int nhwc, frozen;
    const void *input, *grad_output;
    void *output; /* or the input's gradient */
    const void *weight, *bias;
    void *running_mean, *running_var;
    void *grad_weight, *grad_bias;
    double *saved_mean, *saved_invstd;
} bare_job;

void bare_run_f32(const bare_job *job);
void bare_run_f64(const bare_job *job);

#endif
