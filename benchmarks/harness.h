/*
 * harness.h — what the harness measures the library against: the limit (limits.c), and the bare
 * arithmetic of tiny tensors (bare.c).
 */
#ifndef HARNESS_H
#define HARNESS_H

#include <stddef.h>
#include <stdint.h>

/* One way to sweep over memory. */
typedef struct sweep {
    int threads;
    int streams; /* 1: front to back. -k: k interleaved streams a thread, prefetched 2 KB ahead */
    int nontemporal; /* kind of store */
    int tensors;     /* 2: out = a. 3: out = f(a, b). 4: that, and second = b */
    int extra_reads; /* how many of the inputs are read once before: a, or a and b */
} sweep;

/* out, a, b and second: `bytes` each, aligned to 64 bytes; those that are not used may be anything. */
void limit_run(const sweep *how, void *out, const void *a, const void *b, void *second,
               size_t bytes);

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
