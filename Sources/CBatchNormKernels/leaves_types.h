/*
 * Makes the leaves of one instruction set, BNK_ISA, for both element types. Included by
 * leaves_<isa>.c only. BNK_LINE is one cache line of the element type: 16 floats or 8 doubles.
 */
#include <stdint.h>
#include <string.h>

#include "bits.h"

/* The helpers are written for any number of rows, or any row, and must be specialized for theirs. */
#define BNK_INLINE static inline __attribute__((always_inline))
#define BNK_LEAF static __attribute__((noinline))

#define BNK_PREFETCH(p) __builtin_prefetch(p)
/* Sixteen values, into L2: by rows, what comes next is farther away than L1 reaches. */
#define BNK_PREFETCH_LANES(p)                                                             \
    do {                                                                                  \
        __builtin_prefetch(p, 0, 2);                                                      \
        if (BNK_LINE_LENGTH < BNK_LANES) __builtin_prefetch((p) + BNK_LINE_LENGTH, 0, 2); \
    } while (0)

#define BNK_PASTE_(name, type, isa) bnk_##name##_##type##_##isa
#define BNK_PASTE(name, type, isa) BNK_PASTE_(name, type, isa)
/* bnk_row_sums_float_avx2 and so on */
#define BNK_NAME(name) BNK_PASTE(name, BNK_T, BNK_ISA)

#define BNK_T float
#define BNK_C float
#define BNK_CHOICE bnk_int16
#define BNK_VANISHING 0 /* the largest positive value that is rounded to 0 on storing */
#define BNK_LINE bnk_float16
#define BNK_LINE_AT bnk_float16_at
#define BNK_LINE_ALIGNED bnk_float16_line
#define BNK_LINE_LENGTH 16
#define BNK_LANES_AT bnk_float16_at
#define BNK_HALF_AT bnk_float8_at
#define BNK_FMA(a, b, c) BNK_FMA_float(a, b, c)
#define BNK_FMA_ONE(a, b, c) BNK_FMA_ONE_float(a, b, c)
#define BNK_T_IS_FLOAT
#include "leaves_body.h"
#undef BNK_T_IS_FLOAT
#undef BNK_T
#undef BNK_C
#undef BNK_CHOICE
#undef BNK_VANISHING
#undef BNK_LINE
#undef BNK_LINE_AT
#undef BNK_LINE_ALIGNED
#undef BNK_LINE_LENGTH
#undef BNK_LANES_AT
#undef BNK_HALF_AT
#undef BNK_FMA
#undef BNK_FMA_ONE

#define BNK_T double
#define BNK_C double
#define BNK_CHOICE bnk_long8
#define BNK_VANISHING 0
#define BNK_LINE bnk_double8
#define BNK_LINE_AT bnk_double8_at
#define BNK_LINE_ALIGNED bnk_double8_line
#define BNK_LINE_LENGTH 8
#define BNK_LANES_AT bnk_double16_at
#define BNK_HALF_AT bnk_double8_at
#define BNK_FMA(a, b, c) BNK_FMA_double(a, b, c)
#define BNK_FMA_ONE(a, b, c) BNK_FMA_ONE_double(a, b, c)
#include "leaves_body.h"
