/* The leaves for AVX2 with FMA (Intel since Haswell, AMD since Excavator). */
#include "leaves.h"
#include "vector.h"

#if defined(__x86_64__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#define BNK_FMA_float(a, b, c) __builtin_elementwise_fma(a, b, c)
#define BNK_FMA_double(a, b, c) __builtin_elementwise_fma(a, b, c)
#define BNK_FMA_ONE_float(a, b, c) __builtin_fmaf(a, b, c)
#define BNK_FMA_ONE_double(a, b, c) __builtin_fma(a, b, c)
#define BNK_BYTES_AHEAD 0
#define BNK_FOR_SPEED 1
#define BNK_UNROLL_GROUP _Pragma("clang loop unroll(full)")
#include "f16_by_cpu.h"
#include "subtract_by_fma.h"
#define BNK_ISA avx2
#include "leaves_types.h"
#pragma clang attribute pop
#endif
