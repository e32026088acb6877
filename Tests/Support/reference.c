#include "reference.h"

#include <float.h>
#include <math.h>

static long double largest_of(long double a, long double b)
{
    return fabsl(a) > fabsl(b) ? fabsl(a) : fabsl(b);
}

static long double parameter(elements values, int64_t channel, double absent)
{
    return values.data == NULL ? absent : elements_get(values, channel);
}

static long double invstd_of(long double variance, double epsilon)
{
    return variance + epsilon == 0 ? 0 : 1 / sqrtl(variance + epsilon);
}

/* A sum with what its additions have lost (Kahan, 1965): a million equal values, added up in long double alone,
 * would be off by more than float64 sums may be. */
typedef struct exact_sum {
    long double sum, lost;
} exact_sum;

static void add(exact_sum *to, long double value)
{
    const long double wanted = value - to->lost, sum = to->sum + wanted;
    to->lost = (sum - to->sum) - wanted;
    to->sum = sum;
}

ref_statistics ref_of_batch(ref_grid grid, elements input, int64_t channel, double epsilon)
{
    const int64_t count = grid.rows * grid.inner;
    ref_statistics s = { .mean_near = elements_get(input, ref_index(grid, channel, 0)) };
    exact_sum sum = { 0, 0 }, squares = { 0, 0 }, rests = { 0, 0 };
    for (int64_t i = 0; i < count; i++)
        add(&sum, elements_get(input, ref_index(grid, channel, i)) - s.mean_near);
    s.mean_rest = sum.sum / count;
    for (int64_t i = 0; i < count; i++) {
        const long double x = elements_get(input, ref_index(grid, channel, i));
        const long double centered = x - s.mean_near - s.mean_rest;
        add(&squares, centered * centered);
        add(&rests, centered);
    }
    /* Corrected two-pass (Chan, Golub, LeVeque, 1983): the rest is 0 but for rounding. */
    const long double rest = rests.sum;
    s.mean_rest += rest / count;
    s.variance = (squares.sum - rest * rest / count) / count;
    s.invstd = invstd_of(s.variance, epsilon);
    return s;
}

ref_statistics ref_of_running(double mean, double variance, double epsilon)
{
    return (ref_statistics){ mean, 0, variance, invstd_of(variance, epsilon) };
}

ref_statistics ref_of_saved(double mean, double mean_rest, double invstd)
{
    return (ref_statistics){ mean, mean_rest, NAN, invstd };
}

long double ref_ulp(long double magnitude, bool is_double)
{
    const int digits = is_double ? DBL_MANT_DIG : FLT_MANT_DIG;
    const int lowest = (is_double ? DBL_MIN_EXP : FLT_MIN_EXP) - digits;
    if (magnitude == 0) return ldexpl(1, lowest);
    const int exponent = ilogbl(magnitude) + 1 - digits;
    return ldexpl(1, exponent < lowest ? lowest : exponent);
}

double ref_ratio(double value, long double expected, long double allowed)
{
    if (!isfinite(value) || !isfinite(expected))
        return (isnan(value) && isnan(expected)) || value == expected ? 0 : INFINITY;
    return (double)(fabsl(value - expected) / allowed);
}

double ref_error(double value, long double expected, long double ulps, long double largest,
                 bool is_double)
{
    return ref_ratio(value, expected, ulps * ref_ulp(fabsl(largest), is_double));
}

double ref_saved_mean_error(ref_statistics s, double mean, bool is_double)
{
    const long double deviation = sqrtl(s.variance), size = fabsl(ref_mean(s));
    const long double rounding = 8 * ref_ulp(size + deviation, true);
    return ref_ratio(mean, ref_mean(s), is_double ? rounding : rounding + 0x1p-22L * deviation);
}

double ref_saved_invstd_error(ref_statistics s, double invstd, bool is_double)
{
    return ref_ratio(invstd, s.invstd,
                     is_double ? 64 * ref_ulp(s.invstd, true)
                               : 0x1p-22L * s.invstd + ref_ulp(s.invstd, true));
}

long double ref_running_mean_slack(ref_statistics s, long double share, bool is_double)
{
    return is_double ? 0 : 0x1p-22L * share * sqrtl(s.variance);
}

/* Twice that of its inverse square root. */
long double ref_running_var_slack(ref_statistics s, long double share, bool is_double)
{
    return is_double ? 0 : 0x1p-21L * share * s.variance;
}

/* `ulps` of float32, or 32 of float64, at the largest term. */
static long double allowed_at(long double largest, int ulps, bool is_double)
{
    return (is_double ? 32 : ulps) * ref_ulp(largest, is_double);
}

double ref_forward_error(ref_grid grid, const ref_statistics *statistics, elements input,
                         elements weight, elements bias, elements output)
{
    double worst = 0;
    for (int64_t channel = 0; channel < grid.channels; channel++) {
        const ref_statistics s = statistics[channel];
        const long double gamma = parameter(weight, channel, 1);
        const long double beta = parameter(bias, channel, 0);
        for (int64_t i = 0; i < grid.rows * grid.inner; i++) {
            const int64_t at = ref_index(grid, channel, i);
            const long double centered = elements_get(input, at) - s.mean_near - s.mean_rest;
            const long double scaled = gamma * (centered * s.invstd);
            const long double y = scaled + beta;
            const long double largest = largest_of(largest_of(scaled, gamma), largest_of(beta, y));
            const double error =
                ref_ratio(elements_get(output, at), y, allowed_at(largest, 3, output.is_double));
            if (error > worst) worst = error;
        }
    }
    return worst;
}

ref_gradient_errors ref_backward_error(ref_grid grid, const ref_statistics *statistics, bool frozen,
                                       elements input, elements grad_output, elements weight,
                                       ref_gradients gradients)
{
    const int64_t count = grid.rows * grid.inner;
    const long double sum_share =
        grad_output.is_double ? 16 * 0x1p-53L : 8 * 0x1p-24L; /* of the sum of |terms| */
    ref_gradient_errors worst = { 0, 0, 0 };
    for (int64_t channel = 0; channel < grid.channels; channel++) {
        const ref_statistics s = statistics[channel];
        const long double gamma = parameter(weight, channel, 1), r = s.invstd;
        exact_sum dy_sum = { 0, 0 }, product_sum = { 0, 0 };
        long double s1_terms = 0, s2_terms = 0, squares = 0;
        for (int64_t i = 0; i < count; i++) {
            const int64_t at = ref_index(grid, channel, i);
            const long double dy = elements_get(grad_output, at);
            const long double c = elements_get(input, at) - s.mean_near - s.mean_rest;
            add(&dy_sum, dy);
            add(&product_sum, dy * c);
            squares += dy * dy;
            s1_terms += fabsl(dy);
            s2_terms += fabsl(dy * c);
        }
        const long double s1 = dy_sum.sum, s2 = product_sum.sum;
        if (gradients.bias.data != NULL) {
            const double error =
                ref_ratio(elements_get(gradients.bias, channel), s1,
                          sum_share * s1_terms + ref_ulp(0, grad_output.is_double));
            if (error > worst.bias) worst.bias = error;
        }
        if (gradients.weight.data != NULL) {
            const double error =
                ref_ratio(elements_get(gradients.weight, channel), s2 * r,
                          sum_share * s2_terms * r + ref_ulp(0, grad_output.is_double));
            if (error > worst.weight) worst.weight = error;
        }
        if (gradients.input.data == NULL) continue;
        const long double usual = frozen ? 0 : gamma * r * sqrtl(squares / count);
        for (int64_t i = 0; i < count; i++) {
            const int64_t at = ref_index(grid, channel, i);
            const long double c = elements_get(input, at) - s.mean_near - s.mean_rest;
            const long double direct = gamma * r * elements_get(grad_output, at);
            const long double by_mean = frozen ? 0 : gamma * r * (s1 / count);
            const long double by_variance = frozen ? 0 : gamma * r * (c * r) * (r * s2 / count);
            const long double dx = direct - by_mean - by_variance;
            long double largest =
                largest_of(largest_of(direct, by_mean), largest_of(by_variance, usual));
            if (grad_output.is_double && !frozen) {
                const long double means = largest_of(s1_terms, c * r * r * s2_terms) / count;
                largest = largest_of(largest, gamma * r * means);
            }
            const double error = ref_ratio(elements_get(gradients.input, at), dx,
                                           allowed_at(largest, 4, grad_output.is_double));
            if (error > worst.input) worst.input = error;
        }
    }
    return worst;
}
