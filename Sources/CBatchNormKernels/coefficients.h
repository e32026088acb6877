/*
 * From a channel's statistics to the numbers that the apply leaves use, formed in float64.
 *
 * y = (x - mean) * invstd * weight + bias is applied as t = x * scale + center, y = t * slope +
 * offset. The scale is the power of two below invstd, so that t is (x - mean) / deviation within a
 * factor of 2, free of error but for one rounding, and nothing overflows or vanishes however large
 * or small the values are. The center is -mean * scale rounded to the element type; what the
 * rounding took goes into the offset. So no mean, however large, costs any digits.
 */
#ifndef BNK_COEFFICIENTS_H
#define BNK_COEFFICIENTS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "bnk.h"

/* Element `i` of a parameter array; `absent` if there is none. */
static inline double bnk_get(const void *values, int32_t is_double, int64_t i, double absent)
{
    if (!values) return absent;
    return is_double ? ((const double *)values)[i] : (double)((const float *)values)[i];
}

static inline void bnk_set(void *values, int32_t is_double, int64_t i, double value)
{
    if (is_double)
        ((double *)values)[i] = value;
    else
        ((float *)values)[i] = (float)value;
}

/* `value` in the element type. */
static inline double bnk_round(double value, int32_t is_double)
{
    return is_double ? value : (double)(float)value;
}

/* 1 / sqrt(variance + epsilon); 0 for 0, as PyTorch; NaN for NaN and for negative sums. */
static inline double bnk_invstd(double variance, double epsilon)
{
    const double v = variance + epsilon;
    return v == 0 ? 0 : 1 / sqrt(v);
}

/* The largest power of two that is not above invstd, by cutting off the fraction's bits; 1 where there
 * is none. Where computing in float not above 2^127, the largest there: deviations may be smaller than that, but
 * then so are the values' distances. */
static inline double bnk_scale(double invstd, int32_t is_double)
{
    const uint64_t exponent_bits = 0x7ff0000000000000;
    uint64_t bits;
    memcpy(&bits, &invstd, sizeof bits);
    bits &= exponent_bits;
    if (bits == 0 || bits == exponent_bits) return 1;
    memcpy(&invstd, &bits, sizeof bits);
    return !is_double && invstd > 0x1p127 ? 0x1p127 : invstd;
}

/* y = t * slope + offset with t = x * scale + center; for gradients y = t * (slope + slope_rest) +
 * offset + dy * factor, where two more roundings would else make the error too large. In the
 * element type's precision. */
typedef struct bnk_linear {
    double scale, center, slope, slope_rest, offset, factor;
} bnk_linear;

/* (x - mean) * gain + bias, where gain is about invstd. */
static inline bnk_linear bnk_linear_of(double mean, double mean_rest, double invstd, double gain,
                                       double bias, int32_t is_double)
{
    bnk_linear f;
    f.scale = bnk_round(bnk_scale(invstd, is_double), is_double);
    f.center = bnk_round(-mean * f.scale, is_double);
    f.slope = bnk_round(gain / f.scale, is_double);
    f.slope_rest = bnk_round(gain / f.scale - f.slope, is_double);
    const double lost = (f.center + mean * f.scale) + mean_rest * f.scale;
    f.offset = bnk_round(bias - lost * f.slope, is_double);
    f.factor = 0;
    return f;
}

enum { BNK_LINEARS = 6 };

/* The same for many channels or columns: arrays of the element type. */
typedef struct bnk_linears {
    void *scale, *center, *slope, *slope_rest, *offset, *factor;
} bnk_linears;

/* A NaN without payload, which a caller's weight may have brought: see bnk_narrow_bf16. */
static inline double bnk_plain(double value)
{
    return isnan(value) ? (double)NAN : value;
}

static inline void bnk_linears_set(const bnk_linears *to, int32_t is_double, int64_t i,
                                   bnk_linear f)
{
    bnk_set(to->scale, is_double, i, bnk_plain(f.scale));
    bnk_set(to->center, is_double, i, bnk_plain(f.center));
    bnk_set(to->slope, is_double, i, bnk_plain(f.slope));
    bnk_set(to->offset, is_double, i, bnk_plain(f.offset));
    bnk_set(to->factor, is_double, i, bnk_plain(f.factor));
    bnk_set(to->slope_rest, is_double, i, bnk_plain(f.slope_rest));
}

static inline bnk_linear bnk_linears_get(const bnk_linears *from, int32_t is_double, int64_t i)
{
    bnk_linear f;
    f.scale = bnk_get(from->scale, is_double, i, 0);
    f.center = bnk_get(from->center, is_double, i, 0);
    f.slope = bnk_get(from->slope, is_double, i, 0);
    f.offset = bnk_get(from->offset, is_double, i, 0);
    f.factor = bnk_get(from->factor, is_double, i, 0);
    f.slope_rest = bnk_get(from->slope_rest, is_double, i, 0);
    return f;
}

/* BNK_LINEARS arrays of `length` elements in one piece of memory. */
static inline bnk_linears bnk_linears_in(void *memory, int64_t length, int32_t is_double)
{
    char *p = memory;
    const int64_t bytes = length * (is_double ? 8 : 4);
    const bnk_linears f = {
        p, p + bytes, p + 2 * bytes, p + 3 * bytes, p + 4 * bytes, p + 5 * bytes
    };
    return f;
}

/* The bytes of those of all channels. */
static inline int64_t bnk_linears_size(const bnk_grid *grid)
{
    return BNK_LINEARS * grid->channels * (grid->is_double ? 8 : 4);
}

/* Those from channel `i` on. */
static inline bnk_linears bnk_linears_from(const bnk_linears *f, int64_t i, int32_t is_double)
{
    const int64_t bytes = i * (is_double ? 8 : 4);
    const bnk_linears from = { (char *)f->scale + bytes,  (char *)f->center + bytes,
                               (char *)f->slope + bytes,  (char *)f->slope_rest + bytes,
                               (char *)f->offset + bytes, (char *)f->factor + bytes };
    return from;
}

#endif
