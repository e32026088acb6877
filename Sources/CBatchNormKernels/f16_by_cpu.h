/* float16 by the CPU's conversions. Included by the leaves_<isa>.c of instruction sets that have them. */
#ifndef BNK_F16_BY_CPU_H
#define BNK_F16_BY_CPU_H

#include "halves.h"

typedef _Float16 bnk_cpu_f16x16 __attribute__((vector_size(32)));
typedef _Float16 bnk_cpu_f16x8 __attribute__((vector_size(16)));

#define BNK_WIDEN_f16(stored) __builtin_convertvector((bnk_cpu_f16x16)(stored), bnk_f32x16)
#define BNK_WIDEN_HALF_f16(stored) __builtin_convertvector((bnk_cpu_f16x8)(stored), bnk_f32x8)
#define BNK_NARROW_f16(line) ((bnk_u16x16) __builtin_convertvector(line, bnk_cpu_f16x16))

#endif
