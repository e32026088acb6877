/*
 * plans.h — every kind of plan that bnk.h allows for a grid, for the kernel tests.
 *
 * What the planner really chooses is tested through the C ABI (Tests/ABI).
 */
#ifndef PLANS_H
#define PLANS_H

#include "bnk.h"
#include "reference.h"

enum { MAX_CUTS = 16, MAX_MANNERS = 64 };

/* The members that decide the bits of a result (bnk.h), on one thread with the plainest code. */
int cuts_of(const bnk_grid *grid, bnk_plan cuts[MAX_CUTS]);

/* The same cut in every manner that must not change a bit: instruction set, whole runs or three steps, stores,
 * threads. `thorough` adds thread counts. */
int manners_of(bnk_plan cut, bool thorough, bnk_plan manners[MAX_MANNERS]);

/* "rows=.. run=.. avx2 ..." for messages; the string lives until the next call. */
const char *plan_text(const bnk_grid *grid, const bnk_plan *plan);

/* The instruction sets of this machine, one after the other: that after `isa`, -1 after the last one. */
static inline int32_t next_isa(int32_t isa)
{
    while (++isa < BNK_ISA_COUNT)
        if (bnk_supported_isas() >> isa & 1) return isa;
    return -1;
}

static inline int32_t best_isa(void)
{
    return bnk_choose_isa(bnk_supported_isas(), -1);
}

static inline ref_grid reference_grid(const bnk_grid *grid)
{
    return (ref_grid){ grid->rows, grid->channels, grid->inner };
}

#endif
