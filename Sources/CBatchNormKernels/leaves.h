/*
 * The leaves: straight, single-threaded loops over one tile, one table of them per element type and
 * instruction set. Every table gives the same bits. Bodies: leaves_body.h; callers: the operations.
 *
 * "row" leaves work on rows x length values of ONE channel, whose parameters are scalars. "column"
 * leaves work on rows x columns values, each column with parameters and sums of its own. `stride`
 * counts elements from row to row. With `ahead` the sums' rows come from memory and are prefetched; the
 * column applications prefetch what lies `ahead` elements further on.
 * Outputs may be the very memory of an input, never overlap it otherwise.
 */
#ifndef BNK_LEAVES_H
#define BNK_LEAVES_H

#include <stdint.h>

#include "bnk.h"
#include "coefficients.h"

/* t = x * scale + center, y = t * slope + offset, dx = t * (slope + slope_rest) + offset + dy * factor:
 * each product and sum rounded once, together. See coefficients.h for what the numbers are. */
typedef struct bnk_leaves {
    /* sums[0] = sum(x - pivot), sums[1] = sum((x - pivot)^2) */
    void (*row_sums)(const void *x, int64_t rows, int64_t stride, int64_t length, double pivot,
                     double sums[2]);
    void (*row_apply)(const void *x, void *y, int64_t rows, int64_t stride, int64_t length,
                      const bnk_linear *f, int stream);
    /* sums[0] = sum(dy), sums[1] = sum(dy * (x - mean)) */
    void (*row_grad_sums)(const void *x, const void *dy, int64_t rows, int64_t stride,
                          int64_t length, double mean, double sums[2]);
    void (*row_grad_apply)(const void *x, const void *dy, void *dx, int64_t rows, int64_t stride,
                           int64_t length, const bnk_linear *f, int stream);

    /* The same by columns; sums are added to what the arrays hold. */
    void (*column_sums)(const void *x, int64_t rows, int64_t stride, int64_t columns, int ahead,
                        const double *pivot, double *sum, double *sum_squares);
    void (*column_apply)(const void *x, void *y, int64_t rows, int64_t stride, int64_t columns,
                         int64_t ahead, const bnk_linears *f, int stream);
    void (*column_grad_sums)(const void *x, const void *dy, int64_t rows, int64_t stride,
                             int64_t columns, int ahead, const double *mean, double *sum,
                             double *sum_product);
    void (*column_grad_apply)(const void *x, const void *dy, void *dx, int64_t rows, int64_t stride,
                              int64_t columns, int64_t ahead, const bnk_linears *f, int stream);
} bnk_leaves;

extern const bnk_leaves bnk_leaves_float_generic, bnk_leaves_double_generic;
#if defined(__x86_64__)
extern const bnk_leaves bnk_leaves_float_avx2, bnk_leaves_double_avx2;
extern const bnk_leaves bnk_leaves_float_avx512, bnk_leaves_double_avx512;
#endif

/* The table for a plan's instruction set (leaves.c). */
const bnk_leaves *bnk_leaves_for(int32_t isa, int32_t is_double);

#endif
