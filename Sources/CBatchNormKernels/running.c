/* Running statistics: see running.h. */
#include "running.h"

#include <math.h>

#include "statistics.h"

bnk_running_update bnk_settle_running(const bnk_forward *job, const bnk_grid *grid,
                                      const bnk_average *mean, const bnk_average *var, bool fits,
                                      int64_t i)
{
    const int32_t is_double = grid->is_double;
    const bool finite_mean = isfinite(mean->old[i]), finite_var = isfinite(var->old[i]);
    /* No average mends NaN and infinity. */
    bool take_mean = mean->share[i] == 1 || finite_mean;
    bool take_var = job->variance_scale > 0 && (var->share[i] == 1 || finite_var);
    /* A variance may be finite and yet too large for float32: it must not become infinite there. */
    fits = fits && (!take_mean || isfinite(bnk_round(mean->renewed[i], is_double))) &&
           (!take_var || isfinite(bnk_round(var->renewed[i], is_double)));
    take_mean = take_mean && fits;
    take_var = take_var && fits;
    if (take_mean) bnk_set(mean->values, is_double, mean->at + i, mean->renewed[i]);
    if (take_var) bnk_set(var->values, is_double, var->at + i, var->renewed[i]);
    if (job->skipped) {
        job->skipped[mean->at + i] += !take_mean;
        job->skipped[grid->channels + var->at + i] += !take_var;
    }
    return (bnk_running_update){ !fits, !(take_mean || finite_mean) || !(take_var || finite_var) };
}

void bnk_statistics_from_running(const bnk_grid *grid, const void *running_mean,
                                 const void *running_var, double epsilon, double *mean,
                                 double *invstd)
{
    const bnk_statistics running = { .running_mean = running_mean,
                                     .running_var = running_var,
                                     .epsilon = epsilon };
    const int64_t at = bnk_statistics_of(grid, 0);
    bnk_means_of(&running, grid, 0, grid->channels, mean + at);
    bnk_invstds_of(&running, grid, 0, grid->channels, invstd + at);
}
