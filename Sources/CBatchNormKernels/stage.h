/*
 * Operations with an activation, a residual or masked positions, on the leaves of plain ones: a stretch of
 * a row goes into a buffer in L1, what is special about it done on the way, and the leaves work there.
 * So every combination of these needs three passes (stage_body.h) and no leaves of its own. Implemented
 * in stage.c; called by the operations wherever there are extras.
 */
#ifndef BNK_STAGE_H
#define BNK_STAGE_H

#include "leaves.h"
#include "pieces.h"

/* The tensors of an operation, whole, and what works on them. */
typedef struct bnk_operands {
    const bnk_cut *cut;
    const bnk_leaves *leaves; /* of the tensors' type */
    const bnk_leaves *core;   /* of computing type: for buffers */
    const char *x;
    const char *dy; /* NULL: a forward */
    char *y;        /* dx in a backward; may be x or dy; NULL: only the residual's gradient is wanted */
    char *written;  /* y or that gradient: where stretches should end with a cache line */
    int32_t frozen; /* dx depends on dy alone, and comes of the forward's leaf with dy for x */
    const bnk_extras *extras; /* NULL: plain */
} bnk_operands;

bnk_operands bnk_operands_of(const bnk_cut *cut, const void *x, const void *dy, void *y,
                             int32_t frozen, const bnk_extras *extras);

/* Whether applying to whole, unmasked rows is what the plain leaves do. */
int bnk_is_plain(const bnk_operands *o);

/* Which of a row's values take part, from inner value `offset` on; NULL: all of `length`. By rows only. */
const uint8_t *bnk_keep_row(const bnk_operands *o, int64_t row, int64_t offset, int64_t length);

/* The same for the columns of a line: `fold` rows from `row` on, `channels` of each. columns: room for
 * BNK_MAX_COLUMNS. */
const uint8_t *bnk_keep_line(const bnk_operands *o, int64_t row, int64_t fold, int64_t channels,
                             uint8_t *columns);

/* How many positions take part in some rows' inner values [offset, offset + length), and the first of
 * them. */
typedef struct bnk_kept {
    int64_t count, row, offset;
} bnk_kept;
bnk_kept bnk_kept_in(const bnk_operands *o, int64_t row, int64_t rows, int64_t offset,
                     int64_t length);

/* ---- stretches: `count` values from element `at` of the tensors on ---- */

enum { BNK_STRETCH = 512 }; /* values of a row at once */

/* The sums of x, around a pivot or none (NULL); sums are added to. count <= BNK_STRETCH. */
void bnk_stage_row_sums(const bnk_operands *o, int64_t at, int64_t count, const uint8_t *keep,
                        const double *pivot, bnk_lane_sums *sums);
/* The gradient sums of one row, of any length. */
void bnk_stage_row_grad_sums(const bnk_operands *o, int64_t at, int64_t count, int64_t ahead,
                             const uint8_t *keep, double mean, bnk_lane_sums *sums);
void bnk_stage_row_apply(const bnk_operands *o, int64_t at, int64_t count, const uint8_t *keep,
                         const bnk_linear *f);

/* The same by columns; of the sums, for up to BNK_LINES lines that are `stride` elements apart, each with its
 * `keep`. count <= BNK_MAX_COLUMNS. */
enum { BNK_LINES = 4 };
void bnk_stage_column_sums(const bnk_operands *o, int64_t at, int64_t lines, int64_t stride,
                           int64_t count, const uint8_t *const keep[BNK_LINES], const double *pivot,
                           double *sum, double *squares);
void bnk_stage_column_grad_sums(const bnk_operands *o, int64_t at, int64_t lines, int64_t stride,
                                int64_t count, const uint8_t *const keep[BNK_LINES],
                                const double *mean, double *sum, double *product);
void bnk_stage_line_apply(const bnk_operands *o, int64_t at, int64_t count, const uint8_t *keep,
                          const bnk_linears *f);

#endif
