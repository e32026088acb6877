/*
 * Makes the leaves of one instruction set, BNK_ISA, for every type of tensors. Included by
 * leaves_<isa>.c only.
 */
#include <stdint.h>
#include <string.h>

#include "activations.h"
#include "bits.h"
#include "halves.h"

/* The helpers are written for any number of rows, or any row, and must be specialized for theirs. */
#define BNK_INLINE static inline __attribute__((always_inline))
#define BNK_LEAF static __attribute__((noinline))

#define BNK_PREFETCH(p) __builtin_prefetch(p)
/* Sixteen values, into L2: by rows, what comes next is farther away than L1 reaches. */
#define BNK_PREFETCH_LANES(p)                                                                   \
    do {                                                                                        \
        __builtin_prefetch(p, 0, 2);                                                            \
        if (BNK_PER_CACHE_LINE < BNK_LANES) __builtin_prefetch((p) + BNK_PER_CACHE_LINE, 0, 2); \
    } while (0)

#define BNK_PASTE_(name, type, isa) bnk_##name##_##type##_##isa
#define BNK_PASTE(name, type, isa) BNK_PASTE_(name, type, isa)
/* bnk_row_sums_float_avx2 and so on */
#define BNK_NAME(name) BNK_PASTE(name, BNK_TYPE, BNK_ISA)
/* How many stored values a cache line holds. */
#define BNK_PER_CACHE_LINE ((int)(64 / sizeof(BNK_T)))

/*
 * What the bodies say of the type in hand, BNK_TYPE: BNK_T stands for BNK_T_float where that is float. BNK_T is what is
 * stored, BNK_C what is computed with. BNK_LINE is a vector of BNK_LINE_LENGTH computed values, BNK_STORED of as many
 * stored ones, BNK_CACHE_LINE of as many as a cache line holds, which BNK_PACK makes of one or two BNK_LINEs. BNK_CHOICE
 * is a vector of lanes that are all ones or 0. BNK_VANISHING is the largest positive value that is rounded
 * to 0 when stored; BNK_SPLITS: a cache line can be widened by its even and its odd values. BNK_FMA_... and the
 * conversions of f16 are the instruction set's, as are BNK_FOR_SPEED (0: short code rather than fast code) and BNK_BYTES_AHEAD
 * (how far ahead sums fetch; 0: not at all).
 */
#define BNK_OF__(name, type) BNK_##name##_##type
#define BNK_OF_(name, type) BNK_OF__(name, type)
#define BNK_OF(name) BNK_OF_(name, BNK_TYPE)

#define BNK_COMPUTES_FLOAT BNK_OF(COMPUTES_FLOAT)
#define BNK_STORES_HALF BNK_OF(STORES_HALF)
#define BNK_SPLITS BNK_OF(SPLITS)
#define BNK_T BNK_OF(T)
#define BNK_C BNK_OF(C)
#define BNK_LINE BNK_OF(LINE)
#define BNK_LINE_AT BNK_OF(LINE_AT)
#define BNK_LINE_LENGTH BNK_OF(LINE_LENGTH)
#define BNK_CHOICE BNK_OF(CHOICE)
#define BNK_STORED BNK_OF(STORED)
#define BNK_STORED_AT BNK_OF(STORED_AT)
#define BNK_STORED_ALIGNED BNK_OF(STORED_ALIGNED)
#define BNK_CACHE_LINE BNK_OF(CACHE_LINE)
#define BNK_CACHE_LINE_AT BNK_OF(CACHE_LINE_AT)
#define BNK_CACHE_LINE_ALIGNED BNK_OF(CACHE_LINE_ALIGNED)
#define BNK_LANES_AT BNK_OF(LANES_AT)
#define BNK_HALF_AT BNK_OF(HALF_AT)
#define BNK_VANISHING BNK_OF(VANISHING)
#define BNK_FMA(a, b, c) BNK_OF(FMA)(a, b, c)
#define BNK_FMA_ONE(a, b, c) BNK_OF(FMA_ONE)(a, b, c)
#define BNK_WIDEN(stored) BNK_OF(WIDEN)(stored)
#define BNK_WIDEN_LANES(stored) BNK_OF(WIDEN_LANES)(stored)
#define BNK_WIDEN_HALF(stored) BNK_OF(WIDEN_HALF)(stored)
#define BNK_WIDEN_ONE(stored) BNK_OF(WIDEN_ONE)(stored)
#define BNK_NARROW(line) BNK_OF(NARROW)(line)
#define BNK_NARROW_ONE(value) BNK_OF(NARROW_ONE)(value)
#define BNK_PACK(lines) BNK_OF(PACK)(lines)

/* ---- float ---- */

#define BNK_COMPUTES_FLOAT_float 1
#define BNK_STORES_HALF_float 0
#define BNK_SPLITS_float 0
#define BNK_T_float float
#define BNK_C_float float
#define BNK_LINE_float bnk_f32x16
#define BNK_LINE_AT_float bnk_f32x16_at
#define BNK_LINE_LENGTH_float 16
#define BNK_CHOICE_float bnk_i32x16
#define BNK_STORED_float bnk_f32x16
#define BNK_STORED_AT_float bnk_f32x16_at
#define BNK_STORED_ALIGNED_float bnk_f32x16_line
#define BNK_CACHE_LINE_float bnk_f32x16
#define BNK_CACHE_LINE_AT_float bnk_f32x16_at
#define BNK_CACHE_LINE_ALIGNED_float bnk_f32x16_line
#define BNK_LANES_AT_float bnk_f32x16_at
#define BNK_HALF_AT_float bnk_f32x8_at
#define BNK_VANISHING_float 0
#define BNK_WIDEN_float(stored) (stored)
#define BNK_WIDEN_LANES_float(stored) (stored)
#define BNK_WIDEN_HALF_float(stored) (stored)
#define BNK_WIDEN_ONE_float(stored) (stored)
#define BNK_NARROW_float(line) (line)
#define BNK_NARROW_ONE_float(value) (value)
#define BNK_PACK_float(lines) ((lines)[0])

#define BNK_TYPE float
#include "leaves_body.h"
#undef BNK_TYPE

/* ---- double ---- */

#define BNK_COMPUTES_FLOAT_double 0
#define BNK_STORES_HALF_double 0
#define BNK_SPLITS_double 0
#define BNK_T_double double
#define BNK_C_double double
#define BNK_LINE_double bnk_f64x8
#define BNK_LINE_AT_double bnk_f64x8_at
#define BNK_LINE_LENGTH_double 8
#define BNK_CHOICE_double bnk_i64x8
#define BNK_STORED_double bnk_f64x8
#define BNK_STORED_AT_double bnk_f64x8_at
#define BNK_STORED_ALIGNED_double bnk_f64x8_line
#define BNK_CACHE_LINE_double bnk_f64x8
#define BNK_CACHE_LINE_AT_double bnk_f64x8_at
#define BNK_CACHE_LINE_ALIGNED_double bnk_f64x8_line
#define BNK_LANES_AT_double bnk_f64x16_at
#define BNK_HALF_AT_double bnk_f64x8_at
#define BNK_VANISHING_double 0
#define BNK_WIDEN_double(stored) (stored)
#define BNK_WIDEN_LANES_double(stored) (stored)
#define BNK_WIDEN_HALF_double(stored) (stored)
#define BNK_WIDEN_ONE_double(stored) (stored)
#define BNK_NARROW_double(line) (line)
#define BNK_NARROW_ONE_double(value) (value)
#define BNK_PACK_double(lines) ((lines)[0])

#define BNK_TYPE double
#include "leaves_body.h"
#undef BNK_TYPE

/* ---- bfloat16, computed with as float ---- */

#define BNK_COMPUTES_FLOAT_bf16 1
#define BNK_STORES_HALF_bf16 1
#define BNK_SPLITS_bf16 1
#define BNK_T_bf16 bnk_bf16
#define BNK_C_bf16 float
#define BNK_LINE_bf16 bnk_f32x16
#define BNK_LINE_AT_bf16 bnk_f32x16_at
#define BNK_LINE_LENGTH_bf16 16
#define BNK_CHOICE_bf16 bnk_i32x16
#define BNK_STORED_bf16 bnk_u16x16
#define BNK_STORED_AT_bf16 bnk_u16x16_at
#define BNK_STORED_ALIGNED_bf16 bnk_u16x16_line
#define BNK_CACHE_LINE_bf16 bnk_u16x32
#define BNK_CACHE_LINE_AT_bf16 bnk_u16x32_at
#define BNK_CACHE_LINE_ALIGNED_bf16 bnk_u16x32_line
#define BNK_LANES_AT_bf16 bnk_u16x16_at
#define BNK_HALF_AT_bf16 bnk_u16x8_at
#define BNK_VANISHING_bf16 0x1p-134f
#define BNK_FMA_bf16(a, b, c) BNK_FMA_float(a, b, c)
#define BNK_FMA_ONE_bf16(a, b, c) BNK_FMA_ONE_float(a, b, c)
#define BNK_WIDEN_bf16(stored) bnk_widen_bf16(stored)
#define BNK_WIDEN_LANES_bf16(stored) bnk_widen_bf16(stored)
#define BNK_WIDEN_HALF_bf16(stored) bnk_widen_half_bf16(stored)
#define BNK_WIDEN_ONE_bf16(stored) bnk_widen_one_bf16(stored)
#define BNK_NARROW_bf16(line) bnk_narrow_bf16(line)
#define BNK_NARROW_ONE_bf16(value) bnk_narrow_one_bf16(value)
#define BNK_PACK_bf16(lines) bnk_narrow_two_bf16((lines)[0], (lines)[1])

#define BNK_TYPE bf16
#include "leaves_body.h"
#undef BNK_TYPE

/* ---- float16, computed with as float ---- */

#define BNK_COMPUTES_FLOAT_f16 1
#define BNK_STORES_HALF_f16 1
#define BNK_SPLITS_f16 0
#define BNK_T_f16 bnk_f16
#define BNK_C_f16 float
#define BNK_LINE_f16 bnk_f32x16
#define BNK_LINE_AT_f16 bnk_f32x16_at
#define BNK_LINE_LENGTH_f16 16
#define BNK_CHOICE_f16 bnk_i32x16
#define BNK_STORED_f16 bnk_u16x16
#define BNK_STORED_AT_f16 bnk_u16x16_at
#define BNK_STORED_ALIGNED_f16 bnk_u16x16_line
#define BNK_CACHE_LINE_f16 bnk_u16x32
#define BNK_CACHE_LINE_AT_f16 bnk_u16x32_at
#define BNK_CACHE_LINE_ALIGNED_f16 bnk_u16x32_line
#define BNK_LANES_AT_f16 bnk_u16x16_at
#define BNK_HALF_AT_f16 bnk_u16x8_at
#define BNK_VANISHING_f16 0x1p-25f
#define BNK_FMA_f16(a, b, c) BNK_FMA_float(a, b, c)
#define BNK_FMA_ONE_f16(a, b, c) BNK_FMA_ONE_float(a, b, c)
#define BNK_WIDEN_LANES_f16(stored) BNK_WIDEN_f16(stored)
#define BNK_WIDEN_ONE_f16(stored) bnk_widen_one_f16(stored)
#define BNK_NARROW_ONE_f16(value) bnk_narrow_one_f16(value)
#define BNK_PACK_f16(lines) bnk_join_u16(BNK_NARROW_f16((lines)[0]), BNK_NARROW_f16((lines)[1]))

#define BNK_TYPE f16
#include "leaves_body.h"
#undef BNK_TYPE
