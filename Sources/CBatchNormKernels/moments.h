/*
 * Moments of a set of values: the one reduction of the library, and the one way to merge two of
 * them.
 *
 * A tile's sums are taken around a pivot p that is one of its own values. For any such p,
 * (mean - p)^2 <= n * variance, so that sum((x-p)^2) - sum(x-p)^2/n loses at most log2(n) of
 * float64's 53 bits, whatever the data: with tiles of up to 2^16 values far more is left than
 * float32 results need.
 *
 * The mean is kept as an unevaluated pair: near 1e4 with deviation 1e-2, a float64 mean alone would
 * cost float64 tensors six digits.
 */
#ifndef BNK_MOMENTS_H
#define BNK_MOMENTS_H

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

/* Chan, Golub, LeVeque: "Updating formulae and a pairwise algorithm for computing sample
 * variances", 1979. */
static inline bnk_moments bnk_moments_merge(double a_count, bnk_moments a, double b_count,
                                            bnk_moments b)
{
    const double count = a_count + b_count;
    const double delta = (b.mean - a.mean) + (b.mean_rest - a.mean_rest);
    const double step = delta * (b_count / count) + a.mean_rest;
    const double mean = a.mean + step;
    const double part = mean - a.mean;
    bnk_moments moments;
    moments.mean = mean;
    moments.mean_rest = (a.mean - (mean - part)) + (step - part);
    moments.m2 = (a.m2 + b.m2) + delta * delta * (a_count * (b_count / count));
    return moments;
}

#endif
