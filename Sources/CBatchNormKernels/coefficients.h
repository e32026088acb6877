/*
 * From a channel's statistics to the numbers that the apply leaves use, formed in float64.
 *
 * y = (x - mean) * invstd * weight + bias is applied as t = x * scale + center, y = t * slope +
 * offset. The center is -mean * scale rounded to the element type; what the rounding took goes into
 * the offset. So no mean, however large, costs any digits. In a forward the scale is 1: then t is exact
 * or rounded once for any x, however large or small. For gradients, whose slope has invstd in it three times, it
 * is the power of two below invstd, so that t is (x - mean) / deviation within a factor of 2.
 *
 * Where the element type cannot hold one of these numbers, or t or a product could overflow where the
 * result does not, the channel is marked by a scale of 0 and goes the way of extreme.h.
 */
#ifndef BNK_COEFFICIENTS_H
#define BNK_COEFFICIENTS_H

#include <float.h>
#include <math.h>
#include <stdbool.h>
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

/* Channels whose coefficients are formed together: in straight loops over arrays of float64, which the compiler makes
 * vectors of. What is not usual is found out for all of them, and then seen to one by one. */
enum { BNK_TOGETHER = 64 };

/* A function that is compiled for what each call knows: the element type; that there is one channel, without a loop; that the
 * caller is compiled for vectors of float64. */
#define BNK_FORM static inline __attribute__((always_inline))

/* Such a caller; on x86-64 for AVX2, whose vectors are the shortest that are worth it. */
#if defined(__x86_64__)
#define BNK_BY_VECTORS __attribute__((target("avx2")))
#else
#define BNK_BY_VECTORS
#endif

/* Before a loop: vectors are enough, for it is too short to be worth a longer body. */
#define BNK_SHORT_LOOP _Pragma("clang loop interleave(disable)")

/* Whether to call it; else channels are finished one by one. */
static inline bool bnk_takes_vectors(const bnk_cut *cut, int64_t channels)
{
#if defined(__x86_64__)
    if (cut->plan.isa == BNK_ISA_GENERIC) return false;
#else
    (void)cut;
#endif
    return channels > 1;
}

/* `count` elements of a parameter array from the `first`-th on. */
BNK_FORM void bnk_get_some(const void *values, int32_t is_double, int64_t first, int64_t count,
                           double absent, double *to)
{
    if (!values) {
        BNK_SHORT_LOOP
        for (int64_t i = 0; i < count; i++) to[i] = absent;
    } else if (is_double) {
        BNK_SHORT_LOOP
        for (int64_t i = 0; i < count; i++) to[i] = ((const double *)values)[first + i];
    } else {
        BNK_SHORT_LOOP
        for (int64_t i = 0; i < count; i++) to[i] = (double)((const float *)values)[first + i];
    }
}

BNK_FORM void bnk_set_some(void *values, int32_t is_double, int64_t first, int64_t count,
                           const double *from)
{
    if (is_double) {
        BNK_SHORT_LOOP
        for (int64_t i = 0; i < count; i++) ((double *)values)[first + i] = from[i];
    } else {
        BNK_SHORT_LOOP
        for (int64_t i = 0; i < count; i++) ((float *)values)[first + i] = (float)from[i];
    }
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
    return v == 0 ? 0 : 1 / __builtin_elementwise_sqrt(v); /* sqrt() may set errno: no vectors */
}

/* The largest power of two that is not above a positive invstd, by cutting off the fraction's bits; 1 where there
 * is none. */
static inline double bnk_scale(double invstd)
{
    const uint64_t exponent_bits = 0x7ff0000000000000;
    uint64_t bits;
    double power;
    memcpy(&bits, &invstd, sizeof bits);
    bits &= exponent_bits;
    memcpy(&power, &bits, sizeof power);
    return power > 0 && power <= DBL_MAX ? power : 1;
}

/* y = t * slope + offset with t = x * scale + center; for gradients y = t * (slope + slope_rest) +
 * offset + dy * factor, where two more roundings would else make the error too large. In the
 * element type's precision. */
typedef struct bnk_linear {
    double scale, center, slope, slope_rest, offset, factor;
} bnk_linear;

/* (x - mean) * scale * slope + bias */
static inline bnk_linear bnk_linear_of(double scale, double mean, double mean_rest, double slope,
                                       double bias, int32_t is_double)
{
    bnk_linear f;
    f.scale = bnk_round(scale, is_double);
    f.center = bnk_round(-mean * f.scale, is_double);
    f.slope = bnk_round(slope, is_double);
    f.slope_rest = bnk_round(slope - f.slope, is_double);
    const double lost = (f.center + mean * f.scale) + mean_rest * f.scale;
    f.offset = bnk_round(bias - lost * f.slope, is_double);
    f.factor = 0;
    return f;
}

/* ---- channels that these numbers cannot serve ---- */

/* Whether `rounded` is a number of the element type with all its digits, or 0, or NaN. */
static inline bool bnk_is_whole(double rounded, int32_t is_double)
{
    const double size = fabs(rounded);
    return !(size > (is_double ? DBL_MAX : (double)FLT_MAX)) &&
           !(size < (is_double ? DBL_MIN : (double)FLT_MIN) && size > 0);
}

/* Whether a * b, which is `product`, has vanished in float64. */
static inline bool bnk_has_vanished(double a, double b, double product)
{
    return fabs(product) < DBL_MIN && a != 0 && b != 0;
}

/* Whether x * scale + center overflows for no x whose result does not: up to half a unit in the last place of
 * the largest number, a center leaves it alone. */
static inline bool bnk_is_central(double center, int32_t is_double)
{
    return !(fabs(center) >= (is_double ? 0x1p969 : 0x1p102));
}

/* What most numbers are; far from the ends of either element type. Without branches, here and in what is made of it, so
 * that many are looked at together. */
static inline bool bnk_is_small(double value)
{
    return fabs(value) < 0x1p90;
}
static inline bool bnk_is_moderate(double value)
{
    bool moderate = bnk_is_small(value);
    moderate &= fabs(value) > 0x1p-100;
    return moderate;
}

/* Of a forward: whether the coefficients are usual numbers, which serve; and whether they serve. */
static inline bool bnk_is_usual_forward(const bnk_linear *f)
{
    bool usual = bnk_is_moderate(f->slope);
    usual &= bnk_is_small(f->center);
    usual &= bnk_is_small(f->offset);
    return usual;
}

static inline bool bnk_serves_forward(const bnk_linear *f, double weight, double invstd,
                                      int32_t is_double)
{
    const double gain = weight * invstd;
    return bnk_is_usual_forward(f) ||
           (bnk_is_whole(f->slope, is_double) && bnk_is_central(f->center, is_double) &&
            !(fabs(f->offset) > DBL_MAX) && !(f->slope == 0 && gain != 0) &&
            !bnk_has_vanished(weight, invstd, gain));
}

/* The same of a gradient. `correlation` is invstd * mean(dy * c). Slope and offset leave room for the sum of all
 * terms, t being a few times the square root of the number of values at most. */
static inline bool bnk_is_usual_gradient(const bnk_linear *f)
{
    bool usual = bnk_is_moderate(f->scale);
    usual &= bnk_is_moderate(f->slope);
    usual &= bnk_is_moderate(f->factor);
    usual &= bnk_is_small(f->center);
    usual &= bnk_is_small(f->offset);
    return usual;
}

static inline bool bnk_serves_gradient(const bnk_linear *f, double weight, double invstd,
                                       double mean_product, double correlation, int32_t is_double)
{
    if (bnk_is_usual_gradient(f)) return true;
    return bnk_is_whole(f->scale, is_double) && f->scale != 0 &&
           bnk_is_central(f->center, is_double) && bnk_is_whole(f->slope, is_double) &&
           !(fabs(f->slope) >= (is_double ? 0x1p990 : 0x1p95)) &&
           !(fabs(f->offset) >= (is_double ? 0x1p1022 : 0x1p126)) &&
           bnk_is_whole(f->factor, is_double) && !(f->factor == 0 && weight != 0 && invstd != 0) &&
           !(f->slope == 0 && f->factor != 0 && correlation != 0) &&
           !bnk_has_vanished(invstd, mean_product, correlation);
}

/* The mark. */
static inline bool bnk_is_extreme(const bnk_linear *f)
{
    return f->scale == 0;
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
    bnk_set(to->scale, is_double, i, f.scale);
    bnk_set(to->center, is_double, i, f.center);
    bnk_set(to->slope, is_double, i, f.slope);
    bnk_set(to->slope_rest, is_double, i, f.slope_rest);
    bnk_set(to->offset, is_double, i, f.offset);
    bnk_set(to->factor, is_double, i, f.factor);
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

/* The last word on coefficients that are not usual: plain, or the mark where they do not serve. */
static inline void bnk_linears_settle(const bnk_linears *to, int32_t is_double, int64_t i,
                                      bnk_linear f, bool serve)
{
    const bnk_linear extreme = { 0 },
                     plain = { bnk_plain(f.scale),      bnk_plain(f.center), bnk_plain(f.slope),
                               bnk_plain(f.slope_rest), bnk_plain(f.offset), bnk_plain(f.factor) };
    bnk_linears_set(to, is_double, i, serve ? plain : extreme);
}

static inline void bnk_linears_settle_forward(const bnk_linears *to, int32_t is_double, int64_t i,
                                              double weight, double invstd)
{
    const bnk_linear f = bnk_linears_get(to, is_double, i);
    bnk_linears_settle(to, is_double, i, f, bnk_serves_forward(&f, weight, invstd, is_double));
}

static inline void bnk_linears_settle_gradient(const bnk_linears *to, int32_t is_double, int64_t i,
                                               double weight, double invstd, double mean_product,
                                               double correlation)
{
    const bnk_linear f = bnk_linears_get(to, is_double, i);
    bnk_linears_settle(
        to, is_double, i, f,
        bnk_serves_gradient(&f, weight, invstd, mean_product, correlation, is_double));
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
