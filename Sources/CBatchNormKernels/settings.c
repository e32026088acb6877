/* The process's settings: how many threads and which instruction set. Set and read by any thread.
 */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "bnk.h"

static _Atomic int32_t wanted_threads; /* 0: what OpenMP says */
static _Atomic int32_t isa_cap =
    BNK_ISA_COUNT; /* BNK_ISA_COUNT: nothing was set, see the environment */

void bnk_set_threads(int32_t threads)
{
    wanted_threads = threads;
}

int32_t bnk_threads(void)
{
    const int32_t wanted = wanted_threads;
    return wanted > 0 ? wanted : bnk_default_threads();
}

void bnk_set_max_isa(int32_t isa)
{
    isa_cap = isa;
}

/* BATCHNORM_MAX_ISA; a name that is none of ours caps nothing. */
static int32_t environment_cap(void)
{
    static const char *const names[] = { "generic", "avx2", "avx512" };
    const char *name = getenv("BATCHNORM_MAX_ISA");
    for (int32_t isa = 0; name && isa < BNK_ISA_COUNT; isa++)
        if (strcmp(name, names[isa]) == 0) return isa;
    return BNK_ISA_COUNT - 1;
}

int32_t bnk_isa(void)
{
    if (isa_cap == BNK_ISA_COUNT) {
        int32_t unset = BNK_ISA_COUNT; /* another thread may have set it meanwhile */
        atomic_compare_exchange_strong(&isa_cap, &unset, environment_cap());
    }
    const int32_t cap = isa_cap, best = bnk_supported_isa();
    return cap < best ? cap : best;
}
