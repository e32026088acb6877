/*
 * The columns of a run of channels, for the column leaves. With inner > 1 (fold 1) column j belongs
 * to channel j / inner; with a fold, rows lie behind one another and column j belongs to channel j
 * % channels.
 */
#ifndef BNK_COLUMNS_H
#define BNK_COLUMNS_H

#include <stdint.h>

#include "bnk.h"

/* How many rows of a piece count as one line of columns. The last ones, too few for a fold, are
 * single. */
static inline int64_t bnk_fold_of(const bnk_plan *plan, int64_t rows_left)
{
    return rows_left >= plan->fold ? plan->fold : 1;
}

/* columns[j] = values[channel of j] */
static inline void bnk_expand_double(const double *values, int64_t channels, int64_t inner,
                                     int64_t fold, double *columns)
{
    for (int64_t c = 0; c < channels; c++)
        for (int64_t i = 0; i < inner; i++) columns[c * inner + i] = values[c];
    for (int64_t j = channels; j < fold * channels; j++) columns[j] = columns[j - channels];
}

static inline void bnk_expand_float(const float *values, int64_t channels, int64_t inner,
                                    int64_t fold, float *columns)
{
    for (int64_t c = 0; c < channels; c++)
        for (int64_t i = 0; i < inner; i++) columns[c * inner + i] = values[c];
    for (int64_t j = channels; j < fold * channels; j++) columns[j] = columns[j - channels];
}

static inline void bnk_expand(const void *values, int32_t is_double, int64_t channels,
                              int64_t inner, int64_t fold, void *columns)
{
    if (is_double)
        bnk_expand_double(values, channels, inner, fold, columns);
    else
        bnk_expand_float(values, channels, inner, fold, columns);
}

/* values[c] = the sum of its columns, in a fixed order. */
static inline void bnk_collapse(const double *columns, int64_t channels, int64_t inner,
                                int64_t fold, double *values)
{
    for (int64_t c = 0; c < channels; c++) {
        const double *own = columns + c * inner;
        double part[4] = { 0, 0, 0, 0 }; /* four chains of additions run side by side */
        int64_t i = 0;
        for (; i + 4 <= inner; i += 4)
            for (int k = 0; k < 4; k++) part[k] += own[i + k];
        for (; i < inner; i++) part[0] += own[i];
        values[c] = (part[0] + part[1]) + (part[2] + part[3]);
    }
    for (int64_t f = 1; f < fold; f++)
        for (int64_t c = 0; c < channels; c++) values[c] += columns[f * channels + c];
}

#endif
