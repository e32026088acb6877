/* A channel's statistics as a job gives them: float64 arrays, or NULL and running statistics. */
#ifndef BNK_STATISTICS_H
#define BNK_STATISTICS_H

#include "coefficients.h"
#include "indices.h"

static inline double bnk_mean_of(const bnk_statistics *s, const bnk_grid *grid, int64_t channel)
{
    return s->mean ? s->mean[bnk_statistics_of(grid, channel)]
                   : bnk_get(s->running_mean, grid->is_double, bnk_running_of(grid, channel), 0);
}

static inline double bnk_mean_rest_of(const bnk_statistics *s, const bnk_grid *grid,
                                      int64_t channel)
{
    return s->mean_rest ? s->mean_rest[bnk_statistics_of(grid, channel)] : 0;
}

static inline double bnk_invstd_of(const bnk_statistics *s, const bnk_grid *grid, int64_t channel)
{
    if (s->invstd) return s->invstd[bnk_statistics_of(grid, channel)];
    const double variance =
        bnk_get(s->running_var, grid->is_double, bnk_running_of(grid, channel), 0);
    return bnk_invstd(variance, s->epsilon);
}

#endif
