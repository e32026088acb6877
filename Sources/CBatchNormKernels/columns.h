/*
 * The columns of a run of channels, for the column leaves. With inner > 1 column j belongs to channel
 * j / inner; with inner == 1 several rows may count as one line, and column j belongs to channel j % channels.
 */
#ifndef BNK_COLUMNS_H
#define BNK_COLUMNS_H

#include <stdint.h>

#include "bnk.h"

/* How many rows of a piece count as one line of columns. The last ones, too few for another, are
 * single. */
static inline int64_t bnk_rows_per_line(const bnk_plan *plan, int64_t rows_left)
{
    return rows_left >= plan->rows_per_line ? plan->rows_per_line : 1;
}

/* columns[j] = values[channel of j] */
static inline void bnk_expand_double(const double *values, int64_t channels, int64_t inner,
                                     int64_t rows_per_line, double *columns)
{
    for (int64_t c = 0; c < channels; c++)
        for (int64_t i = 0; i < inner; i++) columns[c * inner + i] = values[c];
    for (int64_t j = channels; j < rows_per_line * channels; j++)
        columns[j] = columns[j - channels];
}

static inline void bnk_expand_float(const float *values, int64_t channels, int64_t inner,
                                    int64_t rows_per_line, float *columns)
{
    for (int64_t c = 0; c < channels; c++)
        for (int64_t i = 0; i < inner; i++) columns[c * inner + i] = values[c];
    for (int64_t j = channels; j < rows_per_line * channels; j++)
        columns[j] = columns[j - channels];
}

/* The same, rounded to float. */
static inline void bnk_expand_to_float(const double *values, int64_t channels, int64_t inner,
                                       int64_t rows_per_line, float *columns)
{
    for (int64_t c = 0; c < channels; c++)
        for (int64_t i = 0; i < inner; i++) columns[c * inner + i] = (float)values[c];
    for (int64_t j = channels; j < rows_per_line * channels; j++)
        columns[j] = columns[j - channels];
}

static inline void bnk_expand(const void *values, int32_t is_double, int64_t channels,
                              int64_t inner, int64_t rows_per_line, void *columns)
{
    if (is_double)
        bnk_expand_double(values, channels, inner, rows_per_line, columns);
    else
        bnk_expand_float(values, channels, inner, rows_per_line, columns);
}

/* values[c] = the sum of its columns, in a fixed order. */
static inline void bnk_collapse(const double *columns, int64_t channels, int64_t inner,
                                int64_t rows_per_line, double *values)
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
    for (int64_t r = 1; r < rows_per_line; r++)
        for (int64_t c = 0; c < channels; c++) values[c] += columns[r * channels + c];
}

/* The same in chains as short as can be, for sums of float64 tensors (see carry.h); `columns` are spoiled. */
static inline void bnk_collapse_evenly(double *columns, int64_t channels, int64_t inner,
                                       int64_t rows_per_line, double *values)
{
    /* Halves onto each other: of the rows that lie behind one another, then of a channel's columns. */
    for (int64_t left = rows_per_line, next; left > 1; left = next) {
        next = (left + 1) / 2;
        for (int64_t j = 0; j < (left - next) * channels; j++)
            columns[j] += columns[next * channels + j];
    }
    for (int64_t c = 0; c < channels; c++) {
        double *own = columns + c * inner;
        for (int64_t left = inner, next; left > 1; left = next) {
            next = (left + 1) / 2;
            for (int64_t i = 0; i < left - next; i++) own[i] += own[next + i];
        }
        values[c] = own[0];
    }
}

#endif
