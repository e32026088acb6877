/*
 * half.h — bfloat16 and float16 as their definitions say it, by arithmetic in double: nothing here shares a bit
 * trick with the kernels.
 */
#ifndef HALF_H
#define HALF_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct half_format {
    const char *name;
    int fraction;        /* bits after the leading one */
    int lowest_exponent; /* of a normal number */
    int largest_exponent;
} half_format;

static const half_format half_bfloat16 = { "bfloat16", 7, -126, 127 };
static const half_format half_float16 = { "float16", 10, -14, 15 };

/* The exponent field of infinity and NaN. */
static inline int half_specials(half_format f)
{
    return (1 << (15 - f.fraction)) - 1;
}

/* A NaN that signals has the fraction's first bit clear. */
static inline bool half_is_quiet_nan(half_format f, uint16_t bits)
{
    return (bits & 0x7fff) >> (f.fraction - 1) == (half_specials(f) << 1 | 1);
}

static inline double half_value(half_format f, uint16_t bits)
{
    const int exponent = (bits & 0x7fff) >> f.fraction;
    const int fraction = bits & ((1 << f.fraction) - 1);
    double size;
    if (exponent == half_specials(f))
        size = fraction != 0 ? (double)NAN : (double)INFINITY;
    else if (exponent == 0)
        size = ldexp(fraction, f.lowest_exponent - f.fraction);
    else
        size = ldexp(fraction + (1 << f.fraction), f.lowest_exponent + exponent - 1 - f.fraction);
    return bits & 0x8000 ? -size : size;
}

/* The nearest number of the format, ties to even. */
static inline double half_round(half_format f, double value)
{
    if (value == 0 || !isfinite(value)) return value;
    const int exponent = ilogb(value) < f.lowest_exponent ? f.lowest_exponent : ilogb(value);
    const double place = ldexp(1, exponent - f.fraction);
    const double rounded = nearbyint(value / place) * place;
    return fabs(rounded) < ldexp(1, f.largest_exponent + 1) ? rounded
                                                            : copysign((double)INFINITY, value);
}

/* The bits of a number of the format: it is rounded already. NaN becomes one that is quiet. */
static inline uint16_t half_bits(half_format f, double value)
{
    const int sign = signbit(value) ? 0x8000 : 0;
    const double size = fabs(value);
    int rest;
    if (isnan(value))
        rest = half_specials(f) << f.fraction | 1 << (f.fraction - 1);
    else if (isinf(size))
        rest = half_specials(f) << f.fraction;
    else if (size < ldexp(1, f.lowest_exponent))
        rest = (int)ldexp(size, f.fraction - f.lowest_exponent);
    else /* the leading one adds 1 to the exponent */
        rest = (int)ldexp(size, f.fraction - ilogb(size)) +
               ((ilogb(size) - f.lowest_exponent) << f.fraction);
    return (uint16_t)(sign | rest);
}

#endif
