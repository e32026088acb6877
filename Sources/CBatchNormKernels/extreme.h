/*
 * Channels whose coefficients the element type cannot hold, or whose products could overflow or vanish on
 * the way to a result that does not: a constant channel of 1e36, a weight that has decayed to a
 * subnormal, an epsilon of 1e-70. Coefficients are a number times a power of two until they meet
 * their operand. Slow, and by plain multiplications and additions alone, so that every CPU gives the
 * same bits.
 */
#ifndef BNK_EXTREME_H
#define BNK_EXTREME_H

#include <math.h>
#include <stdint.h>

/* number * 2^exponent, with |number| in [0.5, 1), or 0, infinity or NaN and exponent 0. */
typedef struct bnk_scaled {
    double number;
    int exponent;
} bnk_scaled;

static inline bnk_scaled bnk_scaled_of(double value)
{
    bnk_scaled s = { value, 0 };
    if (value != 0 && isfinite(value)) s.number = frexp(value, &s.exponent);
    return s;
}

static inline bnk_scaled bnk_scaled_product(bnk_scaled a, bnk_scaled b)
{
    bnk_scaled s = bnk_scaled_of(a.number * b.number);
    if (s.number != 0 && isfinite(s.number)) s.exponent += a.exponent + b.exponent;
    return s;
}

static inline bnk_scaled bnk_scaled_sum(bnk_scaled a, bnk_scaled b)
{
    if (a.number == 0 && b.number == 0) return bnk_scaled_of(a.number + b.number);
    if (b.number == 0 || !isfinite(a.number))
        return isfinite(b.number) ? a : bnk_scaled_of(a.number + b.number);
    if (a.number == 0 || !isfinite(b.number)) return b;
    const int exponent = a.exponent > b.exponent ? a.exponent : b.exponent;
    bnk_scaled s = bnk_scaled_of(ldexp(a.number, a.exponent - exponent) +
                                 ldexp(b.number, b.exponent - exponent));
    if (s.number != 0) s.exponent += exponent;
    return s;
}

/* As a float64: infinite or 0 where that has no room. */
static inline double bnk_scaled_value(bnk_scaled s)
{
    return ldexp(s.number, s.exponent);
}

/* result = (x - mean - mean_rest) * gain + offset + dy * factor; without the last term in a forward, and without the
 * first in a backward through frozen statistics. */
typedef struct bnk_extreme {
    double mean, mean_rest;
    bnk_scaled gain, offset, factor;
} bnk_extreme;

#endif
