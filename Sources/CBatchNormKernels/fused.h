/*
 * Operations with an activation, a residual or masked positions: which values are masked, and which leaf
 * takes a stretch of them.
 */
#ifndef BNK_FUSED_H
#define BNK_FUSED_H

#include "operands.h"

/* Where stretches should end with a cache line. */
static inline const char *bnk_written(const bnk_operands *o)
{
    return o->y ? o->y : o->extras->grad_residual;
}

/* Whether the plain leaves apply to values of which none is masked, or sum them. */
int bnk_applies_plainly(const bnk_operands *o);
int bnk_sums_plainly(const bnk_operands *o);

/* ---- masks ---- */

/* Which of a row's values take part, from inner value `offset` on; NULL: all of `length`. */
const uint8_t *bnk_keep_row(const bnk_operands *o, int64_t row, int64_t offset, int64_t length);

/* The same for the columns of a line: `fold` rows from `row` on, `channels` of each. columns: room for
 * BNK_MAX_COLUMNS. */
const uint8_t *bnk_keep_line(const bnk_operands *o, int64_t row, int64_t fold, int64_t channels,
                             uint8_t *columns);

/* If the first ones of `length` values take part and no others do, as in a padded sequence, how many these
 * are; else -1. */
int64_t bnk_kept_prefix(const uint8_t *keep, int64_t length);

/* How many positions take part in some rows' inner values [offset, offset + length), and the first of
 * them. */
typedef struct bnk_kept {
    int64_t count, row, offset;
} bnk_kept;
bnk_kept bnk_kept_in(const bnk_operands *o, int64_t row, int64_t rows, int64_t offset,
                     int64_t length);

/* ---- `count` values from element `at` of the tensors on, of a row or a line ---- */

void bnk_fused_row(const bnk_operands *o, int64_t at, int64_t count, const uint8_t *keep,
                   const bnk_linear *f);
void bnk_fused_line(const bnk_operands *o, int64_t at, int64_t count, const uint8_t *keep,
                    const bnk_linears *f);

/* The gradient's sums of some rows or lines that lie `stride` elements, and their masks keep_stride bytes,
 * apart. */
void bnk_gated_row_sums(const bnk_operands *o, int64_t at, int64_t rows, int64_t stride,
                        int64_t count, const uint8_t *keep, int64_t ahead, double mean,
                        bnk_lane_sums *sums);
void bnk_gated_column_sums(const bnk_operands *o, int64_t at, int64_t lines, int64_t stride,
                           int64_t count, const uint8_t *keep, int64_t keep_stride,
                           const double *mean, double *sum, double *product);

/* The sums of x around a pivot, or around none, without what is masked. By rows count <= BNK_STRETCH. */
void bnk_masked_row_sums(const bnk_operands *o, int64_t at, int64_t count, const uint8_t *keep,
                         const double *pivot, bnk_lane_sums *sums);
void bnk_masked_line_sums(const bnk_operands *o, int64_t at, int64_t count, const uint8_t *keep,
                          const double *pivot, double *sum, double *squares);

#endif
