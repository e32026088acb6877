/* Operations with an activation, a residual or masked positions: which leaf takes a stretch of them. */
#ifndef BNK_EPILOGUE_H
#define BNK_EPILOGUE_H

#include "operands.h"
#include "sums.h"

/* Where stretches should end with a cache line. */
static inline const char *bnk_written(const bnk_operands *o)
{
    return o->y ? o->y : o->epilogue.grad_residual;
}

/* Whether the plain leaves apply to values of which none is masked, */
static inline int bnk_applies_plainly(const bnk_operands *o)
{
    const bnk_epilogue *e = &o->epilogue;
    return e->activation.kind == BNK_ACTIVATION_NONE && !e->residual &&
           !e->written_activation_mask && !e->grad_residual;
}

/* to all values, */
static inline int bnk_is_plain(const bnk_operands *o)
{
    return bnk_applies_plainly(o) && !o->positions.mask;
}

/* or sum them. */
int bnk_sums_plainly(const bnk_operands *o);

/* ---- `count` values from element `at` of the tensors on, of a row or a line ---- */

void bnk_epilogue_row(const bnk_operands *o, int64_t at, int64_t count, const uint8_t *positions,
                      const bnk_linear *f);
void bnk_epilogue_line(const bnk_operands *o, int64_t at, int64_t count, const uint8_t *positions,
                       const bnk_linears *f);

/* Some rows of one channel, or lines, that lie `stride` elements apart. Return whether they are of a usual operation, lie
 * so that they can be taken at once, and have been. */
int bnk_usual_rows(const bnk_operands *o, int64_t at, int64_t rows, int64_t stride, int64_t count,
                   const bnk_linear *f);
int bnk_usual_lines(const bnk_operands *o, int64_t at, int64_t lines, int64_t stride, int64_t count,
                    const bnk_linears *f);

/* Adds the gradient of some rows or lines that lie `stride` elements, and their masks positions_stride bytes, apart to
 * sums around means. */
void bnk_gated_row_sums(const bnk_operands *o, int64_t at, int64_t rows, int64_t stride,
                        int64_t count, const uint8_t *positions, int64_t ahead, bnk_row_sums *sums);
void bnk_gated_column_sums(const bnk_operands *o, int64_t at, int64_t lines, int64_t stride,
                           int64_t count, const uint8_t *positions, int64_t positions_stride,
                           bnk_column_sums *sums);
/* The same in chains, of one group: see column_gated_chains. */
void bnk_gated_column_chains(const bnk_operands *o, int64_t at, int lines, int64_t stride,
                             int64_t second, int64_t count, const uint8_t *positions,
                             int64_t positions_stride, bnk_column_sums *sums);

#endif
