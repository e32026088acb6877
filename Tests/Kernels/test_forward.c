/*
 * The training forward, over shapes, cuts, instruction sets, threads, store kinds: right by the
 * reference, and the same bits however it was done.
 */
#include "check.h"

#include <math.h>

#include "bench.h"

typedef struct forward_result {
    elements output, saved_mean, saved_invstd, running_mean, running_var;
} forward_result;

static forward_result positions(const bench *b)
{
    return (forward_result){ guarded_copy(b->output), guarded_copy(b->saved_mean),
                             guarded_copy(b->saved_invstd), guarded_copy(b->running_mean),
                             guarded_copy(b->running_var) };
}

static void check_same(const bench *b, forward_result expected, const bnk_plan *plan)
{
    const struct {
        const char *name;
        elements got, expected;
    } pairs[] = {
        { "output", b->output, expected.output },
        { "saved_mean", b->saved_mean, expected.saved_mean },
        { "saved_invstd", b->saved_invstd, expected.saved_invstd },
        { "running_mean", b->running_mean, expected.running_mean },
        { "running_var", b->running_var, expected.running_var },
    };
    for (size_t i = 0; i < LENGTH(pairs); i++) {
        const int64_t at = elements_first_difference(pairs[i].got, pairs[i].expected);
        check(at < 0, "%s: %s[%lld] is %.17g, and %.17g by the plainest code",
              plan_text(&b->grid, plan), pairs[i].name, (long long)at,
              elements_get(pairs[i].got, at), elements_get(pairs[i].expected, at));
    }
}

static void check_right(const bench *b, const bnk_plan *plan)
{
    const char *where = plan_text(&b->grid, plan);
    const double error =
        ref_forward_error(b->shape, b->batch, b->input, b->weight, b->bias, b->output);
    check(error <= 1, "%s: output is off by %.3g of what is allowed", where, error);
    check(b->nonfinite_channels == 0, "%s: %lld nonfinite channels", where,
          (long long)b->nonfinite_channels);
    for (int64_t c = 0; c < b->grid.channels; c++) {
        const ref_statistics s = b->batch[c];
        const long double deviation = sqrtl(s.variance);
        const double mean = elements_get(b->saved_mean, c);
        const double invstd = elements_get(b->saved_invstd, c);
        const bool is_double = b->grid.is_double;
        check(ref_saved_mean_error(s, mean, is_double) <= 1,
              "%s: saved_mean[%lld] is %.17g, expected %.17Lg", where, (long long)c, mean,
              ref_mean(s));
        check(ref_saved_invstd_error(s, invstd, is_double) <= 1,
              "%s: saved_invstd[%lld] is %.17g, expected %.17Lg", where, (long long)c, invstd,
              s.invstd);

        const long double old_mean = elements_get(b->old_running_mean, c) * (1 - b->momentum);
        const long double old_var = elements_get(b->old_running_var, c) * (1 - b->momentum);
        const long double new_mean = ref_mean(s) * b->momentum;
        const long double new_var = s.variance * b->variance_scale * b->momentum;
        const double ulps = is_double ? 16 : 2;
        const long double mean_size = fabsl(old_mean) + fabsl(new_mean) + deviation * b->momentum;
        check(ref_ratio(elements_get(b->running_mean, c), old_mean + new_mean,
                        ulps * ref_ulp(mean_size, is_double) +
                            ref_running_mean_slack(s, b->momentum, is_double)) <= 1,
              "%s: running_mean[%lld] is %.9g, expected %.9Lg", where, (long long)c,
              elements_get(b->running_mean, c), old_mean + new_mean);
        check(ref_ratio(elements_get(b->running_var, c), old_var + new_var,
                        ulps * ref_ulp(old_var + new_var, is_double) +
                            ref_running_var_slack(s, b->momentum * b->variance_scale, is_double)) <=
                  1,
              "%s: running_var[%lld] is %.9g, expected %.9Lg", where, (long long)c,
              elements_get(b->running_var, c), old_var + new_var);
    }
}

static void over_all_grids(bool is_double)
{
    const bnk_grid *grids;
    const int count = bench_grids(&grids);
    for (int g = 0; g < count; g++) {
        bnk_grid grid = grids[g];
        grid.is_double = is_double;
        bench b = bench_make(grid, g);
        bnk_plan cuts[MAX_CUTS], manners[MAX_MANNERS];
        const int cut_count = cuts_of(&grid, cuts);
        for (int i = 0; i < cut_count; i++) {
            bench_reset(&b);
            bench_forward(&b, &cuts[i]);
            check_right(&b, &cuts[i]);
            const forward_result expected = positions(&b);
            const int manner_count = manners_of(cuts[i], g % 8 == 0, manners);
            for (int m = 0; m < manner_count; m++) {
                bench_reset(&b);
                bench_forward(&b, &manners[m]);
                check_same(&b, expected, &manners[m]);
                bench_reset(&b);
                bench_forward_in_place(&b, &manners[m]);
                check_same(&b, expected, &manners[m]);
            }
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

/* Every optional array left out, alone and together, changes only what it stands for. */
static void optional_arrays(void **state)
{
    (void)state;
    for (int is_double = 0; is_double < 2; is_double++)
        for (int absent = 0; absent < 16; absent++) {
            bench b = bench_make((bnk_grid){ 17, 5, 19, is_double, 0 }, absent);
            bnk_plan cuts[MAX_CUTS];
            const int cut_count = cuts_of(&b.grid, cuts);
            for (int i = 0; i < cut_count; i++)
                for (int whole_runs = 0; whole_runs < 2; whole_runs++) {
                    bnk_plan plan = cuts[i];
                    plan.whole_runs = whole_runs;
                    bench some = b;
                    if (absent & 1) some.weight.data = NULL;
                    if (absent & 2) some.bias.data = NULL;
                    if (absent & 4) some.running_mean.data = some.running_var.data = NULL;
                    if (absent & 8) some.saved_mean.data = some.saved_invstd.data = NULL;
                    bench_reset(&b);
                    bench_forward(&some, &plan);
                    const double error = ref_forward_error(b.shape, b.batch, b.input, some.weight,
                                                           some.bias, b.output);
                    check(error <= 1, "%s, absent %x: off by %.3g of what is allowed",
                          plan_text(&b.grid, &plan), (unsigned)absent, error);
                }
            bench_free(&b);
        }
}

/* variance_scale 0: the running variance stays as it is, to the bit, while the mean moves. */
static void variance_scale_zero_keeps_the_running_variance(void **state)
{
    (void)state;
    bench b = bench_make((bnk_grid){ 1, 33, 1, 0, 0 }, 0);
    b.variance_scale = 0;
    bnk_plan cuts[MAX_CUTS];
    const int cut_count = cuts_of(&b.grid, cuts);
    for (int i = 0; i < cut_count; i++) {
        bench_reset(&b);
        bench_forward(&b, &cuts[i]);
        check(elements_first_difference(b.running_var, b.old_running_var) < 0, "%s",
              plan_text(&b.grid, &cuts[i]));
        check(elements_first_difference(b.running_mean, b.old_running_mean) >= 0, "%s",
              plan_text(&b.grid, &cuts[i]));
        check(elements_first_difference(b.output, b.bias) < 0, "%s: one value gives the bias",
              plan_text(&b.grid, &cuts[i]));
    }
    bench_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(float_is_right_and_reproducible, bench_teardown),
        cmocka_unit_test_teardown(double_is_right_and_reproducible, bench_teardown),
        cmocka_unit_test_teardown(optional_arrays, bench_teardown),
        cmocka_unit_test_teardown(variance_scale_zero_keeps_the_running_variance, bench_teardown),
    };
    if (!(bnk_supported_isas() >> BNK_ISA_AVX512 & 1))
        print_message("skipped on this machine: avx512 (best is %d)\n", best_isa());
    return cmocka_run_group_tests_name("kernels: training forward", tests, NULL, NULL);
}
