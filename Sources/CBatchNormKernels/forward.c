/*
 * The forward operations. Training: the moments of every piece, merged in order; a channel's
 * coefficients and running statistics; the coefficients applied. Inference: the last step only.
 * The plan fits the grid.
 */
#include <stdbool.h>

#include "apply.h"
#include "coefficients.h"
#include "columns.h"
#include "halves.h"
#include "leaves.h"
#include "moments.h"
#include "parallel.h"
#include "pieces.h"

/* A tile is what one pivot serves: four rows of at most TILE values, or more and shorter ones; of float64 tensors at
 * least a sixteenth of a piece. Part of the order of the sums. */
enum { TILE = 16384 };

typedef struct training {
    bnk_forward *job;
    const bnk_cut *cut;
    bnk_operands operands;
    const bnk_leaves *leaves;
    bnk_moments *partial; /* [piece][channel], if not fused */
    double *counts;       /* [piece], of the values of each channel in it, if not fused */
    bnk_linears linears;  /* [channel], if not fused */
    double count;         /* values per channel that the statistics are of */
    bnk_moment_arrays
        *moments; /* of the halves: where the first one writes and the second one reads */
} training;

/* ---- moments ---- */

/*
 * Whether sums without a pivot are good enough. With a mean of at most 256 deviations the subtraction costs
 * 16 of float64's 53 bits, beside what adding up has cost; float32 results need 29. Sums of halves are
 * good to 22 bits, of which a mean of 4 deviations leaves 18; squares below 2^-100 may be gone, and those of
 * bfloat16 be infinite, for they are added up in float. Not where a value is NaN or infinite. A channel of zeros
 * has a mean of none.
 */
static bool holds(const bnk_grid *grid, double count, double sum, double squares)
{
    const double mean = sum / count, m2 = squares - sum * mean;
    if (grid->half == BNK_HALF_NONE) return sum * mean <= 0x1p16 * m2;
    return sum * mean <= 0x1p4 * m2 && squares >= count * 0x1p-100 && isfinite(squares);
}

/*
 * Whether a pivot is near enough to the mean for a float64 result, which has no bits to spare: one that is far
 * from it costs up to log2(n) of them, one within a deviation 1. The mean that its sums give is nearer.
 */
static bool is_near(double count, double sum, double squares)
{
    const double shift = sum / count, m2 = squares - sum * shift;
    return sum * shift <= m2;
}

/*
 * A pivot for `kept` values of a channel in rows up to `end`, of which `length` from `offset` on are looked at. In
 * float64 the mean of the first few, for the first alone is as far from the mean as it happens to be. Where
 * computing in float a value of that type, with which masked values are filled up.
 */
static double pivot_of(const training *t, int64_t channel, bnk_kept kept, int64_t end,
                       int64_t offset, int64_t length)
{
    enum { LOOKED_AT = 16 };
    const bnk_grid *grid = &t->cut->grid;
    const uint8_t *positions = t->operands.extras ? t->operands.extras->positions : NULL;
    int64_t row = kept.row, at = kept.offset;
    const double first =
        bnk_element(grid, t->job->input, row * t->cut->stride + channel * grid->inner + at);
    if (!grid->is_double) return first;
    double sum = 0; /* of distances, so that the mean of equal values is that value */
    int taken = 0;
    for (int i = 0; i < LOOKED_AT && row < end; i++) {
        if (!positions || positions[row * grid->inner + at]) {
            const int64_t place = row * t->cut->stride + channel * grid->inner + at;
            sum += bnk_element(grid, t->job->input, place) - first;
            taken++;
        }
        if (++at == offset + length) {
            at = offset;
            row++;
        }
    }
    return first + sum / taken;
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
    const bnk_cut *cut = t->cut;
    const int32_t is_double = cut->grid.is_double;
    const char *x = (const char *)t->job->input + tile->piece->start;
    /* Four rows at once or one, as the leaf takes them; all in one call where nothing else goes on. */
    for (int64_t row = 0, together; row < tile->rows; row += together) {
        together = tile->rows - row >= 4 ? 4 : 1;
        const int64_t ahead = bnk_next_rows(cut, tile->piece, tile->row + row, together);
        if (!other && !is_double) together = tile->rows;
        const int64_t step = other ? bnk_step_of(tile->length, together) : tile->length;
        for (int64_t at = 0, count; at < tile->length; at += count) {
            count = bnk_block_part(at, bnk_min(at + step, tile->length), is_double);
            const char *from =
                x + ((tile->row + row) * cut->stride + tile->offset + at) * cut->element;
            if (pivot)
                t->leaves->row_sums(from, together, cut->stride, count, *pivot, sums);
            else
                t->leaves->row_squares(from, together, cut->stride, count, ahead, sums);
            if (is_double && ((at + count) % BNK_BLOCK_VALUES == 0 || at + count == tile->length))
                bnk_end_block(sums);
            if (other) bnk_apply_some(other, together * count);
        }
    }
}

/* The same where positions are masked; rows of which only the first values take part, as those of padded
 * sequences, go the straight way. */
static void add_masked_rows(const training *t, const row_tile *tile, const double *pivot,
                            bnk_lane_sums *sums, bnk_application *other)
{
    const bnk_cut *cut = t->cut;
    const bnk_piece *piece = tile->piece;
    const int64_t offset = piece->offset + tile->offset;
    for (int64_t row = piece->row + tile->row, end = row + tile->rows; row < end; row++) {
        const uint8_t *keep = bnk_keep_row(&t->operands, row, offset, tile->length);
        const int64_t prefix = keep ? bnk_kept_prefix(keep, tile->length) : tile->length;
        const int64_t at = row * cut->stride + piece->channel * cut->grid.inner + offset;
        for (int64_t i = 0; i < tile->length; i += BNK_STRETCH) {
            const int64_t count = bnk_min(BNK_STRETCH, tile->length - i);
            const int64_t straight = bnk_min(count, prefix - i);
            const char *x = (const char *)t->job->input + (at + i) * cut->element;
            if (prefix < 0)
                bnk_masked_row_sums(&t->operands, at + i, count, keep + i, pivot, sums);
            else if (straight > 0 && pivot)
                t->leaves->row_sums(x, 1, 0, straight, *pivot, sums);
            else if (straight > 0)
                t->leaves->row_squares(x, 1, 0, straight, cut->stride, sums);
            if (cut->grid.is_double) bnk_end_block(sums);
            if (other) bnk_apply_some(other, count);
        }
    }
}

static void tile_sums(const training *t, const row_tile *tile, bool masked, const double *pivot,
                      double *sum, double *squares, bnk_application *other)
{
    bnk_lane_sums lanes = { .first = { 0 } };
    (masked ? add_masked_rows : add_rows)(t, tile, pivot, &lanes, other);
    bnk_lane_totals(&lanes, t->cut->grid.is_double, sum, squares);
}

/* Of the tile's values that take part, and how many these are. */
static bnk_moments row_tile_moments(const training *t, const row_tile *tile, double *count,
                                    bnk_application *other)
{
    const bnk_cut *cut = t->cut;
    const bnk_piece *piece = tile->piece;
    const int32_t is_double = cut->grid.is_double;
    const bnk_kept kept = bnk_kept_in(&t->operands, piece->row + tile->row, tile->rows,
                                      piece->offset + tile->offset, tile->length);
    const double n = *count = (double)kept.count;
    if (n == 0) return (bnk_moments){ 0, 0, 0 };
    const bool masked = kept.count < tile->rows * tile->length;
    double sum, squares;
    if (!is_double) {
        tile_sums(t, tile, masked, NULL, &sum, &squares, other);
        if (holds(&cut->grid, n, sum, squares)) return bnk_moments_of_sums(n, 0, sum, squares);
        other = NULL; /* it has gone on as far as it should */
    }
    double pivot = pivot_of(t, piece->channel, kept, piece->row + tile->row + tile->rows,
                            piece->offset + tile->offset, tile->length);
    tile_sums(t, tile, masked, &pivot, &sum, &squares, other);
    if (is_double && !is_near(n, sum, squares)) {
        pivot += sum / n;
        tile_sums(t, tile, masked, &pivot, &sum, &squares, NULL);
    }
    return bnk_moments_of_sums(n, pivot, sum, squares);
}

/* Merging many tiles is a chain of additions as well: of float64 tensors a piece has at most about TILES. */
enum { TILES = 16 };
static int64_t tile_share(int64_t size, int64_t step)
{
    return bnk_ceil_div(bnk_ceil_div(size, TILES), step) * step;
}

static int64_t tile_width(int64_t length, int32_t is_double)
{
    return is_double ? bnk_max(TILE, tile_share(length, BNK_BLOCK_VALUES)) : TILE;
}

static double row_piece_moments(const training *t, const bnk_piece *piece, bnk_moments *moments,
                                bnk_application *other)
{
    double count = 0;
    *moments = (bnk_moments){ 0, 0, 0 };
    const int32_t is_double = t->cut->grid.is_double;
    const int64_t width = tile_width(piece->length, is_double);
    const int64_t across = bnk_ceil_div(piece->length, width);
    for (int64_t at = 0; at < piece->length; at += width) {
        const int64_t length = bnk_min(width, piece->length - at);
        const int64_t fit = TILE / length / 4 * 4;
        int64_t tile_rows = fit > 4 ? fit : 4;
        if (is_double) tile_rows = bnk_max(tile_rows, tile_share(piece->rows * across, 4));
        for (int64_t row = 0; row < piece->rows; row += tile_rows) {
            const int64_t rows = bnk_min(tile_rows, piece->rows - row);
            const row_tile tile = { piece, row, rows, at, length };
            double n;
            const bnk_moments own = row_tile_moments(t, &tile, &n, other);
            bnk_moments_add(moments, count, &own, n, 1);
            count += n;
        }
    }
    return count;
}

/* Some lines (rows, or folds of rows) of a run of channels. */
typedef struct tile {
    int64_t channel, channels;
    int64_t row, lines, fold;
} tile;

static int64_t start_of(const training *t, const tile *tile)
{
    return tile->row * t->cut->stride + tile->channel * t->cut->grid.inner;
}

/* Adds a tile to its columns' sums around pivots, or around none. */
static void add_lines(const training *t, const tile *tile, int64_t begin, int64_t end,
                      const double *pivot, double *sum, double *squares)
{
    const bnk_cut *cut = t->cut;
    const int64_t columns = tile->channels * cut->grid.inner * tile->fold;
    const int64_t stride = cut->stride * tile->fold;
    const int ahead = bnk_from_memory(cut);
    const char *x =
        (const char *)t->job->input + (start_of(t, tile) + begin * stride) * cut->element;
    if (pivot)
        t->leaves->column_sums(x, end - begin, stride, columns, ahead, pivot, sum, squares);
    else
        t->leaves->column_squares(x, end - begin, stride, columns, ahead, sum, squares);
}

/* The same where positions are masked: lines that are not go the straight way. */
static void add_masked_lines(const training *t, const tile *tile, int64_t first, int64_t last,
                             const double *pivot, double *sum, double *squares)
{
    const int64_t stride = t->cut->stride * tile->fold;
    const int64_t columns = tile->channels * t->cut->grid.inner * tile->fold;
    uint8_t keeps[BNK_MAX_COLUMNS];
    const uint8_t *keep = NULL;
    for (int64_t line = first, begin = first; line < last; begin = ++line) {
        while (line < last && !(keep = bnk_keep_line(&t->operands, tile->row + line * tile->fold,
                                                     tile->fold, tile->channels, keeps)))
            line++;
        if (line > begin) add_lines(t, tile, begin, line, pivot, sum, squares);
        if (line < last && bnk_count_kept(keep, columns) > 0)
            bnk_masked_line_sums(&t->operands, start_of(t, tile) + line * stride, columns, keep,
                                 pivot, sum, squares);
    }
}

/* The sums of a tile's channels around pivots, or around none. */
static void channel_sums(const training *t, const tile *tile, bool masked, const double *pivot,
                         double *sum, double *squares)
{
    const int64_t inner = t->cut->grid.inner;
    const int64_t columns = tile->channels * inner * tile->fold;
    double column_pivot[BNK_MAX_COLUMNS];
    bnk_column_sums sums;
    bnk_begin_columns(&sums, columns, t->cut->grid.is_double);
    if (pivot) {
        bnk_expand_double(pivot, tile->channels, inner, tile->fold, column_pivot);
        pivot = column_pivot;
    }
    for (int64_t line = 0, end; line < tile->lines; line = end) {
        end = line + bnk_block_lines(&sums, tile->lines - line);
        (masked ? add_masked_lines : add_lines)(t, tile, line, end, pivot, sums.open[0],
                                                sums.open[1]);
        bnk_end_lines(&sums);
    }
    bnk_channel_totals(&sums, 0, tile->channels, inner, tile->fold, sum);
    bnk_channel_totals(&sums, 1, tile->channels, inner, tile->fold, squares);
}

/* Of the tile's values that take part; returns how many of each channel these are. */
static double column_tile_moments(const training *t, const tile *tile, bnk_moments *moments)
{
    const bnk_grid *grid = &t->cut->grid;
    const bnk_kept kept =
        bnk_kept_in(&t->operands, tile->row, tile->lines * tile->fold, 0, grid->inner);
    const double n = (double)kept.count;
    if (n == 0) return 0;
    const bool masked = kept.count < tile->lines * tile->fold * grid->inner;
    double sum[BNK_MAX_COLUMNS], squares[BNK_MAX_COLUMNS], pivot[BNK_MAX_COLUMNS];
    bool done[BNK_MAX_COLUMNS] = { false };
    if (!grid->is_double) {
        channel_sums(t, tile, masked, NULL, sum, squares);
        bool all_done = true;
        for (int64_t c = 0; c < tile->channels; c++) {
            moments[c] = bnk_moments_of_sums(n, 0, sum[c], squares[c]);
            done[c] = holds(grid, n, sum[c], squares[c]);
            all_done = all_done && done[c];
        }
        if (all_done) return n;
    }
    const int64_t end = tile->row + tile->lines * tile->fold;
    for (int64_t c = 0; c < tile->channels; c++)
        pivot[c] = pivot_of(t, tile->channel + c, kept, end, 0, grid->inner);
    channel_sums(t, tile, masked, pivot, sum, squares);
    bool all_near = true;
    for (int64_t c = 0; c < tile->channels; c++) {
        if (done[c]) continue;
        moments[c] = bnk_moments_of_sums(n, pivot[c], sum[c], squares[c]);
        done[c] = !grid->is_double || is_near(n, sum[c], squares[c]);
        all_near = all_near && done[c];
        if (!done[c]) pivot[c] += sum[c] / n;
    }
    if (all_near) return n;
    channel_sums(t, tile, masked, pivot, sum, squares);
    for (int64_t c = 0; c < tile->channels; c++)
        if (!done[c]) moments[c] = bnk_moments_of_sums(n, pivot[c], sum[c], squares[c]);
    return n;
}

/* Moments of each channel of a piece by columns, written to moments[0..channels). */
static double column_piece_moments(const training *t, const bnk_piece *piece, bnk_moments *moments)
{
    const bnk_cut *cut = t->cut;
    const int64_t inner = cut->grid.inner, end = piece->row + piece->rows;
    bnk_moments own[BNK_MAX_COLUMNS];
    double count = 0;
    int64_t row = piece->row;
    while (row < end) {
        /* The last rows, too few for another fold, are taken one by one. */
        const int64_t fold = bnk_fold_of(&cut->plan, end - row);
        int64_t fit = bnk_max(16, TILE / (inner * fold));
        if (cut->grid.is_double)
            fit = bnk_max(fit, tile_share(piece->rows / fold, BNK_BLOCK_LINES));
        const tile tile = { piece->channel, piece->channels, row, bnk_min((end - row) / fold, fit),
                            fold };
        const double n = column_tile_moments(t, &tile, own);
        bnk_moments_add(moments, count, own, n, piece->channels);
        count += n;
        row += tile.lines * fold;
    }
    return count;
}

/* Moments of each channel of a piece, and how many values of each take part. */
static double piece_moments(const training *t, const bnk_piece *piece, bnk_moments *moments,
                            bnk_application *other)
{
    return t->cut->plan.by_columns ? column_piece_moments(t, piece, moments)
                                   : row_piece_moments(t, piece, moments, other);
}

/* ---- a channel's coefficients ---- */

static bnk_linear normalization(const void *weights, const void *biases, int32_t is_double,
                                int64_t channel, double mean, double mean_rest, double invstd)
{
    const double weight = bnk_get(weights, is_double, channel, 1), gain = weight * invstd;
    const bnk_linear f =
        bnk_linear_of(1, mean, mean_rest, gain, bnk_get(biases, is_double, channel, 0), is_double);
    return bnk_serves_forward(&f, weight, invstd, gain, is_double) ? f : bnk_linear_of_extreme();
}

static bnk_extreme extreme_normalization(const void *weights, const void *biases, int32_t is_double,
                                         int64_t channel, double mean, double mean_rest,
                                         double invstd)
{
    const double weight = bnk_get(weights, is_double, channel, 1);
    const bnk_extreme e = {
        .mean = mean,
        .mean_rest = mean_rest,
        .gain = bnk_scaled_product(bnk_scaled_of(weight), bnk_scaled_of(invstd)),
        .offset = bnk_scaled_of(bnk_get(biases, is_double, channel, 0)),
    };
    return e;
}

/* ---- a channel's statistics ---- */

static bnk_moments moments_at(const bnk_moment_arrays *moments, int64_t channel)
{
    return (bnk_moments){ moments->mean[channel], moments->mean_rest[channel],
                          moments->m2[channel] };
}

/* This batch's share in running statistic `i` of 2 * channels. */
static double share_of(const bnk_forward *job, int64_t i)
{
    return job->batches ? 1 / (double)(job->batches - job->skipped[i]) : job->momentum;
}

/* With a share of 1 the old value does not count, be it NaN. */
static double averaged(double old, double batch, double share)
{
    return share == 1 ? batch : (1 - share) * old + share * batch;
}

/* What came of a channel's running statistics. */
typedef struct update {
    bool fits;      /* 0: the batch is NaN or infinite, or would make one of them so; both stay */
    bool is_finite; /* 0: one of them was NaN or infinite, and has stayed so */
} update;

/* Takes a batch into a channel's running statistics, each as far as it can be. */
static update update_running(const bnk_forward *job, const bnk_grid *grid, int64_t channel,
                             double batch_mean, double batch_var)
{
    const int32_t is_double = grid->is_double;
    const double mean_share = share_of(job, channel);
    const double var_share = share_of(job, grid->channels + channel);
    const double old_mean = bnk_get(job->running_mean, is_double, channel, 0);
    const double old_var = bnk_get(job->running_var, is_double, channel, 0);
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
    if (take_mean) bnk_set(job->running_mean, is_double, channel, mean);
    if (take_var) bnk_set(job->running_var, is_double, channel, var);
    if (job->skipped) {
        job->skipped[channel] += !take_mean;
        job->skipped[grid->channels + channel] += !take_var;
    }
    return (update){ fits, (take_mean || isfinite(old_mean)) && (take_var || isfinite(old_var)) };
}

/* Saves, updates the running statistics and gives the coefficients. */
static bnk_linear finish_channel(bnk_forward *job, const bnk_grid *grid, double count,
                                 int64_t channel, bnk_moments moments)
{
    const int32_t is_double = grid->is_double;
    const double variance = bnk_variance_of(moments, count);
    bool fits = isfinite(variance);
    if (!fits) moments.mean = NAN; /* also where the sum overflowed: no half-right output */
    const double invstd = bnk_invstd(variance, job->epsilon);

    if (job->saved_mean) job->saved_mean[channel] = moments.mean;
    if (job->saved_mean_rest) job->saved_mean_rest[channel] = moments.mean_rest;
    if (job->saved_invstd) job->saved_invstd[channel] = invstd;
    if (job->running_mean) {
        const update updated = update_running(job, grid, channel, moments.mean, variance);
        fits = fits && updated.fits;
        if (!updated.is_finite)
            __atomic_fetch_add(&job->nonfinite_running_channels, 1, __ATOMIC_RELAXED);
    }
    if (!fits) __atomic_fetch_add(&job->nonfinite_channels, 1, __ATOMIC_RELAXED);
    return normalization(job->weight, job->bias, is_double, channel, moments.mean,
                         moments.mean_rest, invstd);
}

/* Of an extreme channel, from its moments. */
static bnk_extreme extreme_training(const void *operation, int64_t channel,
                                    bnk_statistics statistics)
{
    const training *t = operation;
    const bnk_forward *job = t->job;
    const bnk_moments moments =
        t->moments ? moments_at(t->moments, channel)
                   : ((const bnk_moments *)statistics.values)[channel - statistics.first];
    const double invstd = bnk_invstd(bnk_variance_of(moments, t->count), job->epsilon);
    return extreme_normalization(job->weight, job->bias, t->cut->grid.is_double, channel,
                                 moments.mean, moments.mean_rest, invstd);
}

/* ---- training, channels whole ---- */

/* By rows, while one channel is applied past the caches, which leaves the core idle, the next is reduced.
 * (By columns a run's lines are too short for it to pay.) */
static void train_runs(void *context, int64_t begin, int64_t end)
{
    const training *t = context;
    const bnk_cut *cut = t->cut;
    const int32_t is_double = cut->grid.is_double;
    double memory[BNK_LINEARS * BNK_MAX_COLUMNS];
    const bnk_linears linears = bnk_linears_in(memory, BNK_MAX_COLUMNS, is_double);
    bnk_application application, *applying = NULL;
    for (int64_t run = begin; run < end; run++) {
        bnk_moments merged[BNK_MAX_COLUMNS], own[BNK_MAX_COLUMNS];
        const bnk_piece whole = bnk_whole_run(cut, run);
        double count = 0;
        for (int64_t p = 0; p < cut->pieces; p++) {
            const bnk_piece piece = bnk_piece_at(cut, run, p);
            const double n = piece_moments(t, &piece, own, applying);
            bnk_moments_add(merged, count, own, n, piece.channels);
            count += n;
        }
        if (applying) bnk_apply_rest(applying);
        applying = NULL;
        for (int64_t c = 0; c < whole.channels; c++)
            bnk_linears_set(
                &linears, is_double, c,
                finish_channel(t->job, &cut->grid, t->count, whole.channel + c, merged[c]));
        const bnk_linear f = bnk_linears_get(&linears, is_double, 0);
        if (cut->plan.nontemporal && !cut->plan.by_columns && !bnk_is_extreme(&f)) {
            applying = &application;
            bnk_apply_begin(applying, &t->operands, &whole, &f);
        } else {
            bnk_apply_piece(&t->operands, &whole, &linears,
                            (bnk_statistics){ merged, whole.channel });
        }
    }
    if (applying) bnk_apply_rest(applying);
    bnk_finish_stores(cut);
}

/* ---- training, in three steps ---- */

static void reduce_pieces(void *context, int64_t begin, int64_t end)
{
    const training *t = context;
    const bnk_cut *cut = t->cut;
    for (int64_t task = begin; task < end; task++) {
        const int64_t index = task / cut->runs;
        const bnk_piece piece = bnk_piece_at(cut, task % cut->runs, index);
        bnk_moments *partial = t->partial + index * cut->grid.channels + piece.channel;
        const double count = piece_moments(t, &piece, partial, NULL);
        if (piece.channel == 0) t->counts[index] = count; /* that of every run */
    }
}

/* Channels that a task of merge_channels takes together. */
enum { MERGED = 64 };

/* Merges what reduce_pieces has written of channels from `first` on. */
static void merge_pieces(const training *t, int64_t first, int64_t channels, bnk_moments *merged)
{
    const bnk_cut *cut = t->cut;
    double count = 0;
    for (int64_t p = 0; p < cut->pieces; p++) {
        const double n = t->counts[p];
        bnk_moments_add(merged, count, t->partial + p * cut->grid.channels + first, n, channels);
        count += n;
    }
}

static void merge_channels(void *context, int64_t begin, int64_t end)
{
    const training *t = context;
    const bnk_cut *cut = t->cut;
    for (int64_t task = begin; task < end; task++) {
        const int64_t first = task * MERGED;
        const int64_t channels = bnk_min(MERGED, cut->grid.channels - first);
        bnk_moments merged[MERGED];
        merge_pieces(t, first, channels, merged);
        for (int64_t c = 0; c < channels; c++) {
            const bnk_linear f = finish_channel(t->job, &cut->grid, t->count, first + c, merged[c]);
            bnk_linears_set(&t->linears, cut->grid.is_double, first + c, f);
            if (bnk_is_extreme(&f))
                t->partial[first + c] = merged[c]; /* nobody reads it any more */
        }
    }
}

static void apply_pieces(void *context, int64_t begin, int64_t end)
{
    const training *t = context;
    bnk_apply_tasks_run(&t->operands, begin, end, &t->linears, (bnk_statistics){ t->partial, 0 });
}

/* ---- training, in halves ---- */

static void keep_moments(bnk_moment_arrays *moments, int64_t channel, bnk_moments of_channel)
{
    moments->mean[channel] = of_channel.mean;
    moments->mean_rest[channel] = of_channel.mean_rest;
    moments->m2[channel] = of_channel.m2;
}

/* As merge_channels, but what it gets is kept. */
static void keep_channels(void *context, int64_t begin, int64_t end)
{
    const training *t = context;
    for (int64_t task = begin; task < end; task++) {
        const int64_t first = task * MERGED;
        const int64_t channels = bnk_min(MERGED, t->cut->grid.channels - first);
        bnk_moments merged[MERGED];
        merge_pieces(t, first, channels, merged);
        for (int64_t c = 0; c < channels; c++) keep_moments(t->moments, first + c, merged[c]);
    }
}

/* As merge_channels, from what was kept. */
static void finish_channels(void *context, int64_t begin, int64_t end)
{
    const training *t = context;
    const bnk_grid *grid = &t->cut->grid;
    for (int64_t c = begin; c < end; c++)
        bnk_linears_set(&t->linears, grid->is_double, c,
                        finish_channel(t->job, grid, t->count, c, moments_at(t->moments, c)));
}

/* ---- entries ---- */

int64_t bnk_forward_workspace(const bnk_cut *cut)
{
    if (cut->plan.whole_runs) return 0;
    return cut->pieces * cut->grid.channels * (int64_t)sizeof(bnk_moments) +
           cut->pieces * (int64_t)sizeof(double) + bnk_linears_size(&cut->grid);
}

void bnk_forward_training(const bnk_cut *cut, bnk_forward *job)
{
    training t = { .job = job, .cut = cut };
    t.operands = bnk_operands_of(cut, job->input, NULL, job->output, 0, job->extras);
    t.operands.extreme = extreme_training;
    t.operands.operation = &t;
    t.leaves = t.operands.leaves;
    t.count = (double)job->count;
    job->nonfinite_channels = job->nonfinite_running_channels = 0;
    if (cut->plan.whole_runs) {
        bnk_parallel(cut->plan.threads, (bnk_phase[]){ { train_runs, cut->runs } }, 1, &t);
        return;
    }
    t.partial = job->workspace;
    t.counts = (double *)(t.partial + cut->pieces * cut->grid.channels);
    t.linears = bnk_linears_in(t.counts + cut->pieces, cut->grid.channels, cut->grid.is_double);
    const bnk_phase phases[] = { { reduce_pieces, cut->runs * cut->pieces },
                                 { merge_channels, bnk_ceil_div(cut->grid.channels, MERGED) },
                                 { apply_pieces, bnk_apply_tasks(cut) } };
    bnk_parallel(cut->plan.threads, phases, 3, &t);
}

int64_t bnk_moments_workspace(const bnk_cut *cut)
{
    return cut->pieces *
           (cut->grid.channels * (int64_t)sizeof(bnk_moments) + (int64_t)sizeof(double));
}

void bnk_moments_run(const bnk_cut *cut, const void *input, const uint8_t *positions,
                     bnk_moment_arrays *moments, void *workspace)
{
    const bnk_extras masked = { .negative_slope = 1, .positions = positions };
    bnk_forward job = { .input = input };
    training t = { .job = &job, .cut = cut, .moments = moments };
    t.operands = bnk_operands_of(cut, input, NULL, NULL, 0, &masked);
    t.leaves = t.operands.leaves;
    t.partial = workspace;
    t.counts = (double *)(t.partial + cut->pieces * cut->grid.channels);
    const bnk_phase phases[] = { { reduce_pieces, cut->runs * cut->pieces },
                                 { keep_channels, bnk_ceil_div(cut->grid.channels, MERGED) } };
    bnk_parallel(cut->plan.threads, phases, 2, &t);
}

int64_t bnk_normalize_workspace(const bnk_cut *cut)
{
    return bnk_linears_size(&cut->grid);
}

void bnk_normalize(const bnk_cut *cut, const bnk_moment_arrays *moments, bnk_forward *job)
{
    bnk_moment_arrays given = *moments;
    training t = { .job = job, .cut = cut, .moments = &given };
    t.operands = bnk_operands_of(cut, job->input, NULL, job->output, 0, job->extras);
    t.operands.extreme = extreme_training;
    t.operands.operation = &t;
    t.count = moments->count;
    t.linears = bnk_linears_in(job->workspace, cut->grid.channels, cut->grid.is_double);
    job->nonfinite_channels = job->nonfinite_running_channels = 0;
    const bnk_phase phases[] = { { finish_channels, cut->grid.channels },
                                 { apply_pieces, bnk_apply_tasks(cut) } };
    bnk_parallel(cut->plan.threads, phases, 2, &t);
}

void bnk_normalize_nothing(const bnk_grid *grid, const bnk_moment_arrays *moments, bnk_forward *job)
{
    job->nonfinite_channels = job->nonfinite_running_channels = 0;
    for (int64_t c = 0; c < grid->channels; c++)
        finish_channel(job, grid, moments->count, c, moments_at(moments, c));
}

void bnk_merge_moments(bnk_moment_arrays *moments, const bnk_moment_arrays *other, int64_t channels)
{
    const bnk_shares shares = bnk_shares_of(moments->count, other->count);
    for (int64_t c = 0; c < channels; c++)
        keep_moments(moments, c,
                     bnk_moments_merge(moments_at(moments, c), moments_at(other, c), shares));
}

void bnk_moments_statistics(const bnk_moment_arrays *moments, int64_t channels, double divisor,
                            double epsilon, double *variance, double *invstd)
{
    for (int64_t c = 0; c < channels; c++) {
        const bnk_moments own = moments_at(moments, c);
        if (variance) variance[c] = bnk_variance_of(own, divisor);
        if (invstd) invstd[c] = bnk_invstd(bnk_variance_of(own, moments->count), epsilon);
    }
}

typedef struct inference {
    const bnk_inference *job;
    const bnk_cut *cut;
    bnk_operands operands;
} inference;

static double mean_of(const inference *t, int64_t channel)
{
    return bnk_given_mean(t->job->mean, t->job->running_mean, t->cut->grid.is_double, channel);
}

static double mean_rest_of(const inference *t, int64_t channel)
{
    return t->job->mean_rest ? t->job->mean_rest[channel] : 0;
}

static double invstd_of(const inference *t, int64_t channel)
{
    return bnk_given_invstd(t->job->invstd, t->job->running_var, t->job->epsilon,
                            t->cut->grid.is_double, channel);
}

static bnk_extreme extreme_inference(const void *operation, int64_t channel,
                                     bnk_statistics statistics)
{
    (void)statistics; /* they are the job's */
    const inference *t = operation;
    return extreme_normalization(t->job->weight, t->job->bias, t->cut->grid.is_double, channel,
                                 mean_of(t, channel), mean_rest_of(t, channel),
                                 invstd_of(t, channel));
}

static void infer_pieces(void *context, int64_t begin, int64_t end)
{
    const inference *t = context;
    const bnk_inference *job = t->job;
    const bnk_cut *cut = t->cut;
    const int32_t is_double = cut->grid.is_double;
    double memory[BNK_LINEARS * BNK_MAX_COLUMNS];
    const bnk_linears linears = bnk_linears_in(memory, BNK_MAX_COLUMNS, is_double);
    for (int64_t task = begin; task < end; task++) {
        /* Run by run, so that the coefficients of each are formed once. */
        const int64_t index = task % cut->pieces;
        const bnk_piece piece = bnk_piece_at(cut, task / cut->pieces, index);
        for (int64_t i = 0; i < piece.channels && (index == 0 || task == begin); i++) {
            const int64_t c = piece.channel + i;
            bnk_linears_set(&linears, is_double, i,
                            normalization(job->weight, job->bias, is_double, c, mean_of(t, c),
                                          mean_rest_of(t, c), invstd_of(t, c)));
        }
        bnk_apply_piece(&t->operands, &piece, &linears, (bnk_statistics){ NULL, 0 });
    }
    bnk_finish_stores(cut);
}

void bnk_forward_inference(const bnk_cut *cut, const bnk_inference *job)
{
    inference t = { .job = job, .cut = cut };
    t.operands = bnk_operands_of(cut, job->input, NULL, job->output, 0, job->extras);
    t.operands.extreme = extreme_inference;
    t.operands.operation = &t;
    bnk_parallel(cut->plan.threads, (bnk_phase[]){ { infer_pieces, cut->runs * cut->pieces } }, 1,
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
