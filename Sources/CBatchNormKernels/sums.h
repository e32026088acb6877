/*
 * The two sums that a reduction forms of each channel of a piece: of moments those of c and c * c, where c is x - pivot; of
 * gradients those of dy and dy * c, where the mean is the pivot. They are formed in one of two ways:
 *
 * - wide: all in float64, for float64 tensors in blocks (carry.h);
 * - in chains of float32 (chains_body.h), where computing in float: far faster, and good enough where enough values
 *   even out its roundings, and nothing overflows or vanishes.
 *
 * What decides looks at one piece's values of one channel alone: so neither other channels nor other pieces move its bits.
 */
#ifndef BNK_SUMS_H
#define BNK_SUMS_H

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "columns.h"
#include "leaves.h"

/* Both in the end. */
typedef struct bnk_totals {
    double first, second;
    bool nothing; /* of chains: every c, or every dy, is 0, so that nothing has vanished */
} bnk_totals;

/* ---- by rows ---- */

typedef struct bnk_row_sums {
    bool in_chains;
    double pivot; /* in chains a float */
    union {
        bnk_lane_sums wide;
        bnk_chain_sums chains;
    };
} bnk_row_sums;

static inline void bnk_begin_row_sums(bnk_row_sums *sums, bool in_chains, double pivot)
{
    sums->in_chains = in_chains;
    sums->pivot = pivot;
    if (in_chains)
        sums->chains = (bnk_chain_sums){ .first = { 0 } };
    else
        sums->wide = (bnk_lane_sums){ .first = { 0 } };
}

static inline bnk_totals bnk_row_totals(const bnk_row_sums *sums, int32_t is_double)
{
    bnk_totals totals = { .nothing = false };
    if (!sums->in_chains) {
        bnk_lane_totals(&sums->wide, is_double, &totals.first, &totals.second);
        return totals;
    }
    uint32_t some = 0;
    for (int i = 0; i < 16; i++) some |= sums->chains.some[i];
    totals.first = bnk_sum_of_lanes(sums->chains.first);
    totals.second = bnk_sum_of_lanes(sums->chains.second);
    totals.nothing = some << 1 == 0;
    return totals;
}

/* ---- by columns ---- */

typedef struct bnk_column_sums {
    bool in_chains;
    int32_t is_double;
    int64_t columns;
    union {
        struct {
            double pivot[BNK_MAX_COLUMNS];
            double open[2][BNK_MAX_COLUMNS]; /* leaves add to these */
            /* those of float64 tensors are carried over, block by block */
            double carried[2][BNK_MAX_COLUMNS], lost[2][BNK_MAX_COLUMNS];
        } wide;
        struct {
            float pivot[BNK_MAX_COLUMNS];
            bnk_column_chain_sums sums;
        } chains;
    };
} bnk_column_sums;

/* Around the pivots of channels. */
static inline void bnk_begin_column_sums(bnk_column_sums *sums, bool in_chains, int32_t is_double,
                                         const double *pivots, int64_t channels, int64_t inner,
                                         int64_t rows_per_line)
{
    const int64_t columns = channels * inner * rows_per_line;
    sums->in_chains = in_chains;
    sums->is_double = is_double;
    sums->columns = columns;
    if (in_chains) {
        const size_t vectors = (size_t)((columns + 15) / 16 * 16); /* chains take whole ones */
        memset(sums->chains.pivot + vectors - 16, 0, 16 * sizeof(float));
        bnk_expand_to_float(pivots, channels, inner, rows_per_line, sums->chains.pivot);
        memset(sums->chains.sums.first, 0, vectors * sizeof(double));
        memset(sums->chains.sums.second, 0, vectors * sizeof(double));
        memset(sums->chains.sums.some, 0, vectors * sizeof(uint32_t));
        return;
    }
    bnk_expand_double(pivots, channels, inner, rows_per_line, sums->wide.pivot);
    for (int i = 0; i < 2; i++) {
        const size_t bytes = (size_t)columns * sizeof(double);
        memset(sums->wide.open[i], 0, bytes);
        if (!is_double) continue;
        memset(sums->wide.carried[i], 0, bytes);
        memset(sums->wide.lost[i], 0, bytes);
    }
}

/* How many of the lines that are left belong to one block. */
static inline int64_t bnk_block_lines(const bnk_column_sums *sums, int64_t left)
{
    return sums->is_double && left > BNK_BLOCK_LINES ? BNK_BLOCK_LINES : left;
}

static inline void bnk_end_lines(bnk_column_sums *sums)
{
    for (int i = 0; i < 2 && sums->is_double; i++)
        bnk_carry(sums->wide.open[i], sums->wide.carried[i], sums->wide.lost[i], sums->columns);
}

/* The first or the second sum of each channel; once. */
static inline void bnk_channel_sums(bnk_column_sums *sums, int i, int64_t channels, int64_t inner,
                                    int64_t rows_per_line, double *values)
{
    if (sums->in_chains) {
        bnk_column_chain_sums *own = &sums->chains.sums;
        bnk_collapse(i == 0 ? own->first : own->second, channels, inner, rows_per_line, values);
        return;
    }
    if (!sums->is_double) {
        bnk_collapse(sums->wide.open[i], channels, inner, rows_per_line, values);
        return;
    }
    double lost[BNK_MAX_COLUMNS];
    bnk_collapse_evenly(sums->wide.carried[i], channels, inner, rows_per_line, values);
    bnk_collapse_evenly(sums->wide.lost[i], channels, inner, rows_per_line, lost);
    for (int64_t c = 0; c < channels; c++) values[c] = bnk_carried(values[c], lost[c]);
}

/* totals[0..channels) */
static inline void bnk_column_totals(bnk_column_sums *sums, int64_t channels, int64_t inner,
                                     int64_t rows_per_line, bnk_totals *totals)
{
    double values[2][BNK_MAX_COLUMNS];
    for (int i = 0; i < 2; i++)
        bnk_channel_sums(sums, i, channels, inner, rows_per_line, values[i]);
    for (int64_t c = 0; c < channels; c++) {
        totals[c] = (bnk_totals){ values[0][c], values[1][c], false };
        if (!sums->in_chains || values[1][c] != 0) continue;
        uint32_t some = 0;
        for (int64_t r = 0; r < rows_per_line; r++)
            for (int64_t i = 0; i < inner; i++)
                some |= sums->chains.sums.some[(r * channels + c) * inner + i];
        totals[c].nothing = some << 1 == 0;
    }
}

/* ---- whether chains do ---- */

/* From so many values on, the roundings of the chains even out; of moments, from BNK_MANY_MOMENTS on, the search for a
 * pivot pays as well. */
enum { BNK_MANY_GRADIENTS = 64 };
static inline bool bnk_has_many(const bnk_grid *grid, double count, int many)
{
    return !grid->is_double && count >= many;
}

/* Whether nothing overflowed, and squares or products that vanished are too small to count. */
static inline bool bnk_chains_hold(double count, bnk_totals t)
{
    return isfinite(t.first) && isfinite(t.second) &&
           (t.nothing || fabs(t.second) >= count * 0x1p-100);
}

/* So many pivots are tried before a piece is summed in float64. */
enum { BNK_PIVOTS = 4 };

/*
 * Whether the pivot of these sums was within a deviation of the mean. The mean that they give is nearer. In chains what is
 * rounded off would else no longer be small beside the deviation; in float64 a far pivot costs up to log2(n) bits, of
 * which float64 results have none to spare.
 */
static inline bool bnk_is_near(double count, bnk_totals t)
{
    const double shift = t.first / count, m2 = t.second - t.first * shift;
    return t.first * shift <= m2;
}

#endif
