/* Running statistics: how a batch is taken into them. */
#ifndef BNK_RUNNING_H
#define BNK_RUNNING_H

#include "coefficients.h"
#include "indices.h"

/* One of the two running statistics of some channels. */
typedef struct bnk_average {
    void *values;
    int64_t at;                 /* of the first channel's */
    double share[BNK_TOGETHER]; /* the batch's */
    double old[BNK_TOGETHER], renewed[BNK_TOGETHER];
} bnk_average;

BNK_FORM void bnk_get_shares(const bnk_forward *job, int64_t first, int64_t count, double *share)
{
    if (!job->batches) {
        for (int64_t i = 0; i < count; i++) share[i] = job->momentum;
        return;
    }
    for (int64_t i = 0; i < count; i++)
        share[i] = 1 / (double)(job->batches - job->skipped[first + i]);
}

/* Takes in `scale` times the batch's. With a share of 1 the old value does not count, be it NaN. Returns whether what
 * comes of it are usual numbers, which fit; and the old ones that counted were finite then. */
BNK_FORM bool bnk_renew(bnk_average *a, const double *batch, double scale, int64_t count)
{
    bool usual = true;
    BNK_SHORT_LOOP
    for (int64_t i = 0; i < count; i++) {
        const double share = a->share[i], own = batch[i] * scale;
        a->renewed[i] = share == 1 ? own : (1 - share) * a->old[i] + share * own;
        usual &= bnk_is_small(a->renewed[i]);
    }
    return usual;
}

/* Of how many channels the running statistics were not as they should be. */
typedef struct bnk_running_update {
    int64_t unfit;     /* the batch is NaN or infinite, or would make one of them so; both stay */
    int64_t nonfinite; /* one of them was NaN or infinite, and has stayed so */
} bnk_running_update;

/* Takes the batch into those of channel `i` of some as far as it can be, where `fits` says that the batch is finite. */
bnk_running_update bnk_settle_running(const bnk_forward *job, const bnk_grid *grid,
                                      const bnk_average *mean, const bnk_average *var, bool fits,
                                      int64_t i);

/* Takes a batch's means and biased variances into the running statistics of `count` channels, at most BNK_TOGETHER,
 * each as far as it can be. */
BNK_FORM bnk_running_update bnk_update_running(const bnk_forward *job, const bnk_grid *grid,
                                               int64_t channel, int64_t count,
                                               const double *batch_mean, const double *batch_var)
{
    const int32_t is_double = grid->is_double;
    const int64_t at = bnk_running_of(grid, channel);
    bnk_average mean, var;
    mean.values = job->running_mean;
    var.values = job->running_var;
    mean.at = var.at = at;
    bnk_get_shares(job, at, count, mean.share);
    bnk_get_shares(job, grid->channels + at, count, var.share);
    bnk_get_some(mean.values, is_double, at, count, 0, mean.old);
    bnk_get_some(var.values, is_double, at, count, 0, var.old);
    const bool usual_means = bnk_renew(&mean, batch_mean, 1, count);
    const bool usual_vars = bnk_renew(&var, batch_var, job->variance_scale, count);
    bnk_running_update all = { 0, 0 };
    if (usual_means && usual_vars && job->variance_scale > 0) {
        bnk_set_some(mean.values, is_double, at, count, mean.renewed);
        bnk_set_some(var.values, is_double, at, count, var.renewed);
        return all;
    }
    for (int64_t i = 0; i < count; i++) {
        const bnk_running_update own =
            bnk_settle_running(job, grid, &mean, &var, isfinite(batch_var[i]), i);
        all.unfit += own.unfit;
        all.nonfinite += own.nonfinite;
    }
    return all;
}

#endif
