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
 * Per type of tensors: BNK_T is what is stored, BNK_C what is computed with. BNK_LINE is a vector of
 * BNK_LINE_LENGTH computed values, BNK_STORED of as many stored ones, BNK_CHOICE of lanes that are all ones
 * or 0. BNK_VANISHING is the largest positive value that is rounded to 0 when stored.
 */

/* ---- computed with as float ---- */

#define BNK_COMPUTES_FLOAT
#define BNK_C float
#define BNK_LINE bnk_float16
#define BNK_LINE_AT bnk_float16_at
#define BNK_LINE_LENGTH 16
#define BNK_CHOICE bnk_int16
#define BNK_FMA(a, b, c) BNK_FMA_float(a, b, c)
#define BNK_FMA_ONE(a, b, c) BNK_FMA_ONE_float(a, b, c)

#define BNK_TYPE float
#define BNK_T float
#define BNK_STORED bnk_float16
#define BNK_STORED_AT bnk_float16_at
#define BNK_STORED_ALIGNED bnk_float16_line
#define BNK_LANES_AT bnk_float16_at
#define BNK_HALF_AT bnk_float8_at
#define BNK_VANISHING 0
#define BNK_WIDEN(stored) (stored)
#define BNK_WIDEN_LANES(stored) (stored)
#define BNK_WIDEN_HALF(stored) (stored)
#define BNK_WIDEN_ONE(stored) (stored)
#define BNK_NARROW(line) (line)
#define BNK_NARROW_ONE(value) (value)
#include "leaves_body.h"
#undef BNK_TYPE
#undef BNK_T
#undef BNK_STORED
#undef BNK_STORED_AT
#undef BNK_STORED_ALIGNED
#undef BNK_LANES_AT
#undef BNK_HALF_AT
#undef BNK_VANISHING
#undef BNK_WIDEN
#undef BNK_WIDEN_LANES
#undef BNK_WIDEN_HALF
#undef BNK_WIDEN_ONE
#undef BNK_NARROW
#undef BNK_NARROW_ONE

/* Both half types: sixteen bits. */
#define BNK_STORES_HALF
#define BNK_STORED bnk_ushort16
#define BNK_STORED_AT bnk_ushort16_at
#define BNK_STORED_ALIGNED bnk_ushort16_line
#define BNK_LANES_AT bnk_ushort16_at
#define BNK_HALF_AT bnk_ushort8_at
#define BNK_WIDEN_LANES(stored) BNK_WIDEN(stored)

#define BNK_TYPE bf16
#define BNK_T bnk_bf16
#define BNK_VANISHING 0x1p-134f
#define BNK_WIDEN(stored) bnk_widen_bf16(stored)
#define BNK_WIDEN_HALF(stored) bnk_widen_half_bf16(stored)
#define BNK_WIDEN_ONE(stored) bnk_widen_one_bf16(stored)
#define BNK_NARROW(line) bnk_narrow_bf16(line)
#define BNK_NARROW_ONE(value) bnk_narrow_one_bf16(value)
#include "leaves_body.h"
#undef BNK_TYPE
#undef BNK_T
#undef BNK_VANISHING
#undef BNK_WIDEN
#undef BNK_WIDEN_HALF
#undef BNK_WIDEN_ONE
#undef BNK_NARROW
#undef BNK_NARROW_ONE

#define BNK_TYPE f16
#define BNK_T bnk_f16
#define BNK_VANISHING 0x1p-25f
#define BNK_WIDEN(stored) BNK_WIDEN_f16(stored)
#define BNK_WIDEN_HALF(stored) BNK_WIDEN_HALF_f16(stored)
#define BNK_WIDEN_ONE(stored) bnk_widen_one_f16(stored)
#define BNK_NARROW(line) BNK_NARROW_f16(line)
#define BNK_NARROW_ONE(value) bnk_narrow_one_f16(value)
#include "leaves_body.h"
#undef BNK_TYPE
#undef BNK_T
#undef BNK_VANISHING
#undef BNK_WIDEN
#undef BNK_WIDEN_HALF
#undef BNK_WIDEN_ONE
#undef BNK_NARROW
#undef BNK_NARROW_ONE
#undef BNK_STORED
#undef BNK_STORED_AT
#undef BNK_STORED_ALIGNED
#undef BNK_LANES_AT
#undef BNK_HALF_AT
#undef BNK_WIDEN_LANES
#undef BNK_STORES_HALF

#undef BNK_COMPUTES_FLOAT
#undef BNK_C
#undef BNK_LINE
#undef BNK_LINE_AT
#undef BNK_LINE_LENGTH
#undef BNK_CHOICE
#undef BNK_FMA
#undef BNK_FMA_ONE

/* ---- computed with as double ---- */

#define BNK_TYPE double
#define BNK_T double
#define BNK_C double
#define BNK_LINE bnk_double8
#define BNK_LINE_AT bnk_double8_at
#define BNK_LINE_LENGTH 8
#define BNK_CHOICE bnk_long8
#define BNK_FMA(a, b, c) BNK_FMA_double(a, b, c)
#define BNK_FMA_ONE(a, b, c) BNK_FMA_ONE_double(a, b, c)
#define BNK_STORED bnk_double8
#define BNK_STORED_AT bnk_double8_at
#define BNK_STORED_ALIGNED bnk_double8_line
#define BNK_LANES_AT bnk_double16_at
#define BNK_HALF_AT bnk_double8_at
#define BNK_VANISHING 0
#define BNK_WIDEN(stored) (stored)
#define BNK_WIDEN_LANES(stored) (stored)
#define BNK_WIDEN_HALF(stored) (stored)
#define BNK_WIDEN_ONE(stored) (stored)
#define BNK_NARROW(line) (line)
#define BNK_NARROW_ONE(value) (value)
#include "leaves_body.h"
