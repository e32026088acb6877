/*
 * The forward operations. Training: the moments of every piece, merged in order; a channel's
 * coefficients and running statistics; the coefficients applied. Inference: the last step only.
 * Called by Kernels.swift with a plan that fits the grid.
 */
#include <stdbool.h>

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

/*
 * Whether sums without a pivot are as good as those around one: with a mean of at most 256 deviations
 * they lose 16 of float64's 53 bits, and 29 are needed. Not where a value is NaN or infinite. A channel
 * of zeros has a mean of none.
 */
static bool holds(double count, double sum, double squares)
{
    const double mean = sum / count;
    return sum * mean <= 0x1p16 * (squares - sum * mean);
}

/* Some rows x some inner values of a piece. */
typedef struct row_tile {
    const bnk_piece *piece;
    int64_t row, rows, offset, length;
} row_tile;

/* Adds a tile to sums around a pivot, or around none; `other`, if not NULL, goes on meanwhile. */
static void add_rows(const training *t, const row_tile *tile, const double *pivot,
                     bnk_lane_sums *sums, bnk_application *other)
{
    const bnk_cut *cut = &t->cut;
    const char *x = (const char *)t->job->input + tile->piece->start;
    /* Four rows at once or one, as the leaf takes them; all in one call where nothing else goes on. */
    for (int64_t row = 0, together; row < tile->rows; row += together) {
        together = tile->rows - row >= 4 ? 4 : 1;
        const int64_t ahead = bnk_next_rows(cut, tile->piece, tile->row + row, together);
        if (!other) together = tile->rows;
        const int64_t step = other ? bnk_step_of(tile->length, together) : tile->length;
        for (int64_t at = 0; at < tile->length; at += step) {
            const int64_t count = bnk_min(step, tile->length - at);
            const char *from =
                x + ((tile->row + row) * cut->stride + tile->offset + at) * cut->element;
            if (pivot)
                t->leaves->row_sums(from, together, cut->stride, count, *pivot, sums);
            else
                t->leaves->row_squares(from, together, cut->stride, count, ahead, sums);
            if (other) bnk_apply_some(other, together * count);
        }
    }
}

static bnk_moments row_tile_moments(const training *t, const row_tile *tile, bnk_application *other)
{
    const bnk_cut *cut = &t->cut;
    const int32_t is_double = cut->grid->is_double;
    const double n = (double)(tile->rows * tile->length);
    const double pivot = bnk_get((const char *)t->job->input + tile->piece->start, is_double,
                                 tile->row * cut->stride + tile->offset, 0);
    if (!is_double) {
        bnk_lane_sums lanes = { { 0 }, { 0 } };
        add_rows(t, tile, NULL, &lanes, other);
        const double sum = bnk_sum_of_lanes(lanes.first);
        const double squares = bnk_sum_of_lanes(lanes.second);
        if (holds(n, sum, squares)) return bnk_moments_of_sums(n, 0, sum, squares);
        other = NULL; /* it has gone on as far as it should */
    }
    bnk_lane_sums lanes = { { 0 }, { 0 } };
    add_rows(t, tile, &pivot, &lanes, other);
    return bnk_moments_of_sums(n, pivot, bnk_sum_of_lanes(lanes.first),
                               bnk_sum_of_lanes(lanes.second));
}

static bnk_moments row_piece_moments(const training *t, const bnk_piece *piece,
                                     bnk_application *other)
{
    bnk_moments all = { 0, 0, 0 };
    double count = 0;
    for (int64_t at = 0; at < piece->length; at += TILE) {
        const int64_t length = bnk_min(TILE, piece->length - at);
        const int64_t fit = TILE / length / 4 * 4;
        const int64_t tile_rows = fit > 4 ? fit : 4;
        for (int64_t row = 0; row < piece->rows; row += tile_rows) {
            const int64_t rows = bnk_min(tile_rows, piece->rows - row);
            const row_tile tile = { piece, row, rows, at, length };
            const bnk_moments own = row_tile_moments(t, &tile, other);
            const double n = (double)(rows * length);
            bnk_moments_add(&all, count, &own, n, 1);
            count += n;
        }
    }
    return all;
}

/* Some lines (rows, or folds of rows) of a run of channels. */
typedef struct tile {
    const char *x;
    int64_t lines, stride, fold, channels;
} tile;

/* The sums of a tile's channels around pivots, or around none. */
static void channel_sums(const training *t, const tile *tile, const double *pivot, double *sum,
                         double *squares)
{
    const int64_t inner = t->cut.grid->inner;
    const int64_t columns = tile->channels * inner * tile->fold;
    const int ahead = bnk_from_memory(&t->cut);
    double column_pivot[BNK_MAX_COLUMNS], column_sum[BNK_MAX_COLUMNS];
    double column_squares[BNK_MAX_COLUMNS];
    for (int64_t j = 0; j < columns; j++) column_sum[j] = column_squares[j] = 0;
    if (pivot) {
        bnk_expand_double(pivot, tile->channels, inner, tile->fold, column_pivot);
        t->leaves->column_sums(tile->x, tile->lines, tile->stride, columns, ahead, column_pivot,
                               column_sum, column_squares);
    } else {
        t->leaves->column_squares(tile->x, tile->lines, tile->stride, columns, ahead, column_sum,
                                  column_squares);
    }
    bnk_collapse(column_sum, tile->channels, inner, tile->fold, sum);
    bnk_collapse(column_squares, tile->channels, inner, tile->fold, squares);
}

static void column_tile_moments(const training *t, const tile *tile, bnk_moments *moments)
{
    const bnk_grid *grid = t->cut.grid;
    const double n = (double)(tile->lines * tile->fold * grid->inner);
    double sum[BNK_MAX_COLUMNS], squares[BNK_MAX_COLUMNS], pivot[BNK_MAX_COLUMNS];
    bool done[BNK_MAX_COLUMNS] = { false };
    if (!grid->is_double) {
        channel_sums(t, tile, NULL, sum, squares);
        bool all_done = true;
        for (int64_t c = 0; c < tile->channels; c++) {
            moments[c] = bnk_moments_of_sums(n, 0, sum[c], squares[c]);
            done[c] = holds(n, sum[c], squares[c]);
            all_done = all_done && done[c];
        }
        if (all_done) return;
    }
    for (int64_t c = 0; c < tile->channels; c++)
        pivot[c] = bnk_get(tile->x, grid->is_double, c * grid->inner, 0);
    channel_sums(t, tile, pivot, sum, squares);
    for (int64_t c = 0; c < tile->channels; c++)
        if (!done[c]) moments[c] = bnk_moments_of_sums(n, pivot[c], sum[c], squares[c]);
}

/* Moments of each channel of a piece by columns, written to moments[0..channels). */
static void column_piece_moments(const training *t, const bnk_piece *piece, bnk_moments *moments)
{
    const bnk_cut *cut = &t->cut;
    const int64_t inner = cut->grid->inner;
    const char *x = (const char *)t->job->input + piece->start;
    bnk_moments own[BNK_MAX_COLUMNS];
    double count = 0;
    int64_t row = 0;
    while (row < piece->rows) {
        /* The last rows, too few for another fold, are taken one by one. */
        const int64_t left = piece->rows - row;
        const int64_t fold = bnk_fold_of(cut->plan, left);
        const int64_t fit = TILE / (inner * fold) > 16 ? TILE / (inner * fold) : 16;
        const tile tile = { x + row * cut->stride * cut->element, bnk_min(left / fold, fit),
                            cut->stride * fold, fold, piece->channels };
        column_tile_moments(t, &tile, own);
        const double n = (double)(tile.lines * fold * inner);
        bnk_moments_add(moments, count, own, n, piece->channels);
        count += n;
        row += tile.lines * fold;
    }
}

static void piece_moments(const training *t, const bnk_piece *piece, bnk_moments *moments,
                          bnk_application *other)
{
    if (t->cut.plan->by_columns)
        column_piece_moments(t, piece, moments);
    else
        *moments = row_piece_moments(t, piece, other);
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

/* By rows, while one channel is applied past the caches, which leaves the core idle, the next is reduced.
 * (By columns a run's lines are too short for it to pay.) */
static void train_runs(void *context, int64_t begin, int64_t end)
{
    const training *t = context;
    const bnk_cut *cut = &t->cut;
    const int32_t is_double = cut->grid->is_double;
    double memory[BNK_LINEARS * BNK_MAX_COLUMNS];
    const bnk_linears linears = bnk_linears_in(memory, BNK_MAX_COLUMNS, is_double);
    bnk_application application, *applying = NULL;
    for (int64_t run = begin; run < end; run++) {
        bnk_moments merged[BNK_MAX_COLUMNS], own[BNK_MAX_COLUMNS];
        const bnk_piece whole = bnk_whole_run(cut, run);
        double count = 0;
        for (int64_t p = 0; p < cut->pieces; p++) {
            const bnk_piece piece = bnk_piece_at(cut, run, p);
            const double n = (double)(piece.rows * piece.length);
            piece_moments(t, &piece, own, applying);
            bnk_moments_add(merged, count, own, n, piece.channels);
            count += n;
        }
        if (applying) bnk_apply_rest(applying);
        for (int64_t c = 0; c < whole.channels; c++)
            bnk_linears_set(&linears, is_double, c,
                            finish_channel(t->job, cut->grid, whole.channel + c, merged[c]));
        if (cut->plan->stream && !cut->plan->by_columns) {
            const bnk_linear f = bnk_linears_get(&linears, is_double, 0);
            applying = &application;
            bnk_apply_begin(applying, cut, t->leaves, &whole, &f, t->job->input, NULL,
                            t->job->output);
        } else {
            bnk_apply_piece(cut, t->leaves, &whole, &linears, t->job->input, NULL, t->job->output);
        }
    }
    if (applying) bnk_apply_rest(applying);
    bnk_finish_stores(cut);
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
        piece_moments(t, &piece, partial, NULL);
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
    bnk_apply_tasks_run(&t->cut, t->leaves, begin, end, &t->linears, t->job->input, NULL,
                        t->job->output);
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
        bnk_parallel(plan->threads, (bnk_phase[]){ { train_runs, t.cut.runs } }, 1, &t);
        return;
    }
    t.partial = job->workspace;
    t.linears =
        bnk_linears_in(t.partial + t.cut.pieces * grid->channels, grid->channels, grid->is_double);
    const bnk_phase phases[] = { { reduce_pieces, t.cut.runs * t.cut.pieces },
                                 { merge_channels, bnk_ceil_div(grid->channels, MERGED) },
                                 { apply_pieces, bnk_apply_tasks(&t.cut) } };
    bnk_parallel(plan->threads, phases, 3, &t);
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
    double memory[BNK_LINEARS * BNK_MAX_COLUMNS];
    const bnk_linears linears = bnk_linears_in(memory, BNK_MAX_COLUMNS, is_double);
    for (int64_t task = begin; task < end; task++) {
        /* Run by run, so that the coefficients of each are formed once. */
        const int64_t index = task % cut->pieces;
        const bnk_piece piece = bnk_piece_at(cut, task / cut->pieces, index);
        for (int64_t i = 0; i < piece.channels && (index == 0 || task == begin); i++) {
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
    bnk_finish_stores(cut);
}

void bnk_forward_inference(const bnk_grid *grid, const bnk_plan *plan, const bnk_inference *job)
{
    inference t = { .job = job, .cut = bnk_cut_grid(grid, plan) };
    t.leaves = bnk_leaves_for(plan->isa, grid->is_double);
    bnk_parallel(plan->threads, (bnk_phase[]){ { infer_pieces, t.cut.runs * t.cut.pieces } }, 1,
                 &t);
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
