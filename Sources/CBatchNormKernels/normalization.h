/* The coefficients with which a forward normalizes a channel, whatever statistics it does it with. */
#ifndef BNK_NORMALIZATION_H
#define BNK_NORMALIZATION_H

#include "coefficients.h"
#include "extreme.h"
#include "indices.h"

/* weight and bias: parameter arrays or NULL. */
static inline bnk_linear bnk_normalization(const bnk_grid *grid, int64_t channel,
                                           const void *weights, const void *biases, double mean,
                                           double mean_rest, double invstd)
{
    const int32_t is_double = grid->is_double;
    const int64_t at = bnk_parameter_of(grid, channel);
    const double weight = bnk_get(weights, is_double, at, 1), gain = weight * invstd;
    const bnk_linear f =
        bnk_linear_of(1, mean, mean_rest, gain, bnk_get(biases, is_double, at, 0), is_double);
    return bnk_serves_forward(&f, weight, invstd, gain, is_double) ? f : bnk_linear_of_extreme();
}

/* The same of an extreme channel. */
static inline bnk_extreme bnk_extreme_normalization(const bnk_grid *grid, int64_t channel,
                                                    const void *weights, const void *biases,
                                                    double mean, double mean_rest, double invstd)
{
    const int64_t at = bnk_parameter_of(grid, channel);
    const double weight = bnk_get(weights, grid->is_double, at, 1);
    return (bnk_extreme){
        .mean = mean,
        .mean_rest = mean_rest,
        .gain = bnk_scaled_product(bnk_scaled_of(weight), bnk_scaled_of(invstd)),
        .offset = bnk_scaled_of(bnk_get(biases, grid->is_double, at, 0)),
    };
}

#endif
