/*
 * Sums of float64 tensors, whose results have no digits to spare. A chain of additions may be off by as many
 * roundings as it is long, and on data of few distinct values, which all round alike, it is. So leaves add up
 * blocks only, and blocks are added together with what each of these additions loses (Knuth, The Art of
 * Computer Programming 2, 4.2.2, theorem B). Where a block ends follows from the shape alone.
 *
 * Sums of what is computed with in float32 are float64 too and have digits to spare: they take no part here.
 */
#ifndef BNK_CARRY_H
#define BNK_CARRY_H

#include <math.h>
#include <stdint.h>

enum {
    BNK_BLOCK_VALUES = 512, /* of each of up to four rows */
    BNK_BLOCK_LINES = 64    /* by columns */
};

/* sums += own, own = 0; `lost` takes up what does not fit. */
static inline void bnk_carry(double *restrict own, double *restrict sums, double *restrict lost,
                             int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        const double a = sums[i], b = own[i], sum = a + b, part = sum - a;
        lost[i] += (a - (sum - part)) + (b - part);
        sums[i] = sum;
        own[i] = 0;
    }
}

/* What was lost of an infinite sum is none. */
static inline double bnk_carried(double sum, double lost)
{
    return isfinite(sum) ? sum + lost : sum;
}

#endif
