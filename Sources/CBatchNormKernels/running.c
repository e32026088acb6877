/* Running statistics: see running.h. */
#include "running.h"

#include <math.h>

#include "statistics.h"

/* This batch's share in running statistic `i` of all means and then all variances. */
static double share_of(const bnk_forward *job, int64_t i)
{
    return job->batches ? 1 / (double)(job->batches - job->skipped[i]) : job->momentum;
}

/* With a share of 1 the old value does not count, be it NaN. */
static double averaged(double old, double batch, double share)
{
    return share == 1 ? batch : (1 - share) * old + share * batch;
}

bnk_running_update bnk_update_running(const bnk_forward *job, const bnk_grid *grid, int64_t channel,
                                      double batch_mean, double batch_var)
{
    const int32_t is_double = grid->is_double;
    const int64_t at = bnk_running_of(grid, channel), var_at = grid->channels + at;
    const double mean_share = share_of(job, at), var_share = share_of(job, var_at);
    const double old_mean = bnk_get(job->running_mean, is_double, at, 0);
    const double old_var = bnk_get(job->running_var, is_double, at, 0);
    const double mean = averaged(old_mean, batch_mean, mean_share);
    const double var = averaged(old_var, batch_var * job->variance_scale, var_share);
    /* No average mends NaN and infinity. */
    bool take_mean = mean_share == 1 || isfinite(old_mean);
    bool take_var = job->variance_scale > 0 && (var_share == 1 || isfinite(old_var));
    /* A variance may be finite and yet too large for float32: it must not become infinite there. */
    const bool fits = (!take_mean || isfinite(bnk_round(mean, is_double))) &&
                      (!take_var || isfinite(bnk_round(var, is_double)));
    take_mean = take_mean && fits;
    take_var = take_var && fits;
    if (take_mean) bnk_set(job->running_mean, is_double, at, mean);
    if (take_var) bnk_set(job->running_var, is_double, at, var);
    if (job->skipped) {
        job->skipped[at] += !take_mean;
        job->skipped[var_at] += !take_var;
    }
    return (bnk_running_update){ fits, (take_mean || isfinite(old_mean)) &&
                                           (take_var || isfinite(old_var)) };
}

void bnk_statistics_from_running(const bnk_grid *grid, const void *running_mean,
                                 const void *running_var, double epsilon, double *mean,
                                 double *invstd)
{
    const bnk_statistics running = { .running_mean = running_mean,
                                     .running_var = running_var,
                                     .epsilon = epsilon };
    for (int64_t c = 0; c < grid->channels; c++) {
        mean[bnk_statistics_of(grid, c)] = bnk_mean_of(&running, grid, c);
        invstd[bnk_statistics_of(grid, c)] = bnk_invstd_of(&running, grid, c);
    }
}
