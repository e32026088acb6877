/*
 * Moments of a set of values: the one reduction of the library, and the one way to merge two of
 * them.
 *
 * Sums are taken around a pivot p, as the subtraction in sum((x-p)^2) - sum(x-p)^2/n loses digits where p is far
 * from the mean. For one of the values summed, (mean - p)^2 <= n * variance, so that it loses at most log2(n) of
 * float64's 53 bits, whatever the data, beside what adding up has lost: with tiles of up to 2^16 values, far more is
 * left than float32 results need. Sums that have no digits to spare, those of float64 tensors and those in chains of
 * float32, get a pivot that is nearer (see bnk_is_near in sums.h).
 *
 * The mean is kept as an unevaluated pair: near 1e4 with deviation 1e-2, a float64 mean alone would
 * cost float64 tensors six digits.
 */
#ifndef BNK_MOMENTS_H
#define BNK_MOMENTS_H

#include <math.h>
#include <stdint.h>

#include "bnk.h"

typedef struct bnk_moments {
    double mean;
    double mean_rest; /* mean + mean_rest is the mean */
    double m2;        /* sum((x - mean)^2) */
} bnk_moments;

/* Moments of `count` values from their sums around `pivot`. */
static inline bnk_moments bnk_moments_of_sums(double count, double pivot, double sum,
                                              double sum_squares)
{
    const double shift = sum / count;
    const double m2 = sum_squares - sum * shift;
    const double mean = pivot + shift;
    const double part = mean - pivot;
    bnk_moments moments;
    moments.mean = mean;
    moments.mean_rest = (pivot - (mean - part)) + (shift - part);
    moments.m2 = m2 < 0 ? 0 : m2; /* NaN stays */
    return moments;
}

/* The shares of two counts that a merge needs, apart from it because many channels have the same. */
typedef struct bnk_shares {
    double b;    /* b / (a + b) */
    double both; /* a * b / (a + b) */
} bnk_shares;

static inline bnk_shares bnk_shares_of(double a_count, double b_count)
{
    bnk_shares shares;
    shares.b = b_count / (a_count + b_count); /* 1 if there is no a yet */
    shares.both = a_count * shares.b;
    return shares;
}

/* m2 / divisor; NaN where mean or variance is not finite: no half-right output. */
static inline double bnk_variance_of(bnk_moments moments, double divisor)
{
    const double variance = moments.m2 / divisor;
    return isfinite(moments.mean) && isfinite(variance) ? variance : NAN;
}

/* Moments of a and b together. Chan, Golub, LeVeque: "Updating formulae and a pairwise algorithm for computing
 * sample variances", 1979. */
static inline bnk_moments bnk_moments_merge(bnk_moments a, bnk_moments b, bnk_shares shares)
{
    const double delta = (b.mean - a.mean) + (b.mean_rest - a.mean_rest);
    const double step = delta * shares.b + a.mean_rest;
    const double mean = a.mean + step;
    const double part = mean - a.mean;
    bnk_moments moments;
    moments.mean = mean;
    moments.mean_rest = (a.mean - (mean - part)) + (step - part);
    moments.m2 = (a.m2 + b.m2) + delta * delta * shares.both;
    return moments;
}

/* all[c] = all[c] and own[c] together, for each of some channels; the first time, when all has no values, own[c].
 * What has no values itself changes nothing. */
static inline void bnk_moments_add(bnk_moments *all, double all_count, const bnk_moments *own,
                                   double own_count, int64_t channels)
{
    if (own_count == 0) return;
    const bnk_shares shares = bnk_shares_of(all_count, own_count);
    for (int64_t c = 0; c < channels; c++)
        all[c] = all_count == 0 ? own[c] : bnk_moments_merge(all[c], own[c], shares);
}

/* In a caller's arrays. */
static inline bnk_moments bnk_moments_at(const bnk_moment_arrays *arrays, int64_t i)
{
    return (bnk_moments){ arrays->mean[i], arrays->mean_rest[i], arrays->m2[i] };
}

static inline void bnk_moments_put(const bnk_moment_arrays *arrays, int64_t i, bnk_moments moments)
{
    arrays->mean[i] = moments.mean;
    arrays->mean_rest[i] = moments.mean_rest;
    arrays->m2[i] = moments.m2;
}

#endif
