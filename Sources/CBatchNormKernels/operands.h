/* What an operation works on: its tensors, whole, and the leaves for them. */
#ifndef BNK_OPERANDS_H
#define BNK_OPERANDS_H

#include "extreme.h"
#include "leaves.h"
#include "pieces.h"

/* What some channels were reduced to, from channel `first` on: see reduction.h. NULL: nowhere in memory. */
typedef struct bnk_results {
    const void *values;
    int64_t first;
} bnk_results;

typedef struct bnk_operands {
    const bnk_cut *cut;
    const bnk_leaves *leaves; /* of the tensors' type */
    const void *x;
    const void *dy; /* NULL: a forward */
    void *y; /* dx in a backward; may be x or dy; NULL: only the residual's gradient is wanted */
    int32_t frozen; /* dx depends on dy alone, and comes of the forward's formula with dy for x */
    bnk_epilogue epilogue;
    bnk_positions positions;

    /* The coefficients of an extreme channel. */
    bnk_extreme (*extreme)(const void *operation, int64_t channel, bnk_results results);
    const void *operation;
} bnk_operands;

/* Element `at` of one of the tensors; NULL if there is none. As strchr, leaves it to the caller to write only where
 * that is allowed. */
static inline void *bnk_value(const bnk_operands *o, const void *tensor, int64_t at)
{
    return tensor ? (char *)tensor + at * o->cut->element : NULL;
}

/* Before a forward is applied: tasks write the bits of their values, and the last byte may have more. */
static inline void bnk_clear_last_bits(const bnk_operands *o)
{
    uint8_t *bits = o->epilogue.written_activation_mask;
    if (!o->dy && bits) bits[(o->cut->grid.rows * o->cut->stride - 1) / 8] = 0;
}

#endif
