/* The leaves for any CPU: what the compiler makes of sixteen lanes without extensions. */
#include <math.h>
#include <string.h>

#include "halves.h"
#include "leaves.h"
#include "vector.h"

#if defined(__aarch64__) || defined(__FMA__)
#define BNK_FMA_float(a, b, c) __builtin_elementwise_fma(a, b, c)
#define BNK_FMA_double(a, b, c) __builtin_elementwise_fma(a, b, c)
#define BNK_FMA_ONE_float(a, b, c) __builtin_fmaf(a, b, c)
#define BNK_FMA_ONE_double(a, b, c) __builtin_fma(a, b, c)
#else
/*
 * A CPU without fused multiply-add: the same bits by other means. The product of two floats is
 * exact in double; adding in double rounded to odd, then rounding to float, rounds as if once
 * (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", IEEE Trans. Comput. 57,
 * 2008).
 */
static __attribute__((noinline)) float fma_float(float a, float b, float c)
{
    const double product = (double)a * (double)b;
    double sum = product + (double)c;
    const double part = sum - product;
    const double lost = (product - (sum - part)) + ((double)c - part);
    if (lost < 0 || lost > 0) { /* inexact, and no NaN */
        int64_t bits;
        memcpy(&bits, &sum, sizeof bits);
        if ((bits & 1) == 0) bits += (lost > 0) == (sum > 0) ? 1 : -1;
        memcpy(&sum, &bits, sizeof bits);
    }
    return (float)sum;
}

/* The same of sixteen. Not inlined, for it stands in many places. */
static __attribute__((noinline)) bnk_f32x16 fma_floats(bnk_f32x16 a, bnk_f32x16 b, bnk_f32x16 c)
{
    typedef int64_t words __attribute__((vector_size(128)));
    const bnk_f64x16 product =
        __builtin_convertvector(a, bnk_f64x16) * __builtin_convertvector(b, bnk_f64x16);
    const bnk_f64x16 addend = __builtin_convertvector(c, bnk_f64x16), sum = product + addend;
    const bnk_f64x16 part = sum - product;
    const bnk_f64x16 lost = (product - (sum - part)) + (addend - part);
    const words away = (lost > 0) == (sum > 0), inexact = (lost < 0) | (lost > 0);
    words bits = (words)sum;
    bits += inexact & ((bits & 1) - 1) & ((away & 2) - 1); /* an even one moves by 1 or -1 */
    return __builtin_convertvector((bnk_f64x16)bits, bnk_f32x16);
}

static __attribute__((noinline)) bnk_f64x8 fma_doubles(bnk_f64x8 a, bnk_f64x8 b, bnk_f64x8 c)
{
#pragma clang loop unroll(disable) vectorize(disable)
    for (int i = 0; i < 8; i++) c[i] = fma(a[i], b[i], c[i]);
    return c;
}
#define BNK_FMA_float(a, b, c) fma_floats(a, b, c)
#define BNK_FMA_double(a, b, c) fma_doubles(a, b, c)
#define BNK_FMA_ONE_float(a, b, c) fma_float(a, b, c)
#define BNK_FMA_ONE_double(a, b, c) fma(a, b, c)
#endif

/* See subtract_by_fma.h. */
#define BNK_ONES(vector) ((vector){ 0 })
#define BNK_SUBTRACT(a, b, one) ((void)(one), (a) - (b))

static __attribute__((noinline)) bnk_f32x16 widen_f16(bnk_u16x16 stored)
{
    return bnk_widen_f16_by_bits(stored);
}

static __attribute__((noinline)) bnk_u16x16 narrow_f16(bnk_f32x16 line)
{
    return bnk_narrow_f16_by_bits(line);
}

#define BNK_WIDEN_f16(stored) widen_f16(stored)
#define BNK_WIDEN_HALF_f16(stored) bnk_widen_half_f16_by_bits(stored)
#define BNK_NARROW_f16(line) narrow_f16(line)

#define BNK_BYTES_AHEAD 0
#define BNK_FOR_SPEED 0
#define BNK_UNROLL_GROUP _Pragma("clang loop unroll(disable)")
#define BNK_ISA generic
/* What runs on machines of long ago need not fill the library. */
#pragma clang attribute push(__attribute__((minsize)), apply_to = function)
#include "leaves_types.h"
#pragma clang attribute pop
