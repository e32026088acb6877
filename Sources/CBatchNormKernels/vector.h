/*
 * Sixteen lanes of float or double, whatever the vector registers' width: the compiler cuts them
 * into what the enclosing target has. So every instruction set adds the same values in the same
 * lanes.
 */
#ifndef BNK_VECTOR_H
#define BNK_VECTOR_H

#include <stdint.h>

/* Vectors travel between inlined functions of one file only, so the ABI that this warns of is never
 * used. */
#pragma clang diagnostic ignored "-Wpsabi"

enum { BNK_LANES = 16 };

typedef float bnk_f32x16 __attribute__((vector_size(64)));
typedef double bnk_f64x16 __attribute__((vector_size(128)));
typedef double bnk_f64x8 __attribute__((vector_size(64)));
typedef float bnk_f32x8 __attribute__((vector_size(32)));
/* All ones or 0 in a lane: a comparison's result. */
typedef int32_t bnk_i32x16 __attribute__((vector_size(64)));
typedef int64_t bnk_i64x8 __attribute__((vector_size(64)));

/* The same at any address that suits the element. */
typedef float bnk_f32x16_at __attribute__((vector_size(64), aligned(4), may_alias));
typedef double bnk_f64x16_at __attribute__((vector_size(128), aligned(8), may_alias));
typedef float bnk_f32x8_at __attribute__((vector_size(32), aligned(4), may_alias));
typedef double bnk_f64x8_at __attribute__((vector_size(64), aligned(8), may_alias));
/* At a cache line's start, for non-temporal stores. */
typedef float bnk_f32x16_line __attribute__((vector_size(64), aligned(64), may_alias));
typedef double bnk_f64x8_line __attribute__((vector_size(64), aligned(64), may_alias));

#endif
