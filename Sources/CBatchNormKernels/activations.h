/*
 * The activations, a row each: all that the kernels know of a kind.
 *
 *     kind      its enumerator, BNK_ACTIVATION_...
 *     forward   of v, which is batch normalization + residual
 *     blocked   what becomes of a gradient dy where the forward did not let through; elsewhere it stays as it is
 *
 * Backward needs of all of these only where the forward let through: the activation_mask's bit, or the sign of its
 * output. A kind whose derivative is not decided by that sign has no place here yet: it would need a column of its own, and v
 * computed once more.
 *
 * Rows are written once for vectors and single values: whoever expands them defines CHOOSE(which, yes, no), `zero`, and
 * `slope`, which is a single value. They are written so that NaN passes.
 */
#ifndef BNK_ACTIVATIONS_H
#define BNK_ACTIVATIONS_H

#include "bnk.h"

#define BNK_ACTIVATIONS(ROW)                                             \
    ROW(RELU, CHOOSE(v <= zero, zero, v), zero)                          \
    ROW(LEAKY_RELU, CHOOSE(v <= zero, slope == 0 ? zero : v * slope, v), \
        slope == 0 ? zero : dy * slope)

/* A kind without a row would be none. */
#define BNK_COUNT_ROW(kind, forward, blocked) +1
_Static_assert(1 BNK_ACTIVATIONS(BNK_COUNT_ROW) == BNK_ACTIVATION_COUNT, "every kind has a row");
#undef BNK_COUNT_ROW

#endif
