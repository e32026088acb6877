/*
 * The training forward: the reduction of moments. See reduction.h; running statistics are taken care of in running.c, the
 * forward with given statistics is in inference.c.
 */
#include "indices.h"
#include "normalization.h"
#include "piece_moments.h"
#include "reduction.h"
#include "running.h"

typedef struct training {
    bnk_operation operation; /* first */
    bnk_forward *job;
    const bnk_moment_arrays *moments; /* the caller's, of a split forward */
} training;

static const training *training_of(const bnk_operation *operation)
{
    return (const training *)operation;
}

static double reduce(const bnk_operation *operation, const bnk_piece *piece, void *results,
                     bnk_application *other)
{
    const bnk_operands *o = &operation->operands;
    return o->cut->plan.by_columns ? bnk_column_moments(o, piece, results)
                                   : bnk_row_moments(o, piece, results, other);
}

static void merge(void *all, double all_count, const void *own, double own_count, int64_t channels)
{
    bnk_moments_add(all, all_count, own, own_count, channels);
}

BNK_FORM void save(double *to, int64_t at, int64_t count, const double *values)
{
    if (to) bnk_set_some(to, 1, at, count, values);
}

static void count_channels(int64_t *total, int64_t more)
{
    if (more > 0) __atomic_fetch_add(total, more, __ATOMIC_RELAXED);
}

/* Saves, updates the running statistics and gives the coefficients. */
BNK_FORM void finish_some(const bnk_operation *operation, int64_t channel, int64_t channels,
                          const bnk_moments *moments, const bnk_linears *linears)
{
    const bnk_grid *grid = &operation->operands.cut->grid;
    bnk_forward *job = training_of(operation)->job;
    double mean[BNK_TOGETHER], mean_rest[BNK_TOGETHER];
    double variance[BNK_TOGETHER], invstd[BNK_TOGETHER];
    int64_t nonfinite = 0;
    for (int64_t i = 0; i < channels; i++) {
        variance[i] = bnk_variance_of(moments[i], operation->count);
        const bool fits = isfinite(variance[i]);
        /* NaN also where the sum overflowed: no half-right output. */
        mean[i] = fits ? moments[i].mean : (double)NAN;
        mean_rest[i] = moments[i].mean_rest;
        invstd[i] = bnk_invstd(variance[i], job->epsilon);
        nonfinite += !fits;
    }
    const int64_t at = bnk_statistics_of(grid, channel);
    save(job->saved_mean, at, channels, mean);
    save(job->saved_mean_rest, at, channels, mean_rest);
    save(job->saved_invstd, at, channels, invstd);
    if (job->running_mean) {
        const bnk_running_update update =
            bnk_update_running(job, grid, channel, channels, mean, variance);
        nonfinite = update.unfit;
        count_channels(&job->nonfinite_running_channels, update.nonfinite);
    }
    count_channels(&job->nonfinite_channels, nonfinite);
    bnk_ingredients of;
    of.channels = channels;
    of.mean = mean;
    of.mean_rest = mean_rest;
    of.invstd = invstd;
    bnk_normalization(grid, channel, job->weight, job->bias, &of, linears);
}

static void finish_one(const bnk_operation *operation, int64_t channel, const void *result,
                       const bnk_linears *linears)
{
    finish_some(operation, channel, 1, result, linears);
}

static BNK_BY_VECTORS void finish_by_vectors(const bnk_operation *operation, int64_t channel,
                                             int64_t channels, const void *results,
                                             const bnk_linears *linears)
{
    finish_some(operation, channel, channels, results, linears);
}

static bnk_extreme finish_extreme(const bnk_operation *operation, int64_t channel,
                                  const void *result)
{
    const bnk_forward *job = training_of(operation)->job;
    const bnk_moments *moments = result;
    const double invstd = bnk_invstd(bnk_variance_of(*moments, operation->count), job->epsilon);
    return bnk_extreme_normalization(&operation->operands.cut->grid, channel, job->weight,
                                     job->bias, moments->mean, moments->mean_rest, invstd);
}

static void give(const bnk_operation *operation, int64_t channel, int64_t channels,
                 const void *results)
{
    const int64_t at = bnk_statistics_of(&operation->operands.cut->grid, channel);
    const bnk_moments *moments = results;
    for (int64_t i = 0; i < channels; i++)
        bnk_moments_put(training_of(operation)->moments, at + i, moments[i]);
}

static void take(const bnk_operation *operation, int64_t channel, int64_t channels, void *results)
{
    const int64_t at = bnk_statistics_of(&operation->operands.cut->grid, channel);
    bnk_moments *moments = results;
    for (int64_t i = 0; i < channels; i++)
        moments[i] = bnk_moments_at(training_of(operation)->moments, at + i);
}

static const bnk_reduction moments_reduction = {
    .size = sizeof(bnk_moments),
    .reduce = reduce,
    .merge = merge,
    .finish_one = finish_one,
    .finish_by_vectors = finish_by_vectors,
    .finish_extreme = finish_extreme,
    .give = give,
    .take = take,
};
_Static_assert(sizeof(bnk_moments) <= BNK_RESULT_DOUBLES * sizeof(double), "see reduction.h");

/* ---- entries ---- */

static training training_on(const bnk_cut *cut, bnk_forward *job, const bnk_moment_arrays *moments)
{
    const bnk_operands operands = { .cut = cut,
                                    .leaves = bnk_leaves_for(cut->plan.isa, &cut->grid),
                                    .x = job->input,
                                    .y = job->output,
                                    .epilogue = job->epilogue,
                                    .positions = job->positions };
    return (training){ .operation = { .reduction = &moments_reduction,
                                      .operands = operands,
                                      .count = moments ? moments->count : (double)job->count,
                                      .has_results = true,
                                      .applies = true },
                       .job = job,
                       .moments = moments };
}

int64_t bnk_forward_workspace(const bnk_cut *cut)
{
    return bnk_operation_workspace(&moments_reduction, cut);
}

void bnk_forward_training(const bnk_cut *cut, bnk_forward *job)
{
    training t = training_on(cut, job, NULL);
    job->nonfinite_channels = job->nonfinite_running_channels = 0;
    bnk_operation_run(&t.operation, job->workspace);
}

int64_t bnk_moments_workspace(const bnk_cut *cut)
{
    return bnk_reduce_part_workspace(&moments_reduction, cut);
}

void bnk_moments_run(const bnk_cut *cut, const void *input, bnk_positions positions,
                     const bnk_moment_arrays *moments, void *workspace)
{
    bnk_forward job = { .input = input, .positions = positions };
    training t = training_on(cut, &job, moments);
    bnk_reduce_part_run(&t.operation, workspace);
}

int64_t bnk_normalize_workspace(const bnk_cut *cut)
{
    return bnk_apply_part_workspace(cut);
}

void bnk_normalize(const bnk_cut *cut, const bnk_moment_arrays *moments, bnk_forward *job)
{
    training t = training_on(cut, job, moments);
    job->nonfinite_channels = job->nonfinite_running_channels = 0;
    bnk_apply_part_run(&t.operation, job->workspace);
}

void bnk_normalize_nothing(const bnk_grid *grid, const bnk_moment_arrays *moments, bnk_forward *job)
{
    const bnk_cut cut = { .grid = *grid };
    const training t = training_on(&cut, job, moments);
    job->nonfinite_channels = job->nonfinite_running_channels = 0;
    bnk_apply_part_to_nothing(&t.operation);
}
