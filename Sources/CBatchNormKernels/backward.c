/*
 * The backward operation: sum(dy) and sum(dy * (x - mean)) of every piece, added in order; the
 * parameters' gradients and a channel's coefficients; dx from x and dy in one sweep. The plan
 * fits the grid.
 */
#include <stdbool.h>
#include <string.h>

#include "apply.h"
#include "coefficients.h"
#include "columns.h"
#include "leaves.h"
#include "parallel.h"
#include "pieces.h"

typedef struct grad_sums {
    double dy;         /* sum(dy) */
    double dy_times_c; /* sum(dy * (x - mean)) */
} grad_sums;

typedef struct backward {
    const bnk_backward *job;
    const bnk_cut *cut;
    bnk_operands operands;
    const bnk_leaves *leaves;
    grad_sums *partial;  /* [piece][channel], if not fused */
    bnk_linears linears; /* [channel], if not fused */
    double count;        /* values per channel that the sums are of */
    bnk_gradient_sums
        *sums; /* of the halves: where the first one writes and the second one reads */
} backward;

static double mean_of(const backward *t, int64_t channel)
{
    return bnk_given_mean(t->job->mean, t->job->running_mean, t->cut->grid.is_double, channel);
}

/* float32 results have no use for it. */
static double mean_rest_of(const backward *t, int64_t channel)
{
    return t->job->mean_rest && t->cut->grid.is_double ? t->job->mean_rest[channel] : 0;
}

static double invstd_of(const backward *t, int64_t channel)
{
    return bnk_given_invstd(t->job->invstd, t->job->running_var, t->job->epsilon,
                            t->cut->grid.is_double, channel);
}

/* ---- sums ---- */

/* Whether the tensors can be summed as they are. */
static int sums_are_plain(const backward *t)
{
    return bnk_sums_plainly(&t->operands) && !(t->job->extras && t->job->extras->positions);
}

/* Inner values [at, at + count) of some rows of a piece. */
static void add_rows(const backward *t, const bnk_piece *piece, int64_t row, int64_t rows,
                     int64_t at, int64_t count, int64_t ahead, double mean, bnk_lane_sums *lanes)
{
    const int64_t stride = t->cut->stride, inner = t->cut->grid.inner;
    const int64_t start = (piece->row + row) * stride + piece->channel * inner + piece->offset + at;
    if (sums_are_plain(t)) {
        const int64_t bytes = start * t->cut->element;
        t->leaves->row_grad_sums((const char *)t->job->input + bytes,
                                 (const char *)t->job->grad_output + bytes, rows, stride, count,
                                 ahead, mean, lanes);
        return;
    }
    const uint8_t *keep = t->job->extras->positions;
    if (keep) keep += (piece->row + row) * inner + piece->offset + at;
    bnk_gated_row_sums(&t->operands, start, rows, stride, count, keep, ahead, mean, lanes);
}

/* `other`, if not NULL, goes on meanwhile. */
static void row_piece_sums(const backward *t, const bnk_piece *piece, grad_sums *sums,
                           bnk_application *other)
{
    const int32_t is_double = t->cut->grid.is_double;
    const double mean = mean_of(t, piece->channel);
    bnk_lane_sums lanes = { .first = { 0 } };
    if (!other && !is_double)
        add_rows(t, piece, 0, piece->rows, 0, piece->length, 2 * t->cut->stride, mean, &lanes);
    for (int64_t row = 0, together; (other || is_double) && row < piece->rows; row += together) {
        together = piece->rows - row >= 2 ? 2 : 1; /* as the leaf takes them */
        const int64_t ahead = bnk_next_rows(t->cut, piece, row, together);
        const int64_t step = other ? bnk_step_of(piece->length, together) : piece->length;
        for (int64_t i = 0, count; i < piece->length; i += count) {
            count = bnk_block_part(i, bnk_min(i + step, piece->length), is_double);
            add_rows(t, piece, row, together, i, count, ahead, mean, &lanes);
            if (is_double && ((i + count) % BNK_BLOCK_VALUES == 0 || i + count == piece->length))
                bnk_end_block(&lanes);
            if (other) bnk_apply_some(other, together * count);
        }
    }
    bnk_lane_totals(&lanes, is_double, &sums->dy, &sums->dy_times_c);
}

/* Adds lines of a piece, each of `fold` rows, to its columns' sums. */
static void add_block(const backward *t, const bnk_piece *piece, int64_t row, int64_t lines,
                      int64_t fold, const double *mean, double *sum, double *product)
{
    const bnk_cut *cut = t->cut;
    const int64_t stride = cut->stride * fold;
    const int64_t columns = piece->channels * cut->grid.inner * fold;
    const int64_t start = row * cut->stride + piece->channel * cut->grid.inner;
    if (sums_are_plain(t)) {
        const int64_t at = start * cut->element;
        t->leaves->column_grad_sums((const char *)t->job->input + at,
                                    (const char *)t->job->grad_output + at, lines, stride, columns,
                                    bnk_from_memory(cut), mean, sum, product);
        return;
    }
    if (!t->job->extras->positions) {
        bnk_gated_column_sums(&t->operands, start, lines, stride, columns, NULL, 0, mean, sum,
                              product);
        return;
    }
    for (int64_t line = 0, together; line < lines; line += together) {
        together = bnk_min(4, lines - line); /* as the leaf takes them */
        uint8_t keep[4 * BNK_MAX_COLUMNS];
        int masked = 0;
        for (int64_t i = 0; i < together; i++) {
            uint8_t *own = keep + i * BNK_MAX_COLUMNS;
            if (bnk_keep_line(&t->operands, row + (line + i) * fold, fold, piece->channels, own))
                masked = 1;
            else
                memset(own, 1, (size_t)columns);
        }
        bnk_gated_column_sums(&t->operands, start + line * stride, together, stride, columns,
                              masked ? keep : NULL, BNK_MAX_COLUMNS, mean, sum, product);
    }
}

static void add_lines(const backward *t, const bnk_piece *piece, int64_t row, int64_t lines,
                      int64_t fold, const double *mean, bnk_column_sums *sums)
{
    for (int64_t line = 0, count; line < lines; line += count) {
        count = bnk_block_lines(sums, lines - line);
        add_block(t, piece, row + line * fold, count, fold, mean, sums->open[0], sums->open[1]);
        bnk_end_lines(sums);
    }
}

/* The sums of each channel of a piece by columns, written to sums[0..channels). */
static void column_piece_sums(const backward *t, const bnk_piece *piece, grad_sums *sums)
{
    const bnk_cut *cut = t->cut;
    const int64_t inner = cut->grid.inner, channels = piece->channels;
    const int64_t fold = bnk_fold_of(&cut->plan, piece->rows);
    const int64_t lines = piece->rows / fold, rest = piece->rows % fold;
    double mean[BNK_MAX_COLUMNS], own[BNK_MAX_COLUMNS];
    bnk_column_sums columns;

    for (int64_t c = 0; c < channels; c++) own[c] = mean_of(t, piece->channel + c);
    bnk_expand_double(own, channels, inner, fold, mean);
    bnk_begin_columns(&columns, channels * inner * fold, cut->grid.is_double);
    add_lines(t, piece, piece->row, lines, fold, mean, &columns);
    add_lines(t, piece, piece->row + lines * fold, rest, 1, mean, &columns);
    bnk_channel_totals(&columns, 0, channels, inner, fold, own);
    for (int64_t c = 0; c < channels; c++) sums[c].dy = own[c];
    bnk_channel_totals(&columns, 1, channels, inner, fold, own);
    for (int64_t c = 0; c < channels; c++) sums[c].dy_times_c = own[c];
}

static void piece_sums(const backward *t, const bnk_piece *piece, grad_sums *sums,
                       bnk_application *other)
{
    if (t->cut->plan.by_columns)
        column_piece_sums(t, piece, sums);
    else
        row_piece_sums(t, piece, sums, other);
    /* The leaves subtract a mean of one number. */
    for (int64_t c = 0; c < piece->channels; c++) {
        const double rest = mean_rest_of(t, piece->channel + c);
        if (rest != 0) sums[c].dy_times_c -= rest * sums[c].dy;
    }
}

/* ---- a channel's gradients ---- */

static grad_sums sums_at(const bnk_gradient_sums *sums, int64_t channel)
{
    return (grad_sums){ sums->dy[channel], sums->dy_xmu[channel] };
}

static bnk_linear finish_channel(const backward *t, int64_t channel, grad_sums sums)
{
    const bnk_backward *job = t->job;
    const bnk_grid *grid = &t->cut->grid;
    const int32_t is_double = grid->is_double;
    const double mean = mean_of(t, channel), invstd = invstd_of(t, channel);

    if (job->grad_bias) bnk_set(job->grad_bias, is_double, channel, sums.dy);
    if (job->grad_weight) bnk_set(job->grad_weight, is_double, channel, sums.dy_times_c * invstd);

    const double weight = bnk_get(job->weight, is_double, channel, 1), gain = weight * invstd;
    if (job->frozen) {
        /* dx = dy * gain, by the forward's leaf with dy as x; -0 keeps the sign of every zero. */
        const bnk_linear scaled = { 1, -0.0, bnk_round(gain, is_double), 0, -0.0, 0 };
        return bnk_serves_forward(&scaled, weight, invstd, gain, is_double)
                   ? scaled
                   : bnk_linear_of_extreme();
    }
    /* dx = gain * dy - gain * mean(dy) - gain * c * invstd^2 * mean(dy * c) */
    const double scale = bnk_scale(invstd), mean_product = sums.dy_times_c / t->count;
    const double correlation = invstd * mean_product;
    bnk_linear f =
        bnk_linear_of(scale, mean, mean_rest_of(t, channel), -gain * (invstd / scale) * correlation,
                      -gain * (sums.dy / t->count), is_double);
    f.factor = bnk_round(gain, is_double);
    return bnk_serves_gradient(&f, weight, invstd, mean_product, correlation, is_double)
               ? f
               : bnk_linear_of_extreme();
}

/* Of an extreme channel, from its sums: the same formulas. */
static bnk_extreme extreme_gradient(const void *operation, int64_t channel,
                                    bnk_statistics statistics)
{
    const backward *t = operation;
    const int32_t is_double = t->cut->grid.is_double;
    const bnk_scaled invstd = bnk_scaled_of(invstd_of(t, channel));
    const bnk_scaled gain =
        bnk_scaled_product(bnk_scaled_of(bnk_get(t->job->weight, is_double, channel, 1)), invstd);
    if (t->job->frozen) return (bnk_extreme){ .offset = bnk_scaled_of(-0.0), .factor = gain };
    const grad_sums sums = t->sums
                               ? sums_at(t->sums, channel)
                               : ((const grad_sums *)statistics.values)[channel - statistics.first];
    const bnk_scaled loss = bnk_scaled_product(gain, bnk_scaled_of(-1));
    const bnk_scaled correlation =
        bnk_scaled_product(invstd, bnk_scaled_of(sums.dy_times_c / t->count));
    return (bnk_extreme){
        .mean = mean_of(t, channel),
        .mean_rest = mean_rest_of(t, channel),
        .gain = bnk_scaled_product(bnk_scaled_product(loss, invstd), correlation),
        .offset = bnk_scaled_product(loss, bnk_scaled_of(sums.dy / t->count)),
        .factor = gain,
    };
}

/* Whether anything needs the sums at all. */
static int needs_sums(const bnk_backward *job)
{
    return job->grad_weight || job->grad_bias || (job->grad_input && !job->frozen);
}

/* Whether anything is applied at all. */
static int applies(const bnk_backward *job)
{
    return job->grad_input || (job->extras && job->extras->grad_residual);
}

/* ---- channels whole ---- */

/* As in the forward: while one run is applied, the next is reduced. */
static void backward_runs(void *context, int64_t begin, int64_t end)
{
    const backward *t = context;
    const bnk_cut *cut = t->cut;
    const int32_t is_double = cut->grid.is_double;
    double memory[BNK_LINEARS * BNK_MAX_COLUMNS];
    const bnk_linears linears = bnk_linears_in(memory, BNK_MAX_COLUMNS, is_double);
    bnk_application application, *applying = NULL;
    for (int64_t run = begin; run < end; run++) {
        grad_sums total[BNK_MAX_COLUMNS], own[BNK_MAX_COLUMNS];
        const bnk_piece whole = bnk_whole_run(cut, run);
        for (int64_t c = 0; c < whole.channels; c++) total[c] = (grad_sums){ 0, 0 };
        if (needs_sums(t->job))
            for (int64_t p = 0; p < cut->pieces; p++) {
                const bnk_piece piece = bnk_piece_at(cut, run, p);
                piece_sums(t, &piece, own, applying);
                for (int64_t c = 0; c < piece.channels; c++) {
                    total[c].dy += own[c].dy;
                    total[c].dy_times_c += own[c].dy_times_c;
                }
            }
        if (applying) bnk_apply_rest(applying);
        applying = NULL;
        for (int64_t c = 0; c < whole.channels; c++)
            bnk_linears_set(&linears, is_double, c, finish_channel(t, whole.channel + c, total[c]));
        if (!applies(t->job)) continue;
        const bnk_linear f = bnk_linears_get(&linears, is_double, 0);
        if (cut->plan.nontemporal && !cut->plan.by_columns && !bnk_is_extreme(&f)) {
            applying = &application;
            bnk_apply_begin(applying, &t->operands, &whole, &f);
        } else {
            bnk_apply_piece(&t->operands, &whole, &linears,
                            (bnk_statistics){ total, whole.channel });
        }
    }
    if (applying) bnk_apply_rest(applying);
    bnk_finish_stores(cut);
}

/* ---- in three steps ---- */

static void reduce_pieces(void *context, int64_t begin, int64_t end)
{
    const backward *t = context;
    const bnk_cut *cut = t->cut;
    for (int64_t task = begin; task < end; task++) {
        const int64_t index = task / cut->runs;
        const bnk_piece piece = bnk_piece_at(cut, task % cut->runs, index);
        piece_sums(t, &piece, t->partial + index * cut->grid.channels + piece.channel, NULL);
    }
}

/* The sum of what reduce_pieces has written of a channel. */
static grad_sums add_pieces(const backward *t, int64_t channel)
{
    grad_sums total = { 0, 0 };
    for (int64_t p = 0; p < t->cut->pieces; p++) {
        const grad_sums own = t->partial[p * t->cut->grid.channels + channel];
        total.dy += own.dy;
        total.dy_times_c += own.dy_times_c;
    }
    return total;
}

static void add_channels(void *context, int64_t begin, int64_t end)
{
    const backward *t = context;
    const int32_t is_double = t->cut->grid.is_double;
    for (int64_t c = begin; c < end; c++) {
        const grad_sums total = needs_sums(t->job) ? add_pieces(t, c) : (grad_sums){ 0, 0 };
        const bnk_linear f = finish_channel(t, c, total);
        bnk_linears_set(&t->linears, is_double, c, f);
        if (bnk_is_extreme(&f)) t->partial[c] = total; /* nobody reads it any more */
    }
}

static void apply_pieces(void *context, int64_t begin, int64_t end)
{
    const backward *t = context;
    bnk_apply_tasks_run(&t->operands, begin, end, &t->linears, (bnk_statistics){ t->partial, 0 });
}

/* ---- in halves ---- */

/* As add_channels, but what it gets is kept. */
static void keep_channels(void *context, int64_t begin, int64_t end)
{
    const backward *t = context;
    for (int64_t c = begin; c < end; c++) {
        const grad_sums total = add_pieces(t, c);
        t->sums->dy[c] = total.dy;
        t->sums->dy_xmu[c] = total.dy_times_c;
    }
}

/* As add_channels, from what was kept. */
static void finish_channels(void *context, int64_t begin, int64_t end)
{
    const backward *t = context;
    for (int64_t c = begin; c < end; c++)
        bnk_linears_set(&t->linears, t->cut->grid.is_double, c,
                        finish_channel(t, c, sums_at(t->sums, c)));
}

/* ---- entries ---- */

int64_t bnk_backward_workspace(const bnk_cut *cut)
{
    if (cut->plan.whole_runs) return 0;
    return cut->pieces * cut->grid.channels * (int64_t)sizeof(grad_sums) +
           bnk_linears_size(&cut->grid);
}

void bnk_backward_run(const bnk_cut *cut, const bnk_backward *job)
{
    backward t = { .job = job, .cut = cut };
    t.operands = bnk_operands_of(cut, job->input, job->grad_output, job->grad_input, job->frozen,
                                 job->extras);
    t.operands.extreme = extreme_gradient;
    t.operands.operation = &t;
    t.leaves = t.operands.leaves;
    t.count = (double)job->count;
    if (cut->plan.whole_runs) {
        bnk_parallel(cut->plan.threads, (bnk_phase[]){ { backward_runs, cut->runs } }, 1, &t);
        return;
    }
    t.partial = job->workspace;
    t.linears = bnk_linears_in(t.partial + cut->pieces * cut->grid.channels, cut->grid.channels,
                               cut->grid.is_double);
    const bnk_phase phases[] = {
        { reduce_pieces, needs_sums(job) ? cut->runs * cut->pieces : 0 },
        { add_channels, cut->grid.channels },
        { apply_pieces, applies(job) ? bnk_apply_tasks(cut) : 0 },
    };
    bnk_parallel(cut->plan.threads, phases, 3, &t);
}

int64_t bnk_backward_reduce_workspace(const bnk_cut *cut)
{
    return cut->pieces * cut->grid.channels * (int64_t)sizeof(grad_sums);
}

void bnk_backward_reduce(const bnk_cut *cut, const bnk_backward *job, bnk_gradient_sums *sums)
{
    backward t = { .job = job, .cut = cut, .sums = sums };
    t.operands = bnk_operands_of(cut, job->input, job->grad_output, job->grad_input, job->frozen,
                                 job->extras);
    t.leaves = t.operands.leaves;
    t.partial = job->workspace;
    const bnk_phase phases[] = { { reduce_pieces, cut->runs * cut->pieces },
                                 { keep_channels, cut->grid.channels } };
    bnk_parallel(cut->plan.threads, phases, 2, &t);
}

int64_t bnk_backward_apply_workspace(const bnk_cut *cut)
{
    return bnk_linears_size(&cut->grid);
}

void bnk_backward_apply(const bnk_cut *cut, const bnk_gradient_sums *sums, const bnk_backward *job)
{
    bnk_gradient_sums given = *sums;
    backward t = { .job = job, .cut = cut, .sums = &given };
    t.operands = bnk_operands_of(cut, job->input, job->grad_output, job->grad_input, job->frozen,
                                 job->extras);
    t.operands.extreme = extreme_gradient;
    t.operands.operation = &t;
    t.leaves = t.operands.leaves;
    t.count = sums->count;
    t.linears = bnk_linears_in(job->workspace, cut->grid.channels, cut->grid.is_double);
    const bnk_phase phases[] = { { finish_channels, cut->grid.channels },
                                 { apply_pieces, applies(job) ? bnk_apply_tasks(cut) : 0 } };
    bnk_parallel(cut->plan.threads, phases, 2, &t);
}

void bnk_backward_apply_nothing(const bnk_grid *grid, const bnk_gradient_sums *sums,
                                const bnk_backward *job)
{
    backward t = { .job = job, .cut = &(const bnk_cut){ .grid = *grid }, .count = sums->count };
    for (int64_t c = 0; c < grid->channels; c++) finish_channel(&t, c, sums_at(sums, c));
}
