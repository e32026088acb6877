/*
 * Data that breaks batch normalization elsewhere: NaN and infinity, constants, a mean far larger than
 * the deviation, squares that overflow or vanish. Every cut, every instruction set.
 */
#include "check.h"

#include <math.h>

#include "bench.h"

static const bnk_grid grids[] = {
    { 16, 5, 784, 0, 0 }, /* N*S = 12544 */
    { 12544, 5, 1, 0, 0 },
    { 35, 5, 17, 0, 0 },
    { 300, 5, 1, 0, 0 },
};

static void set_channel(const bench *b, elements array, int64_t channel, double value)
{
    for (int64_t i = 0; i < b->grid.rows * b->grid.inner; i++)
        elements_set(array, ref_index(b->shape, channel, i), value);
}

/* Runs `test` for every grid, type and cut, in whole runs and in three steps, and with every instruction set where the grid
 * is small. */
static void everywhere(void (*fill)(bench *b), void (*test)(bench *b, const bnk_plan *plan))
{
    for (size_t g = 0; g < LENGTH(grids); g++)
        for (int is_double = 0; is_double < 2; is_double++) {
            bnk_grid grid = grids[g];
            grid.is_double = is_double;
            bench b = bench_make(grid, (int)g);
            fill(&b);
            bench_refresh_reference(&b);
            bnk_plan cuts[MAX_CUTS];
            const int count = cuts_of(&grid, cuts);
            const int32_t first = ref_count(b.shape) > 10000 ? best_isa() : next_isa(-1);
            for (int i = 0; i < count; i++)
                for (int32_t isa = first; isa >= 0; isa = next_isa(isa))
                    for (int32_t whole_runs = 0; whole_runs < 2; whole_runs++) {
                        bnk_plan plan = cuts[i];
                        plan.isa = isa;
                        plan.whole_runs = whole_runs;
                        bench_reset(&b);
                        test(&b, &plan);
                    }
            check(guarded_intact(), "something was written beside a buffer");
            bench_free(&b);
        }
}

/* Forward and backward are within the bounds of the reference, or so many times them in float64. */
static void check_within(bench *b, const bnk_plan *plan, double double_slack)
{
    const double allowed = b->grid.is_double ? double_slack : 1;
    ref_statistics statistics[5];
    bench_forward(b, plan);
    const double error =
        ref_forward_error(b->shape, b->batch, b->input, b->weight, b->bias, b->output);
    check(error <= allowed, "%s: output is off by %.3g of what is allowed",
          plan_text(&b->grid, plan), error);
    check(b->nonfinite_channels == 0, "%s: %lld nonfinite channels", plan_text(&b->grid, plan),
          (long long)b->nonfinite_channels);
    bench_backward(b, plan, false, false, GRAD_ALL, OF_ITS_OWN);
    /* A float64 tensor's gradients are those for the saved float64 mean; float32 does not see the
     * difference. */
    for (int64_t c = 0; c < b->grid.channels; c++)
        statistics[c] = b->grid.is_double ? ref_of_saved(elements_get(b->saved_mean, c), 0,
                                                         elements_get(b->saved_invstd, c))
                                          : b->batch[c];
    const ref_gradient_errors off =
        ref_backward_error(b->shape, statistics, false, b->input, b->grad_output, b->weight,
                           (ref_gradients){ b->grad_input, b->grad_weight, b->grad_bias });
    check(off.input <= allowed && off.weight <= allowed && off.bias <= allowed,
          "%s: of what is allowed grad_input is off by %.3g, grad_weight %.3g, grad_bias %.3g",
          plan_text(&b->grid, plan), off.input, off.weight, off.bias);
}

/* Some cuts add all of a channel's values one after the other, which costs float64 about sqrt(n) of its units
 * in the last place. */
static void check_accurate(bench *b, const bnk_plan *plan)
{
    check_within(b, plan, fmax(1, sqrt((double)(b->grid.rows * b->grid.inner)) / 16));
}

/* A pivot far from all other values costs float64 up to log2(n) of its bits more (moments.h); float32 nothing. */
static void check_accurate_around_outlier(bench *b, const bnk_plan *plan)
{
    check_within(b, plan, 4 * (double)(b->grid.rows * b->grid.inner));
}

static void fill_far_mean(bench *b)
{
    elements_fill_normal(b->input, 7, 1e4, 1e-2);
}
static void fill_far_negative_mean(bench *b)
{
    elements_fill_normal(b->input, 7, -1e2, 1);
}
static void fill_huge(bench *b)
{
    elements_fill_normal(b->input, 8, 0, 3e19);
}

static void fill_tiny(bench *b)
{
    b->epsilon = 0;
    elements_fill_normal(b->input, 9, 0, 1e-30); /* squares vanish in float32 */
}

/* The first value, on which a pivot may be laid, is far from all others. */
static void fill_outlier(bench *b)
{
    elements_fill_normal(b->input, 10, 0, 1);
    for (int64_t c = 0; c < b->grid.channels; c++)
        elements_set(b->input, ref_index(b->shape, c, 0), c % 2 == 0 ? 1e4 : -1e5);
}

/* Nearly constant: steps of single units in the last place of a large number. */
static void fill_near_constant(bench *b)
{
    elements_fill_normal(b->input, 11, 4096, 1e-3);
}

static void far_mean(void **state)
{
    (void)state;
    everywhere(fill_far_mean, check_accurate);
}

static void far_negative_mean(void **state)
{
    (void)state;
    everywhere(fill_far_negative_mean, check_accurate);
}

static void squares_that_overflow(void **state)
{
    (void)state;
    everywhere(fill_huge, check_accurate);
}

static void squares_that_vanish(void **state)
{
    (void)state;
    everywhere(fill_tiny, check_accurate);
}

static void outliers(void **state)
{
    (void)state;
    everywhere(fill_outlier, check_accurate_around_outlier);
}

static void near_constant(void **state)
{
    (void)state;
    everywhere(fill_near_constant, check_accurate);
}

/* ---- constants ---- */

static const double constants[5] = { 1e4, 3.7, 0, -0.1, 3e19 };

static void fill_constants(bench *b)
{
    for (int64_t c = 0; c < b->grid.channels; c++) set_channel(b, b->input, c, constants[c]);
}

static void fill_constants_without_epsilon(bench *b)
{
    fill_constants(b);
    b->epsilon = 0;
}

static void check_exactly_beta(bench *b, const bnk_plan *plan)
{
    bench_forward(b, plan);
    for (int64_t c = 0; c < b->grid.channels; c++) {
        const double beta = elements_get(b->bias, c);
        for (int64_t i = 0; i < b->grid.rows * b->grid.inner; i++) {
            const double y = elements_get(b->output, ref_index(b->shape, c, i));
            check(y == beta, "%s: constant %g gives %.17g, not the bias %.17g",
                  plan_text(&b->grid, plan), constants[c], y, beta);
        }
        check(elements_get(b->saved_mean, c) == elements_get(b->input, ref_index(b->shape, c, 0)),
              "%s: the mean of constant %g is %.17g", plan_text(&b->grid, plan), constants[c],
              elements_get(b->saved_mean, c));
        if (b->epsilon == 0)
            check(elements_get(b->saved_invstd, c) == 0,
                  "%s: variance 0 and epsilon 0 give invstd %.17g", plan_text(&b->grid, plan),
                  elements_get(b->saved_invstd, c));
    }
}

static void check_constants(bench *b, const bnk_plan *plan)
{
    check_exactly_beta(b, plan);
    check_accurate(b, plan);
}

static void constants_give_exactly_beta(void **state)
{
    (void)state;
    everywhere(fill_constants, check_constants);
}

static void constants_without_epsilon(void **state)
{
    (void)state;
    everywhere(fill_constants_without_epsilon, check_constants);
}

/* ---- NaN and infinity ---- */

/* Puts NaN, infinity or both into channels 1 and 3, each at one place that moves with the plan. */
static void check_contained(bench *b, const bnk_plan *plan)
{
    static const double poisons[] = { NAN, INFINITY, -INFINITY };
    const int64_t count = b->grid.rows * b->grid.inner;
    const int64_t places[] = { 0, count / 2, count - 1 };
    const elements clean = guarded_elements(b->output.count, b->grid.is_double, PLACE_START);
    const elements clean_dx = guarded_elements(b->output.count, b->grid.is_double, PLACE_START);
    const elements clean_mean = guarded_elements(5, true, PLACE_START);
    const elements clean_running = guarded_elements(5, b->grid.is_double, PLACE_START);
    bench_forward(b, plan);
    elements_copy(clean, b->output);
    elements_copy(clean_mean, b->saved_mean);
    elements_copy(clean_running, b->running_var);
    bench_backward(b, plan, false, false, GRAD_ALL, OF_ITS_OWN);
    elements_copy(clean_dx, b->grad_input);

    for (size_t p = 0; p < LENGTH(poisons); p++) {
        const int64_t at1 = ref_index(b->shape, 1, places[p]);
        const int64_t at3 = ref_index(b->shape, 3, places[2 - p]);
        const double old1 = elements_get(b->input, at1), old3 = elements_get(b->input, at3);
        elements_set(b->input, at1, poisons[p]);
        elements_set(b->input, at3, poisons[(p + 1) % 3]);
        bench_reset(b);
        bench_forward(b, plan);
        check(b->nonfinite_channels == 2, "%s: %lld nonfinite channels, expected 2",
              plan_text(&b->grid, plan), (long long)b->nonfinite_channels);
        bench_backward(b, plan, false, false, GRAD_ALL, OF_ITS_OWN);
        for (int64_t c = 0; c < b->grid.channels; c++) {
            const bool poisoned = c == 1 || c == 3;
            for (int64_t i = 0; i < count; i++) {
                const int64_t at = ref_index(b->shape, c, i);
                const double y = elements_get(b->output, at), dx = elements_get(b->grad_input, at);
                if (poisoned)
                    check(isnan(y) && isnan(dx), "%s: channel %d holds %g, output %g, gradient %g",
                          plan_text(&b->grid, plan), (int)c, poisons[p], y, dx);
                else
                    check(y == elements_get(clean, at) && dx == elements_get(clean_dx, at),
                          "%s: channel %d changed from %.17g to %.17g", plan_text(&b->grid, plan),
                          (int)c, elements_get(clean, at), y);
            }
            const double expected_var =
                elements_get(poisoned ? b->old_running_var : clean_running, c);
            check(elements_get(b->running_var, c) == expected_var,
                  "%s: running_var[%d] is %.17g, expected %.17g", plan_text(&b->grid, plan), (int)c,
                  elements_get(b->running_var, c), expected_var);
            if (poisoned)
                check(elements_get(b->running_mean, c) == elements_get(b->old_running_mean, c),
                      "%s: running_mean[%d] took in %g", plan_text(&b->grid, plan), (int)c,
                      poisons[p]);
            else
                check(elements_get(b->saved_mean, c) == elements_get(clean_mean, c),
                      "%s: saved_mean[%d] changed", plan_text(&b->grid, plan), (int)c);
        }
        elements_set(b->input, at1, old1);
        elements_set(b->input, at3, old3);
    }
    guarded_free(clean.data);
    guarded_free(clean_dx.data);
    guarded_free(clean_mean.data);
    guarded_free(clean_running.data);
}

static void fill_nothing(bench *b)
{
    (void)b;
}

static void nonfinite_stays_in_its_channel(void **state)
{
    (void)state;
    everywhere(fill_nothing, check_contained);
}

/* In the gradient of the output a NaN spreads over its channel and no further. */
static void check_gradient_contained(bench *b, const bnk_plan *plan)
{
    const int64_t count = b->grid.rows * b->grid.inner, at = ref_index(b->shape, 2, count / 2);
    const double old = elements_get(b->grad_output, at);
    bench_forward(b, plan);
    elements_set(b->grad_output, at, NAN);
    bench_backward(b, plan, false, false, GRAD_ALL, OF_ITS_OWN);
    elements_set(b->grad_output, at, old);
    for (int64_t c = 0; c < b->grid.channels; c++) {
        check(isnan(elements_get(b->grad_weight, c)) == (c == 2), "%s: grad_weight[%d] is %g",
              plan_text(&b->grid, plan), (int)c, elements_get(b->grad_weight, c));
        for (int64_t i = 0; i < count; i++) {
            const double dx = elements_get(b->grad_input, ref_index(b->shape, c, i));
            check(isnan(dx) == (c == 2), "%s: grad_input in channel %d is %g",
                  plan_text(&b->grid, plan), (int)c, dx);
        }
    }
}

static void nonfinite_gradients_stay_in_their_channel(void **state)
{
    (void)state;
    everywhere(fill_nothing, check_gradient_contained);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(far_mean, bench_teardown),
        cmocka_unit_test_teardown(far_negative_mean, bench_teardown),
        cmocka_unit_test_teardown(squares_that_overflow, bench_teardown),
        cmocka_unit_test_teardown(squares_that_vanish, bench_teardown),
        cmocka_unit_test_teardown(outliers, bench_teardown),
        cmocka_unit_test_teardown(near_constant, bench_teardown),
        cmocka_unit_test_teardown(constants_give_exactly_beta, bench_teardown),
        cmocka_unit_test_teardown(constants_without_epsilon, bench_teardown),
        cmocka_unit_test_teardown(nonfinite_stays_in_its_channel, bench_teardown),
        cmocka_unit_test_teardown(nonfinite_gradients_stay_in_their_channel, bench_teardown),
    };
    return cmocka_run_group_tests_name("kernels: extremes", tests, NULL, NULL);
}
