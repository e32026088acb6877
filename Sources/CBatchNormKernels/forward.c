/*
 * The forward operations. Training: the moments of every piece, merged in order; a channel's
 * coefficients and running statistics; the coefficients applied. Inference: the last step only.
 * Called by Kernels.swift with a plan that fits the grid.
 */
#include "apply.h"
#include "coefficients.h"
#include "columns.h"
#include "leaves.h"
#include "moments.h"
#include "parallel.h"
#include "pieces.h"

/* A tile is what one pivot serves: four rows of at most TILE values, or more and shorter ones. Part
 * of the order of the sums. */
enum { TILE = 16384 };

typedef struct training {
    bnk_forward *job;
    bnk_cut cut;
    const bnk_leaves *leaves;
    bnk_moments *partial; /* [piece][channel], if not fused */
    bnk_linears linears;  /* [channel], if not fused */
} training;

/* ---- moments ---- */

static double first_value(const void *x, int32_t is_double)
{
    return bnk_get(x, is_double, 0, 0);
}

static bnk_moments row_piece_moments(const training *t, const bnk_piece *piece)
{
    const bnk_cut *cut = &t->cut;
    const char *x = (const char *)t->job->input + piece->start;
    bnk_moments all = { 0, 0, 0 };
    double count = 0;
    for (int64_t at = 0; at < piece->length; at += TILE) {
        const int64_t length = bnk_min(TILE, piece->length - at);
        const int64_t fit = TILE / length / 4 * 4;
        const int64_t tile_rows = fit > 4 ? fit : 4;
        for (int64_t row = 0; row < piece->rows; row += tile_rows) {
            const int64_t rows = bnk_min(tile_rows, piece->rows - row);
            const char *tile = x + (row * cut->stride + at) * cut->element;
            const double pivot = first_value(tile, cut->grid->is_double);
            const double n = (double)(rows * length);
            double sums[2];
            t->leaves->row_sums(tile, rows, cut->stride, length, pivot, sums);
            const bnk_moments own = bnk_moments_of_sums(n, pivot, sums[0], sums[1]);
            bnk_moments_add(&all, count, &own, n, 1);
            count += n;
        }
    }
    return all;
}

/* Moments of each channel of a piece by columns, written to moments[0..channels). */
static void column_piece_moments(const training *t, const bnk_piece *piece, bnk_moments *moments)
{
    const bnk_cut *cut = &t->cut;
    const int64_t inner = cut->grid->inner, channels = piece->channels;
    double pivot[BNK_MAX_COLUMNS], sum[BNK_MAX_COLUMNS], squares[BNK_MAX_COLUMNS];
    double channel_pivot[BNK_MAX_COLUMNS], channel_sum[BNK_MAX_COLUMNS],
        channel_squares[BNK_MAX_COLUMNS];
    bnk_moments own[BNK_MAX_COLUMNS];
    const char *x = (const char *)t->job->input + piece->start;
    double count = 0;

    int64_t row = 0;
    while (row < piece->rows) {
        /* The last rows, too few for another fold, are taken one by one. */
        const int64_t left = piece->rows - row;
        const int64_t fold = bnk_fold_of(cut->plan, left);
        const int64_t columns = channels * inner * fold;
        const int64_t fit = TILE / (inner * fold) > 16 ? TILE / (inner * fold) : 16;
        const int64_t lines = bnk_min(left / fold, fit);
        const char *tile = x + row * cut->stride * cut->element;

        for (int64_t c = 0; c < channels; c++)
            channel_pivot[c] = bnk_get(tile, cut->grid->is_double, c * inner, 0);
        bnk_expand_double(channel_pivot, channels, inner, fold, pivot);
        for (int64_t j = 0; j < columns; j++) sum[j] = squares[j] = 0;
        t->leaves->column_sums(tile, lines, cut->stride * fold, columns, bnk_from_memory(cut),
                               pivot, sum, squares);
        bnk_collapse(sum, channels, inner, fold, channel_sum);
        bnk_collapse(squares, channels, inner, fold, channel_squares);

        const double n = (double)(lines * fold * inner);
        for (int64_t c = 0; c < channels; c++)
            own[c] = bnk_moments_of_sums(n, channel_pivot[c], channel_sum[c], channel_squares[c]);
        bnk_moments_add(moments, count, own, n, channels);
        count += n;
        row += lines * fold;
    }
}

/* ---- a channel's statistics ---- */

/* Saves, updates the running statistics and gives the coefficients. */
static bnk_linear finish_channel(bnk_forward *job, const bnk_grid *grid, int64_t channel,
                                 bnk_moments moments)
{
    const int32_t is_double = grid->is_double;
    double variance = moments.m2 / ((double)grid->rows * (double)grid->inner);
    int finite = isfinite(moments.mean) && isfinite(variance);
    if (!finite)
        moments.mean = variance = NAN; /* also where the sum overflowed: no half-right output */
    const double invstd = bnk_invstd(variance, job->epsilon);

    if (job->saved_mean) job->saved_mean[channel] = moments.mean;
    if (job->saved_invstd) job->saved_invstd[channel] = invstd;
    if (job->running_mean) {
        const double keep = 1 - job->momentum, take = job->momentum;
        const double old_mean = bnk_get(job->running_mean, is_double, channel, 0);
        const double old_var = bnk_get(job->running_var, is_double, channel, 0);
        const double mean = keep * old_mean + take * moments.mean;
        const double var = job->variance_scale > 0
                               ? keep * old_var + take * (variance * job->variance_scale)
                               : old_var;
        /* A variance may be finite and yet too large for float32: it must not become infinite
         * there. */
        if (isfinite(bnk_round(mean, is_double)) && isfinite(bnk_round(var, is_double))) {
            bnk_set(job->running_mean, is_double, channel, mean);
            bnk_set(job->running_var, is_double, channel, var);
        } else {
            finite = 0;
        }
    }
    if (!finite) __atomic_fetch_add(&job->nonfinite_channels, 1, __ATOMIC_RELAXED);
    return bnk_linear_of(moments.mean, moments.mean_rest, invstd,
                         bnk_get(job->weight, is_double, channel, 1) * invstd,
                         bnk_get(job->bias, is_double, channel, 0), is_double);
}

/* ---- training, channels whole ---- */

static void train_runs(void *context, int64_t begin, int64_t end)
{
    const training *t = context;
    const bnk_cut *cut = &t->cut;
    const int32_t is_double = cut->grid->is_double;
    for (int64_t run = begin; run < end; run++) {
        bnk_moments merged[BNK_MAX_COLUMNS], own[BNK_MAX_COLUMNS];
        double memory[BNK_LINEARS * BNK_MAX_COLUMNS];
        const bnk_linears linears = bnk_linears_in(memory, BNK_MAX_COLUMNS, is_double);
        const bnk_piece whole = bnk_whole_run(cut, run);
        double count = 0;
        for (int64_t p = 0; p < cut->pieces; p++) {
            const bnk_piece piece = bnk_piece_at(cut, run, p);
            const double n = (double)(piece.rows * piece.length);
            if (cut->plan->by_columns)
                column_piece_moments(t, &piece, own);
            else
                own[0] = row_piece_moments(t, &piece);
            bnk_moments_add(merged, count, own, n, piece.channels);
            count += n;
        }
        for (int64_t c = 0; c < whole.channels; c++)
            bnk_linears_set(&linears, is_double, c,
                            finish_channel(t->job, cut->grid, whole.channel + c, merged[c]));
        bnk_apply_piece(cut, t->leaves, &whole, &linears, t->job->input, NULL, t->job->output);
    }
}

/* ---- training, in three steps ---- */

static void reduce_pieces(void *context, int64_t begin, int64_t end)
{
    const training *t = context;
    const bnk_cut *cut = &t->cut;
    for (int64_t task = begin; task < end; task++) {
        const int64_t index = task / cut->runs;
        const bnk_piece piece = bnk_piece_at(cut, task % cut->runs, index);
        bnk_moments *partial = t->partial + index * cut->grid->channels + piece.channel;
        if (cut->plan->by_columns)
            column_piece_moments(t, &piece, partial);
        else
            *partial = row_piece_moments(t, &piece);
    }
}

/* Channels that a task of merge_channels takes together. */
enum { MERGED = 64 };

static void merge_channels(void *context, int64_t begin, int64_t end)
{
    const training *t = context;
    const bnk_cut *cut = &t->cut;
    for (int64_t task = begin; task < end; task++) {
        const int64_t first = task * MERGED;
        const int64_t channels = bnk_min(MERGED, cut->grid->channels - first);
        bnk_moments merged[MERGED];
        double count = 0;
        for (int64_t p = 0; p < cut->pieces; p++) {
            const bnk_piece piece = bnk_piece_at(cut, 0, p); /* in every run of the same size */
            const double n = (double)(piece.rows * piece.length);
            bnk_moments_add(merged, count, t->partial + p * cut->grid->channels + first, n,
                            channels);
            count += n;
        }
        for (int64_t c = 0; c < channels; c++)
            bnk_linears_set(&t->linears, cut->grid->is_double, first + c,
                            finish_channel(t->job, cut->grid, first + c, merged[c]));
    }
}

static void apply_pieces(void *context, int64_t begin, int64_t end)
{
    const training *t = context;
    for (int64_t task = begin; task < end; task++)
        bnk_apply_task(&t->cut, t->leaves, task, &t->linears, t->job->input, NULL, t->job->output);
}

/* ---- entries ---- */

int64_t bnk_forward_workspace(const bnk_grid *grid, const bnk_plan *plan)
{
    if (plan->fused) return 0;
    const bnk_cut cut = bnk_cut_grid(grid, plan);
    return cut.pieces * grid->channels * (int64_t)sizeof(bnk_moments) +
           BNK_LINEARS * grid->channels * cut.element;
}

void bnk_forward_training(const bnk_grid *grid, const bnk_plan *plan, bnk_forward *job)
{
    training t = { .job = job, .cut = bnk_cut_grid(grid, plan) };
    t.leaves = bnk_leaves_for(plan->isa, grid->is_double);
    job->nonfinite_channels = 0;
    if (plan->fused) {
        bnk_parallel(plan->threads, t.cut.runs, train_runs, &t);
        return;
    }
    t.partial = job->workspace;
    t.linears =
        bnk_linears_in(t.partial + t.cut.pieces * grid->channels, grid->channels, grid->is_double);
    bnk_parallel(plan->threads, t.cut.runs * t.cut.pieces, reduce_pieces, &t);
    bnk_parallel(plan->threads, bnk_ceil_div(grid->channels, MERGED), merge_channels, &t);
    bnk_parallel(plan->threads, bnk_apply_tasks(&t.cut), apply_pieces, &t);
}

typedef struct inference {
    const bnk_inference *job;
    bnk_cut cut;
    const bnk_leaves *leaves;
} inference;

static void infer_pieces(void *context, int64_t begin, int64_t end)
{
    const inference *t = context;
    const bnk_inference *job = t->job;
    const bnk_cut *cut = &t->cut;
    const int32_t is_double = cut->grid->is_double;
    for (int64_t task = begin; task < end; task++) {
        const bnk_piece piece = bnk_piece_at(cut, task % cut->runs, task / cut->runs);
        double memory[BNK_LINEARS * BNK_MAX_COLUMNS];
        const bnk_linears linears = bnk_linears_in(memory, BNK_MAX_COLUMNS, is_double);
        for (int64_t i = 0; i < piece.channels; i++) {
            const int64_t c = piece.channel + i;
            const double variance = bnk_get(job->running_var, is_double, c, 0);
            const double invstd = bnk_invstd(variance, job->epsilon);
            bnk_linears_set(&linears, is_double, i,
                            bnk_linear_of(bnk_get(job->running_mean, is_double, c, 0), 0, invstd,
                                          bnk_get(job->weight, is_double, c, 1) * invstd,
                                          bnk_get(job->bias, is_double, c, 0), is_double));
        }
        bnk_apply_piece(cut, t->leaves, &piece, &linears, job->input, NULL, job->output);
    }
}

void bnk_forward_inference(const bnk_grid *grid, const bnk_plan *plan, const bnk_inference *job)
{
    inference t = { .job = job, .cut = bnk_cut_grid(grid, plan) };
    t.leaves = bnk_leaves_for(plan->isa, grid->is_double);
    bnk_parallel(plan->threads, t.cut.runs * t.cut.pieces, infer_pieces, &t);
}

void bnk_statistics_from_running(const bnk_grid *grid, const void *running_mean,
                                 const void *running_var, double epsilon, double *mean,
                                 double *invstd)
{
    for (int64_t c = 0; c < grid->channels; c++) {
        mean[c] = bnk_get(running_mean, grid->is_double, c, 0);
        invstd[c] = bnk_invstd(bnk_get(running_var, grid->is_double, c, 0), epsilon);
    }
}
