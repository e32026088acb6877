/* Which table of leaves serves an instruction set: the whole of the dispatch. */
#include "leaves.h"

const bnk_leaves *bnk_leaves_for(int32_t isa, int32_t is_double)
{
    static const bnk_leaves *const tables[BNK_ISA_COUNT][2] = {
        [BNK_ISA_GENERIC] = { &bnk_leaves_float_generic, &bnk_leaves_double_generic },
#if defined(__x86_64__)
        [BNK_ISA_AVX2] = { &bnk_leaves_float_avx2, &bnk_leaves_double_avx2 },
        [BNK_ISA_AVX512] = { &bnk_leaves_float_avx512, &bnk_leaves_double_avx512 },
#endif
    };
    return tables[isa][is_double];
}
