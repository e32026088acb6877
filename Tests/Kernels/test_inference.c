/*
 * The inference forward, and the statistics that it hands to a later backward.
 */
#include "check.h"

#include "bench.h"

static void over_all_grids(bool is_double)
{
    const bnk_grid *grids;
    const int count = bench_grids(&grids);
    for (int g = 0; g < count; g++) {
        bnk_grid grid = grids[g];
        grid.is_double = is_double;
        bench b = bench_make(grid, g);
        bnk_plan cuts[MAX_CUTS], manners[MAX_MANNERS];
        elements expected = guarded_elements(b.output.count, is_double, PLACE_START);
        const int cut_count = cuts_of(&grid, cuts);
        for (int i = 0; i < cut_count; i++) {
            bench_reset(&b);
            bench_inference(&b, &cuts[i]);
            const double error =
                ref_forward_error(b.shape, b.running, b.input, b.weight, b.bias, b.output);
            check(error <= 1, "%s: off by %.3g of what is allowed", plan_text(&grid, &cuts[i]),
                  error);
            /* There are no sums here, so every cut must give the same bits. */
            if (i == 0) elements_copy(expected, b.output);
            const int manner_count = manners_of(cuts[i], g % 8 == 0, manners);
            for (int m = 0; m < manner_count; m++) {
                bench_reset(&b);
                bench_inference(&b, &manners[m]);
                const int64_t at = elements_first_difference(b.output, expected);
                check(at < 0, "%s: output[%lld] is %.17g, expected %.17g",
                      plan_text(&grid, &manners[m]), (long long)at, elements_get(b.output, at),
                      elements_get(expected, at));
            }
            check(elements_first_difference(b.running_mean, b.old_running_mean) < 0 &&
                      elements_first_difference(b.running_var, b.old_running_var) < 0,
                  "%s: inference changed the running statistics", plan_text(&grid, &cuts[i]));
            check(guarded_intact(), "%s: something was written beside a buffer",
                  plan_text(&grid, &cuts[i]));
        }
        bench_free(&b);
    }
}

static void float_is_right_and_reproducible(void **state)
{
    (void)state;
    over_all_grids(false);
}

static void double_is_right_and_reproducible(void **state)
{
    (void)state;
    over_all_grids(true);
}

static void absent_weight_and_bias(void **state)
{
    (void)state;
    for (int absent = 1; absent < 4; absent++) {
        bench b = bench_make((bnk_grid){ 17, 5, 19, absent & 1, 0 }, absent);
        bnk_plan cuts[MAX_CUTS];
        const int cut_count = cuts_of(&b.grid, cuts);
        for (int i = 0; i < cut_count; i++) {
            bench some = b;
            if (absent & 1) some.weight.data = NULL;
            if (absent & 2) some.bias.data = NULL;
            bench_reset(&b);
            bench_inference(&some, &cuts[i]);
            const double error =
                ref_forward_error(b.shape, b.running, b.input, some.weight, some.bias, b.output);
            check(error <= 1, "%s, absent %d: off by %.3g of what is allowed",
                  plan_text(&b.grid, &cuts[i]), absent, error);
        }
        bench_free(&b);
    }
}

static void statistics_for_a_later_backward(void **state)
{
    (void)state;
    for (int is_double = 0; is_double < 2; is_double++) {
        bench b = bench_make((bnk_grid){ 1, 35, 1, is_double, 0 }, 1);
        elements_set(b.running_var, 3, 0);
        bnk_statistics_from_running(&b.grid, b.running_mean.data, b.running_var.data, 0,
                                    b.saved_mean.data, b.saved_invstd.data);
        for (int64_t c = 0; c < 35; c++) {
            const ref_statistics s =
                ref_of_running(elements_get(b.running_mean, c), elements_get(b.running_var, c), 0);
            check(elements_get(b.saved_mean, c) == elements_get(b.running_mean, c), "mean[%d]",
                  (int)c);
            check(ref_error(elements_get(b.saved_invstd, c), s.invstd, 2, s.invstd, true) <= 1,
                  "invstd[%d] is %.17g, expected %.17Lg", (int)c, elements_get(b.saved_invstd, c),
                  s.invstd);
        }
        check(elements_get(b.saved_invstd, 3) == 0, "variance 0 and epsilon 0 give invstd 0");
        check(guarded_intact(), "something was written beside a buffer");
        bench_free(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(float_is_right_and_reproducible, bench_teardown),
        cmocka_unit_test_teardown(double_is_right_and_reproducible, bench_teardown),
        cmocka_unit_test_teardown(absent_weight_and_bias, bench_teardown),
        cmocka_unit_test_teardown(statistics_for_a_later_backward, bench_teardown),
    };
    return cmocka_run_group_tests_name("kernels: inference forward", tests, NULL, NULL);
}
