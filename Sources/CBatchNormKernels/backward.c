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

static const bnk_statistics *statistics_of(const bnk_operation *operation)
{
    return &backward_of(operation)->job->statistics;
}

BNK_FORM const double *means_of(const bnk_operation *operation, int64_t channel, int64_t channels,
                                double *memory)
{
    return bnk_means_of(statistics_of(operation), grid_of(operation), channel, channels, memory);
}

BNK_FORM const double *invstds_of(const bnk_operation *operation, int64_t channel, int64_t channels,
                                  double *memory)
{
    return bnk_invstds_of(statistics_of(operation), grid_of(operation), channel, channels, memory);
}

/* float32 results have no use for it. */
BNK_FORM const double *mean_rests_of(const bnk_operation *operation, int64_t channel)
{
    const bnk_grid *grid = grid_of(operation);
    const bnk_statistics none = { 0 };
    return bnk_mean_rests_of(grid->is_double ? statistics_of(operation) : &none, grid, channel);
}

static double reduce(const bnk_operation *operation, const bnk_piece *piece, void *results,
                     bnk_application *other)
{
    const bnk_operands *o = &operation->operands;
    bnk_gradients *sums = results;
    double memory[BNK_MAX_COLUMNS];
    const double *means = means_of(operation, piece->channel, piece->channels, memory);
    if (o->cut->plan.by_columns)
        bnk_column_gradients(o, piece, means, sums);
    else
        bnk_row_gradients(o, piece, means[0], sums, other);
    /* The leaves subtract a mean of one number. */
    const bnk_statistics *s = statistics_of(operation);
    if (o->cut->grid.is_double && s->mean_rest) {
        const double *rests = bnk_mean_rests_of(s, &o->cut->grid, piece->channel);
        for (int64_t c = 0; c < piece->channels; c++)
            if (rests[c] != 0) sums[c].dy_xmu -= rests[c] * sums[c].dy;
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

/* What the coefficients of some channels are formed of. */
typedef struct ingredients {
    int64_t channels;
    double count;
    const double *mean, *mean_rest, *invstd;
    double weight[BNK_TOGETHER];
    double dy[BNK_TOGETHER], dy_xmu[BNK_TOGETHER]; /* the sums */
} ingredients;

/* dx = gain * dy - gain * mean(dy) - gain * c * invstd^2 * mean(dy * c), where c is x - mean.
 * Returns whether all coefficients are usual, and so serve. */
BNK_FORM bool form_through_batch(const ingredients *of, int32_t is_double, const bnk_linears *to)
{
    bool usual = true;
    BNK_SHORT_LOOP
    for (int64_t i = 0; i < of->channels; i++) {
        const double invstd = of->invstd[i], scale = bnk_scale(invstd);
        const double gain = of->weight[i] * invstd;
        const double correlation = invstd * (of->dy_xmu[i] / of->count);
        bnk_linear f = bnk_linear_of(scale, of->mean[i], of->mean_rest[i],
                                     -gain * (invstd / scale) * correlation,
                                     -gain * (of->dy[i] / of->count), is_double);
        f.factor = bnk_round(gain, is_double);
        usual &= bnk_is_usual_gradient(&f);
        bnk_linears_set(to, is_double, i, f);
    }
    return usual;
}

BNK_FORM void through_batch(const ingredients *of, int32_t is_double, const bnk_linears *to)
{
    if (is_double ? form_through_batch(of, 1, to) : form_through_batch(of, 0, to)) return;
    for (int64_t i = 0; i < of->channels; i++) {
        const double mean_product = of->dy_xmu[i] / of->count;
        bnk_linears_settle_gradient(to, is_double, i, of->weight[i], of->invstd[i], mean_product,
                                    of->invstd[i] * mean_product);
    }
}

/* dx = dy * gain, by the forward's leaf with dy as x; -0 keeps the sign of every zero. */
BNK_FORM bool form_through_frozen(const ingredients *of, int32_t is_double, const bnk_linears *to)
{
    bool usual = true;
    BNK_SHORT_LOOP
    for (int64_t i = 0; i < of->channels; i++) {
        const double gain = of->weight[i] * of->invstd[i];
        const bnk_linear f = { 1, -0.0, bnk_round(gain, is_double), 0, -0.0, 0 };
        usual &= bnk_is_usual_forward(&f);
        bnk_linears_set(to, is_double, i, f);
    }
    return usual;
}

BNK_FORM void through_frozen(const ingredients *of, int32_t is_double, const bnk_linears *to)
{
    if (is_double ? form_through_frozen(of, 1, to) : form_through_frozen(of, 0, to)) return;
    for (int64_t i = 0; i < of->channels; i++)
        bnk_linears_settle_forward(to, is_double, i, of->weight[i], of->invstd[i]);
}

/* Writes the parameters' gradients and gives the coefficients. */
BNK_FORM void finish_some(const bnk_operation *operation, int64_t channel, int64_t channels,
                          const bnk_gradients *sums, const bnk_linears *linears)
{
    const bnk_backward *job = backward_of(operation)->job;
    const bnk_grid *grid = grid_of(operation);
    const int32_t is_double = grid->is_double;
    const int64_t at = bnk_parameter_of(grid, channel);
    double mean[BNK_TOGETHER], invstd[BNK_TOGETHER];
    ingredients of;
    of.channels = channels;
    of.count = operation->count;
    of.mean = means_of(operation, channel, channels, mean);
    of.mean_rest = mean_rests_of(operation, channel);
    of.invstd = invstds_of(operation, channel, channels, invstd);
    bnk_get_some(job->weight, is_double, at, channels, 1, of.weight);
    for (int64_t i = 0; i < channels; i++) {
        of.dy[i] = sums[i].dy;
        of.dy_xmu[i] = sums[i].dy_xmu;
    }

    if (job->grad_bias) bnk_set_some(job->grad_bias, is_double, at, channels, of.dy);
    if (job->grad_weight) {
        double gradient[BNK_TOGETHER];
        BNK_SHORT_LOOP
        for (int64_t i = 0; i < channels; i++) gradient[i] = of.dy_xmu[i] * of.invstd[i];
        bnk_set_some(job->grad_weight, is_double, at, channels, gradient);
    }
    if (job->frozen)
        through_frozen(&of, is_double, linears);
    else
        through_batch(&of, is_double, linears);
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

/* The same formulas. */
static bnk_extreme finish_extreme(const bnk_operation *operation, int64_t channel,
                                  const void *result)
{
    const bnk_backward *job = backward_of(operation)->job;
    const bnk_grid *grid = grid_of(operation);
    const double weight = bnk_get(job->weight, grid->is_double, bnk_parameter_of(grid, channel), 1);
    double mean, own;
    const bnk_scaled invstd = bnk_scaled_of(*invstds_of(operation, channel, 1, &own));
    const bnk_scaled gain = bnk_scaled_product(bnk_scaled_of(weight), invstd);
    if (job->frozen) return (bnk_extreme){ .offset = bnk_scaled_of(-0.0), .factor = gain };
    const bnk_gradients *sums = result;
    const bnk_scaled loss = bnk_scaled_product(gain, bnk_scaled_of(-1));
    const bnk_scaled correlation =
        bnk_scaled_product(invstd, bnk_scaled_of(sums->dy_xmu / operation->count));
    return (bnk_extreme){
        .mean = *means_of(operation, channel, 1, &mean),
        .mean_rest = *mean_rests_of(operation, channel),
        .gain = bnk_scaled_product(bnk_scaled_product(loss, invstd), correlation),
        .offset = bnk_scaled_product(loss, bnk_scaled_of(sums->dy / operation->count)),
        .factor = gain,
    };
}

static void give(const bnk_operation *operation, int64_t channel, int64_t channels,
                 const void *results)
{
    const bnk_gradient_sums *to = backward_of(operation)->sums;
    const bnk_gradients *sums = results;
    const int64_t at = bnk_statistics_of(grid_of(operation), channel);
    for (int64_t i = 0; i < channels; i++) {
        to->dy[at + i] = sums[i].dy;
        to->dy_xmu[at + i] = sums[i].dy_xmu;
    }
}

static void take(const bnk_operation *operation, int64_t channel, int64_t channels, void *results)
{
    const bnk_gradient_sums *from = backward_of(operation)->sums;
    bnk_gradients *sums = results;
    const int64_t at = bnk_statistics_of(grid_of(operation), channel);
    for (int64_t i = 0; i < channels; i++)
        sums[i] = (bnk_gradients){ from->dy[at + i], from->dy_xmu[at + i] };
}

static const bnk_reduction gradients_reduction = {
    .size = sizeof(bnk_gradients),
    .reduce = reduce,
    .merge = merge,
    .finish_one = finish_one,
    .finish_by_vectors = finish_by_vectors,
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
