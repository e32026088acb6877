/* The backward: the reduction of gradient sums. See reduction.h. */
#include "piece_gradients.h"
#include "reduction.h"
#include "statistics.h"

typedef struct backward {
    bnk_operation operation; /* first */
    const bnk_backward *job;
    const bnk_gradient_sums *sums; /* the caller's, of a split backward */
} backward;

static const backward *backward_of(const bnk_operation *operation)
{
    return (const backward *)operation;
}

static const bnk_grid *grid_of(const bnk_operation *operation)
{
    return &operation->operands.cut->grid;
}

static double mean_of(const bnk_operation *operation, int64_t channel)
{
    return bnk_mean_of(&backward_of(operation)->job->statistics, grid_of(operation), channel);
}

/* float32 results have no use for it. */
static double mean_rest_of(const bnk_operation *operation, int64_t channel)
{
    const bnk_grid *grid = grid_of(operation);
    if (!grid->is_double) return 0;
    return bnk_mean_rest_of(&backward_of(operation)->job->statistics, grid, channel);
}

static double invstd_of(const bnk_operation *operation, int64_t channel)
{
    return bnk_invstd_of(&backward_of(operation)->job->statistics, grid_of(operation), channel);
}

static double reduce(const bnk_operation *operation, const bnk_piece *piece, void *results,
                     bnk_application *other)
{
    const bnk_operands *o = &operation->operands;
    bnk_gradients *sums = results;
    double means[BNK_MAX_COLUMNS];
    for (int64_t c = 0; c < piece->channels; c++) means[c] = mean_of(operation, piece->channel + c);
    if (o->cut->plan.by_columns)
        bnk_column_gradients(o, piece, means, sums);
    else
        bnk_row_gradients(o, piece, means[0], sums, other);
    /* The leaves subtract a mean of one number. */
    for (int64_t c = 0; c < piece->channels; c++) {
        const double rest = mean_rest_of(operation, piece->channel + c);
        if (rest != 0) sums[c].dy_xmu -= rest * sums[c].dy;
    }
    return 0; /* sums merge without it */
}

static void merge(void *all, double all_count, const void *own, double own_count, int64_t channels)
{
    (void)all_count, (void)own_count;
    bnk_gradients *total = all;
    const bnk_gradients *more = own;
    for (int64_t c = 0; c < channels; c++) {
        total[c].dy += more[c].dy;
        total[c].dy_xmu += more[c].dy_xmu;
    }
}

/* dx = gain * dy - gain * mean(dy) - gain * c * invstd^2 * mean(dy * c), where c is x - mean. */
static bnk_linear through_batch(const bnk_operation *operation, int64_t channel, double weight,
                                const bnk_gradients *sums)
{
    const int32_t is_double = grid_of(operation)->is_double;
    const double invstd = invstd_of(operation, channel), gain = weight * invstd;
    const double scale = bnk_scale(invstd), mean_product = sums->dy_xmu / operation->count;
    const double correlation = invstd * mean_product;
    bnk_linear f = bnk_linear_of(
        scale, mean_of(operation, channel), mean_rest_of(operation, channel),
        -gain * (invstd / scale) * correlation, -gain * (sums->dy / operation->count), is_double);
    f.factor = bnk_round(gain, is_double);
    return bnk_serves_gradient(&f, weight, invstd, mean_product, correlation, is_double)
               ? f
               : bnk_linear_of_extreme();
}

/* dx = dy * gain, by the forward's leaf with dy as x; -0 keeps the sign of every zero. */
static bnk_linear through_frozen(double weight, double invstd, int32_t is_double)
{
    const double gain = weight * invstd;
    const bnk_linear scaled = { 1, -0.0, bnk_round(gain, is_double), 0, -0.0, 0 };
    return bnk_serves_forward(&scaled, weight, invstd, gain, is_double) ? scaled
                                                                        : bnk_linear_of_extreme();
}

/* Writes the parameters' gradients and gives the coefficients. */
static bnk_linear finish_channel(const bnk_operation *operation, int64_t channel,
                                 const bnk_gradients *sums)
{
    const bnk_backward *job = backward_of(operation)->job;
    const bnk_grid *grid = grid_of(operation);
    const int64_t at = bnk_parameter_of(grid, channel);
    const double invstd = invstd_of(operation, channel);
    if (job->grad_bias) bnk_set(job->grad_bias, grid->is_double, at, sums->dy);
    if (job->grad_weight) bnk_set(job->grad_weight, grid->is_double, at, sums->dy_xmu * invstd);
    const double weight = bnk_get(job->weight, grid->is_double, at, 1);
    return job->frozen ? through_frozen(weight, invstd, grid->is_double)
                       : through_batch(operation, channel, weight, sums);
}

static void finish(const bnk_operation *operation, int64_t channel, int64_t channels,
                   const void *results, const bnk_linears *linears)
{
    const bnk_gradients *sums = results;
    for (int64_t i = 0; i < channels; i++)
        bnk_linears_set(linears, grid_of(operation)->is_double, i,
                        finish_channel(operation, channel + i, &sums[i]));
}

/* The same formulas. */
static bnk_extreme finish_extreme(const bnk_operation *operation, int64_t channel,
                                  const void *result)
{
    const bnk_backward *job = backward_of(operation)->job;
    const bnk_grid *grid = grid_of(operation);
    const double weight = bnk_get(job->weight, grid->is_double, bnk_parameter_of(grid, channel), 1);
    const bnk_scaled invstd = bnk_scaled_of(invstd_of(operation, channel));
    const bnk_scaled gain = bnk_scaled_product(bnk_scaled_of(weight), invstd);
    if (job->frozen) return (bnk_extreme){ .offset = bnk_scaled_of(-0.0), .factor = gain };
    const bnk_gradients *sums = result;
    const bnk_scaled loss = bnk_scaled_product(gain, bnk_scaled_of(-1));
    const bnk_scaled correlation =
        bnk_scaled_product(invstd, bnk_scaled_of(sums->dy_xmu / operation->count));
    return (bnk_extreme){
        .mean = mean_of(operation, channel),
        .mean_rest = mean_rest_of(operation, channel),
        .gain = bnk_scaled_product(bnk_scaled_product(loss, invstd), correlation),
        .offset = bnk_scaled_product(loss, bnk_scaled_of(sums->dy / operation->count)),
        .factor = gain,
    };
}

static void give(const bnk_operation *operation, int64_t channel, const void *result)
{
    const bnk_gradient_sums *to = backward_of(operation)->sums;
    const bnk_gradients *sums = result;
    const int64_t at = bnk_statistics_of(grid_of(operation), channel);
    to->dy[at] = sums->dy;
    to->dy_xmu[at] = sums->dy_xmu;
}

static void take(const bnk_operation *operation, int64_t channel, void *result)
{
    const bnk_gradient_sums *from = backward_of(operation)->sums;
    const int64_t at = bnk_statistics_of(grid_of(operation), channel);
    *(bnk_gradients *)result = (bnk_gradients){ from->dy[at], from->dy_xmu[at] };
}

static const bnk_reduction gradients_reduction = {
    .size = sizeof(bnk_gradients),
    .reduce = reduce,
    .merge = merge,
    .finish = finish,
    .finish_extreme = finish_extreme,
    .give = give,
    .take = take,
};
_Static_assert(sizeof(bnk_gradients) <= BNK_RESULT_DOUBLES * sizeof(double), "see reduction.h");

/* ---- entries ---- */

static backward backward_on(const bnk_cut *cut, const bnk_backward *job,
                            const bnk_gradient_sums *sums)
{
    const bnk_operands operands = { .cut = cut,
                                    .leaves = bnk_leaves_for(cut->plan.isa, &cut->grid),
                                    .x = job->input,
                                    .dy = job->grad_output,
                                    .y = job->grad_input,
                                    .frozen = job->frozen,
                                    .epilogue = job->epilogue,
                                    .positions = job->positions };
    const bool writes_parameters = job->grad_weight || job->grad_bias;
    const bool writes_residual = job->epilogue.grad_residual != NULL;
    return (backward){
        .operation = { .reduction = &gradients_reduction,
                       .operands = operands,
                       .count = sums ? sums->count : (double)job->count,
                       .has_results = writes_parameters || (job->grad_input && !job->frozen),
                       .applies = job->grad_input || writes_residual },
        .job = job,
        .sums = sums,
    };
}

int64_t bnk_backward_workspace(const bnk_cut *cut)
{
    return bnk_operation_workspace(&gradients_reduction, cut);
}

void bnk_backward_run(const bnk_cut *cut, const bnk_backward *job)
{
    backward t = backward_on(cut, job, NULL);
    bnk_operation_run(&t.operation, job->workspace);
}

int64_t bnk_backward_reduce_workspace(const bnk_cut *cut)
{
    return bnk_reduce_part_workspace(&gradients_reduction, cut);
}

void bnk_backward_reduce(const bnk_cut *cut, const bnk_backward *job, const bnk_gradient_sums *sums)
{
    backward t = backward_on(cut, job, sums);
    t.operation.has_results = true; /* who asks for them needs them */
    bnk_reduce_part_run(&t.operation, job->workspace);
}

int64_t bnk_backward_apply_workspace(const bnk_cut *cut)
{
    return bnk_apply_part_workspace(cut);
}

void bnk_backward_apply(const bnk_cut *cut, const bnk_gradient_sums *sums, const bnk_backward *job)
{
    backward t = backward_on(cut, job, sums);
    bnk_apply_part_run(&t.operation, job->workspace);
}

void bnk_backward_apply_nothing(const bnk_grid *grid, const bnk_gradient_sums *sums,
                                const bnk_backward *job)
{
    const bnk_cut cut = { .grid = *grid };
    const backward t = backward_on(&cut, job, sums);
    bnk_apply_part_to_nothing(&t.operation);
}
