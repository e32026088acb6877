/* Channels' statistics as a job gives them: float64 arrays, or NULL and running statistics. */
#ifndef BNK_STATISTICS_H
#define BNK_STATISTICS_H

#include "coefficients.h"
#include "indices.h"

/* Each of them of `count` channels: in the job's own array where there is one, else put into `memory`. */

BNK_FORM const double *bnk_means_of(const bnk_statistics *s, const bnk_grid *grid, int64_t channel,
                                    int64_t count, double *memory)
{
    if (s->mean) return s->mean + bnk_statistics_of(grid, channel);
    bnk_get_some(s->running_mean, grid->is_double, bnk_running_of(grid, channel), count, 0, memory);
    return memory;
}

BNK_FORM const double *bnk_invstds_of(const bnk_statistics *s, const bnk_grid *grid,
                                      int64_t channel, int64_t count, double *memory)
{
    if (s->invstd) return s->invstd + bnk_statistics_of(grid, channel);
    bnk_get_some(s->running_var, grid->is_double, bnk_running_of(grid, channel), count, 0, memory);
    BNK_SHORT_LOOP
    for (int64_t i = 0; i < count; i++) memory[i] = bnk_invstd(memory[i], s->epsilon);
    return memory;
}

/* Of at most BNK_TOGETHER channels: the job's own, or zeros. */
BNK_FORM const double *bnk_mean_rests_of(const bnk_statistics *s, const bnk_grid *grid,
                                         int64_t channel)
{
    static const double none[BNK_TOGETHER];
    return s->mean_rest ? s->mean_rest + bnk_statistics_of(grid, channel) : none;
}

#endif
