/*
 * reference.h — batch normalization as the formulas say it, in long double, and how far off a
 * result may be.
 *
 * Written to be read, not to be fast. It knows one shape, the grid [rows][channels][inner]:
 * NCHW is (N, C, S), NHWC is (N*S, C, 1).
 */
#ifndef REFERENCE_H
#define REFERENCE_H

#include "elements.h"

typedef struct ref_grid {
    int64_t rows;
    int64_t channels;
    int64_t inner;
} ref_grid;

static inline int64_t ref_count(ref_grid grid)
{
    return grid.rows * grid.channels * grid.inner;
}

/* The place in memory of value number `i` (0 ... rows * inner - 1) of a channel. */
static inline int64_t ref_index(ref_grid grid, int64_t channel, int64_t i)
{
    return (i / grid.inner * grid.channels + channel) * grid.inner + i % grid.inner;
}

/* What normalizes one channel. The mean is kept as a value of the data and the rest, because even a
 * long double mean of 1e4 is too coarse for float64 data with a deviation of 1e-2. */
typedef struct ref_statistics {
    long double mean_near;
    long double mean_rest; /* mean = mean_near + mean_rest */
    long double variance;  /* biased */
    long double invstd;    /* 0 if variance and epsilon are 0 */
} ref_statistics;

static inline long double ref_mean(ref_statistics s)
{
    return s.mean_near + s.mean_rest;
}

ref_statistics ref_of_batch(ref_grid grid, elements input, int64_t channel, double epsilon);
ref_statistics ref_of_running(double mean, double variance, double epsilon);
ref_statistics ref_of_saved(double mean, double mean_rest, double invstd);

/*
 * Errors come as a multiple of what is allowed: at most 1 is right; infinite if one side is NaN
 * or infinite and the other is not. `statistics` has one entry per channel.
 *
 * float32: the header's contract. Outputs 3 units in the last place of the largest of weight and the formula's terms;
 * input gradients 4 of the largest term and weight * invstd * rms of grad_output; sums 8 * 2^-24 * sum|terms|.
 * float64: less than the contract allows: 32 units in the same sense, where the formula's means of |terms| count as terms,
 * too. Sums 16 * 2^-53 * sum|terms|.
 */
double ref_forward_error(ref_grid grid, const ref_statistics *statistics, elements input,
                         elements weight, elements bias, elements output);

typedef struct ref_gradients {
    elements input; /* absent ones are not looked at */
    elements weight;
    elements bias;
} ref_gradients;

typedef struct ref_gradient_errors {
    double input;
    double weight;
    double bias;
} ref_gradient_errors;

/* frozen: the statistics are constants. */
ref_gradient_errors ref_backward_error(ref_grid grid, const ref_statistics *statistics, bool frozen,
                                       elements input, elements grad_output, elements weight,
                                       ref_gradients gradients);

/* The same of saved statistics: of float32, and half types, 2^-22 deviations and 2^-22 of invstd; of float64 8 and 64 units
 * in the last place. */
double ref_saved_mean_error(ref_statistics s, double mean, bool is_double);
double ref_saved_invstd_error(ref_statistics s, double invstd, bool is_double);

/* What running statistics may be off by for the saved ones: `share` is the momentum. */
long double ref_running_mean_slack(ref_statistics s, long double share, bool is_double);
long double ref_running_var_slack(ref_statistics s, long double share, bool is_double);

/* The distance of two values to the next in float32 or float64, at this magnitude. */
long double ref_ulp(long double magnitude, bool is_double);

/* |value - expected| as a multiple of what is allowed. */
double ref_ratio(double value, long double expected, long double allowed);

/* The same of `ulps` units in the last place of `largest`. */
double ref_error(double value, long double expected, long double ulps, long double largest,
                 bool is_double);

#endif
