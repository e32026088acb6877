/*
 * Which statistics, parameters and running statistics a channel of the grid has. In batch normalization each
 * channel has its own of all three; here is the one place that says so. Neighbouring channels have neighbouring
 * ones: what many channels have is found from the first on.
 */
#ifndef BNK_INDICES_H
#define BNK_INDICES_H

#include "bnk.h"

/* In arrays of what a channel's values were reduced to: moments, mean and invstd, gradient sums. */
static inline int64_t bnk_statistics_of(const bnk_grid *grid, int64_t channel)
{
    (void)grid;
    return channel;
}

/* In weight, bias and their gradients. */
static inline int64_t bnk_parameter_of(const bnk_grid *grid, int64_t channel)
{
    (void)grid;
    return channel;
}

/* In running statistics. */
static inline int64_t bnk_running_of(const bnk_grid *grid, int64_t channel)
{
    (void)grid;
    return channel;
}

#endif
