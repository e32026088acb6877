/* The coefficients with which a forward normalizes channels, whatever statistics it does it with. */
#ifndef BNK_NORMALIZATION_H
#define BNK_NORMALIZATION_H

#include "coefficients.h"
#include "extreme.h"
#include "indices.h"

/* What they are formed of: of each as many as there are channels, at most BNK_TOGETHER. */
typedef struct bnk_ingredients {
    int64_t channels;
    const double *mean, *mean_rest, *invstd;
    double weight[BNK_TOGETHER], bias[BNK_TOGETHER];
} bnk_ingredients;

/* Returns whether all are usual, and so serve. */
BNK_FORM bool bnk_form_normalization(const bnk_ingredients *of, int32_t is_double,
                                     const bnk_linears *to)
{
    bool usual = true;
    BNK_SHORT_LOOP
    for (int64_t i = 0; i < of->channels; i++) {
        const double gain = of->weight[i] * of->invstd[i];
        const bnk_linear f =
            bnk_linear_of(1, of->mean[i], of->mean_rest[i], gain, of->bias[i], is_double);
        usual &= bnk_is_usual_forward(&f);
        bnk_linears_set(to, is_double, i, f);
    }
    return usual;
}

/* weights and biases: parameter arrays or NULL; `of` lacks what comes of them. */
BNK_FORM void bnk_normalization(const bnk_grid *grid, int64_t channel, const void *weights,
                                const void *biases, bnk_ingredients *of, const bnk_linears *to)
{
    const int32_t is_double = grid->is_double;
    const int64_t at = bnk_parameter_of(grid, channel);
    bnk_get_some(weights, is_double, at, of->channels, 1, of->weight);
    bnk_get_some(biases, is_double, at, of->channels, 0, of->bias);
    if (is_double ? bnk_form_normalization(of, 1, to) : bnk_form_normalization(of, 0, to)) return;
    for (int64_t i = 0; i < of->channels; i++)
        bnk_linears_settle_forward(to, is_double, i, of->weight[i], of->invstd[i]);
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
