/*
 * bench.h — one grid with all arrays that a kernel may read or write, between guard pages.
 *
 * Inputs are random, outputs junk until a kernel has run. bench_* run a kernel with a fresh workspace full
 * of junk, for nothing says that it starts as zero.
 */
#ifndef BENCH_H
#define BENCH_H

#include "guarded.h"
#include "plans.h"

typedef struct bench {
    bnk_grid grid;
    ref_grid shape;
    double epsilon, momentum, variance_scale;
    elements input, grad_output, weight, bias;  /* in */
    elements running_mean, running_var;         /* in and out; see bench_reset */
    elements old_running_mean, old_running_var; /* what bench_reset puts there */
    elements output, grad_input;                /* out, as are the following */
    elements grad_weight, grad_bias;
    elements saved_mean, saved_invstd;
    int64_t nonfinite_channels;
    bnk_epilogue epilogue;   /* of all operations; at first none */
    bnk_positions positions; /* at first all */
    ref_statistics *batch;   /* the reference's, per channel */
    ref_statistics *running;
} bench;

/* `variant` moves the buffers against the guard pages, and so against cache lines. */
bench bench_make(bnk_grid grid, int variant);
/* After the input or the running statistics have been changed by hand. */
void bench_refresh_reference(bench *b);
/* Outputs back to junk, running statistics to their old values. */
void bench_reset(bench *b);
/* Buffers are freed by guarded_free_all(). */
void bench_free(bench *b);

void bench_forward(bench *b, const bnk_plan *plan);
void bench_forward_in_place(bench *b, const bnk_plan *plan); /* output starts as the input */
void bench_inference(bench *b, const bnk_plan *plan);

/* Which gradient backward writes. */
enum { GRAD_INPUT = 1, GRAD_WEIGHT = 2, GRAD_BIAS = 4, GRAD_ALL = 7 };
typedef enum where_to { OF_ITS_OWN, OVER_INPUT, OVER_GRAD_OUTPUT } where_to;
/* Uses saved_mean and saved_invstd, or the running statistics if they are to be used. With
 * `to` other than OF_ITS_OWN grad_input starts as a copy of that input, and the kernel works over it. */
void bench_backward(bench *b, const bnk_plan *plan, bool frozen, bool from_running, int gradients,
                    where_to to);

/* A bench's grids: the classes 1, lane - 1, lane, lane + 1, 2 * lane + 3 in every place, and some more. */
int bench_grids(const bnk_grid **grids);

/* For cmocka. */
int bench_teardown(void **state);

#endif
