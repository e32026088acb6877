/*
 * The 16-bit floating-point types, in which tensors may be stored: bfloat16 (the upper half of a float)
 * and float16 (IEEE 754 binary16). Values are widened exactly and narrowed by one rounding to nearest
 * even; subnormals are kept, NaN stays NaN and becomes quiet.
 *
 * Every instruction set gives these bits. For float16 the CPU's conversions (F16C) do; of bfloat16's they
 * would not: VCVTNEPS2BF16 takes subnormals for zero.
 */
#ifndef BNK_HALVES_H
#define BNK_HALVES_H

#include <stdint.h>
#include <string.h>

#include "bnk.h"
#include "vector.h"

typedef uint16_t bnk_bf16, bnk_f16;

typedef uint16_t bnk_u16x16 __attribute__((vector_size(32)));
typedef uint16_t bnk_u16x16_at __attribute__((vector_size(32), aligned(2), may_alias));
typedef uint16_t bnk_u16x16_line __attribute__((vector_size(32), aligned(32), may_alias));
/* A cache line's. */
typedef uint16_t bnk_u16x32 __attribute__((vector_size(64)));
typedef uint16_t bnk_u16x32_at __attribute__((vector_size(64), aligned(2), may_alias));
typedef uint16_t bnk_u16x32_line __attribute__((vector_size(64), aligned(64), may_alias));
typedef uint16_t bnk_u16x8 __attribute__((vector_size(16)));
typedef uint16_t bnk_u16x8_at __attribute__((vector_size(16), aligned(2), may_alias));
typedef uint32_t bnk_uint16 __attribute__((vector_size(64)));
typedef uint32_t bnk_uint16_at __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t bnk_uint8 __attribute__((vector_size(32)));

/* ---- sixteen values ---- */

static inline bnk_uint16 bnk_pick(bnk_i32x16 which, bnk_uint16 yes, bnk_uint16 no)
{
    return ((bnk_uint16)which & yes) | (~(bnk_uint16)which & no);
}

static inline bnk_f32x16 bnk_widen_bf16(bnk_u16x16 stored)
{
    return (bnk_f32x16)(__builtin_convertvector(stored, bnk_uint16) << 16);
}

static inline bnk_f32x8 bnk_widen_half_bf16(bnk_u16x8 stored)
{
    return (bnk_f32x8)(__builtin_convertvector(stored, bnk_uint8) << 16);
}

/* The upper half is then what is to be stored. Of NaNs the lower half must be 0, so that rounding leaves them alone: as
 * it is of all that come from widened values and from coefficients (see bnk_linears_set). */
static inline bnk_uint16 bnk_round_to_bf16(bnk_f32x16 values)
{
    const bnk_uint16 bits = (bnk_uint16)values;
    return bits + 0x7fff + ((bits >> 16) & 1);
}

static inline bnk_u16x16 bnk_narrow_bf16(bnk_f32x16 values)
{
    return __builtin_convertvector(bnk_round_to_bf16(values) >> 16, bnk_u16x16);
}

/* Thirty-two as those at even places and those at odd ones, which takes fewer steps than the first and the last sixteen. */
static inline void bnk_split_bf16(bnk_u16x32 stored, bnk_f32x16 *even, bnk_f32x16 *odd)
{
    _Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the lower half comes first");
    *even = (bnk_f32x16)((bnk_uint16)stored << 16);
    *odd = (bnk_f32x16)((bnk_uint16)stored & 0xffff0000);
}

static inline bnk_u16x32 bnk_join_bf16(bnk_f32x16 even, bnk_f32x16 odd)
{
    return (bnk_u16x32)(bnk_round_to_bf16(even) >> 16 | (bnk_round_to_bf16(odd) & 0xffff0000));
}

static inline bnk_u16x32 bnk_narrow_two_bf16(bnk_f32x16 first, bnk_f32x16 last)
{
    return __builtin_shufflevector((bnk_u16x32)bnk_round_to_bf16(first),
                                   (bnk_u16x32)bnk_round_to_bf16(last), 1, 3, 5, 7, 9, 11, 13, 15,
                                   17, 19, 21, 23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43, 45, 47,
                                   49, 51, 53, 55, 57, 59, 61, 63);
}

static inline bnk_u16x32 bnk_join_u16(bnk_u16x16 first, bnk_u16x16 last)
{
    return __builtin_shufflevector(first, last, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14,
                                   15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30,
                                   31);
}

/* Without the CPU's help. A float16's exponent and fraction, moved to where a float's are, are 2^-112 times
 * its value, also where it is subnormal. */
static inline bnk_f32x16 bnk_widen_f16_by_bits(bnk_u16x16 stored)
{
    const bnk_uint16 bits = __builtin_convertvector(stored, bnk_uint16), rest = bits & 0x7fff;
    const bnk_uint16 finite = (bnk_uint16)((bnk_f32x16)(rest << 13) * 0x1p112f);
    const bnk_uint16 special = 0x7f800000 | rest << 13 | ((bnk_uint16)(rest > 0x7c00) & 0x400000);
    return (bnk_f32x16)(bnk_pick((bnk_i32x16)(rest >= 0x7c00), special, finite) | (bits & 0x8000)
                                                                                      << 16);
}

static inline bnk_f32x8 bnk_widen_half_f16_by_bits(bnk_u16x8 stored)
{
    bnk_u16x16 padded = { 0 };
    memcpy(&padded, &stored, sizeof stored);
    const bnk_f32x16 widened = bnk_widen_f16_by_bits(padded);
    bnk_f32x8 first;
    memcpy(&first, &widened, sizeof first);
    return first;
}

static inline bnk_u16x16 bnk_narrow_f16_by_bits(bnk_f32x16 values)
{
    const bnk_uint16 bits = (bnk_uint16)values, size = bits & 0x7fffffff;
    const bnk_uint16 normal = (size - (112 << 23) + 0xfff + ((size >> 13) & 1)) >> 13;
    /* Beside 0.5 a float's last place is a float16 subnormal's, so that the addition rounds. */
    const bnk_uint16 subnormal = (bnk_uint16)((bnk_f32x16)size + 0.5f) - 0x3f000000;
    const bnk_uint16 nan = 0x7e00 | (size >> 13 & 0x3ff);
    bnk_uint16 rest = bnk_pick((bnk_i32x16)(size < 0x38800000), subnormal, normal);
    rest = bnk_pick((bnk_i32x16)(size >= 0x477ff000), (bnk_uint16){ 0 } + 0x7c00, rest);
    rest = bnk_pick((bnk_i32x16)(size > 0x7f800000), nan, rest);
    return __builtin_convertvector(rest | (bits >> 16 & 0x8000), bnk_u16x16);
}

/* ---- one value ---- */

static inline float bnk_widen_one_bf16(bnk_bf16 stored)
{
    return bnk_widen_bf16((bnk_u16x16){ stored })[0];
}

static inline bnk_bf16 bnk_narrow_one_bf16(float value)
{
    return bnk_narrow_bf16((bnk_f32x16){ value })[0];
}

static inline float bnk_widen_one_f16(bnk_f16 stored)
{
    return bnk_widen_f16_by_bits((bnk_u16x16){ stored })[0];
}

static inline bnk_f16 bnk_narrow_one_f16(float value)
{
    return bnk_narrow_f16_by_bits((bnk_f32x16){ value })[0];
}

/* Element `i` of a tensor. */
static inline double bnk_element(const bnk_grid *grid, const void *tensor, int64_t i)
{
    switch (grid->half) {
    case BNK_HALF_BFLOAT16:
        return (double)bnk_widen_one_bf16(((const bnk_bf16 *)tensor)[i]);
    case BNK_HALF_FLOAT16:
        return (double)bnk_widen_one_f16(((const bnk_f16 *)tensor)[i]);
    default:
        return grid->is_double ? ((const double *)tensor)[i] : (double)((const float *)tensor)[i];
    }
}

#endif
