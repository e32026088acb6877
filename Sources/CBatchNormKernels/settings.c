/* The process's settings: how many threads and which instruction set. Set and read by any thread.
 */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "bnk.h"

static _Atomic int32_t wanted_threads; /* 0: what OpenMP says */
enum { NO_CAP = -1, NOT_SET = -2 };    /* NOT_SET: see the environment */
static _Atomic int32_t isa_cap = NOT_SET;

void bnk_set_threads(int32_t threads)
{
    wanted_threads = threads;
}

int32_t bnk_threads(void)
{
    const int32_t wanted = wanted_threads;
    return bnk_most_threads(wanted > 0 ? wanted : bnk_default_threads());
}

void bnk_set_max_isa(int32_t isa)
{
    isa_cap = isa;
}

/* What a program for an instruction set may use besides: instruction sets are no total order, only those of
 * one family of CPUs build on each other. */
static const uint32_t includes[BNK_ISA_COUNT] = {
    [BNK_ISA_GENERIC] = 1 << BNK_ISA_GENERIC,
    [BNK_ISA_AVX2] = 1 << BNK_ISA_GENERIC | 1 << BNK_ISA_AVX2,
    [BNK_ISA_AVX512] = 1 << BNK_ISA_GENERIC | 1 << BNK_ISA_AVX2 | 1 << BNK_ISA_AVX512,
};

int32_t bnk_choose_isa(uint32_t supported, int32_t cap)
{
    const int is_one = 0 <= cap && cap < BNK_ISA_COUNT && (supported >> cap & 1);
    const uint32_t left = is_one ? supported & includes[cap] : supported;
    int32_t best = BNK_ISA_GENERIC;
    /* Within a family a later one is better, and `left` is of one family. */
    for (int32_t isa = BNK_ISA_GENERIC; isa < BNK_ISA_COUNT; isa++)
        if (left >> isa & 1) best = isa;
    return best;
}

/* BATCHNORM_MAX_ISA; a name that is none of ours caps nothing. */
static int32_t environment_cap(void)
{
    static const char *const names[BNK_ISA_COUNT] = {
        [BNK_ISA_GENERIC] = "generic", [BNK_ISA_AVX2] = "avx2", [BNK_ISA_AVX512] = "avx512"
    };
    const char *name = getenv("BATCHNORM_MAX_ISA");
    for (int32_t isa = 0; name && isa < BNK_ISA_COUNT; isa++)
        if (strcmp(name, names[isa]) == 0) return isa;
    return NO_CAP;
}

int32_t bnk_isa(void)
{
    if (isa_cap == NOT_SET) {
        int32_t unset = NOT_SET; /* another thread may have set it meanwhile */
        atomic_compare_exchange_strong(&isa_cap, &unset, environment_cap());
    }
    return bnk_choose_isa(bnk_supported_isas(), isa_cap);
}
