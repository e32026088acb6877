/* Which table of leaves serves an instruction set; which set that is the plan says (settings.c). There is one for each that
 * bnk_supported_isas() may say on this family of CPUs. */
#include "leaves.h"

static const bnk_leaves *table(int32_t isa, int32_t is_double, int32_t half)
{
#define BNK_TABLES(isa)                                                            \
    {                                                                              \
        &bnk_leaves_float_##isa, &bnk_leaves_double_##isa, &bnk_leaves_bf16_##isa, \
            &bnk_leaves_f16_##isa                                                  \
    }
    static const bnk_leaves *const tables[BNK_ISA_COUNT][4] = {
        [BNK_ISA_GENERIC] = BNK_TABLES(generic),
#if defined(__x86_64__)
        [BNK_ISA_AVX2] = BNK_TABLES(avx2),
        [BNK_ISA_AVX512] = BNK_TABLES(avx512),
#endif
    };
#undef BNK_TABLES
    return tables[isa][half == BNK_HALF_NONE ? is_double : 1 + half];
}

const bnk_leaves *bnk_leaves_for(int32_t isa, const bnk_grid *grid)
{
    return table(isa, grid->is_double, grid->half);
}

const bnk_leaves *bnk_computing_leaves_for(int32_t isa, const bnk_grid *grid)
{
    return table(isa, grid->is_double, BNK_HALF_NONE);
}
