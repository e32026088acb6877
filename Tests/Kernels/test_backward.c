/*
 * Backward, with batch statistics and with frozen ones: right by the reference, the same bits however it
 * was done, whichever gradients were asked for, and in place.
 */
#include "check.h"

#include "bench.h"

typedef struct backward_case {
    bool frozen;
    bool from_running; /* statistics from the running arrays, not from mean and invstd */
} backward_case;

static void save_statistics(bench *b, const ref_statistics *statistics)
{
    for (int64_t c = 0; c < b->grid.channels; c++) {
        elements_set(b->saved_mean, c, (double)ref_mean(statistics[c]));
        elements_set(b->saved_invstd, c, (double)statistics[c].invstd);
    }
}

static void check_right(const bench *b, backward_case how, const bnk_plan *plan)
{
    const int64_t channels = b->grid.channels;
    ref_statistics statistics[2 * BNK_MAX_COLUMNS];
    for (int64_t c = 0; c < channels; c++)
        statistics[c] = how.from_running ? b->running[c]
                                         : ref_of_saved(elements_get(b->saved_mean, c), 0,
                                                        elements_get(b->saved_invstd, c));
    const ref_gradient_errors error =
        ref_backward_error(b->shape, statistics, how.frozen, b->input, b->grad_output, b->weight,
                           (ref_gradients){ b->grad_input, b->grad_weight, b->grad_bias });
    check(error.input <= 1 && error.weight <= 1 && error.bias <= 1,
          "%s, %s: of what is allowed grad_input is off by %.3g, grad_weight %.3g, grad_bias %.3g",
          plan_text(&b->grid, plan), how.frozen ? "frozen" : "batch", error.input, error.weight,
          error.bias);
}

static void check_same(const bench *b, const char *name, elements got, elements expected,
                       const bnk_plan *plan)
{
    const int64_t at = elements_first_difference(got, expected);
    check(at < 0, "%s: %s[%lld] is %.17g, expected %.17g", plan_text(&b->grid, plan), name,
          (long long)at, elements_get(got, at), elements_get(expected, at));
}

static void reset(bench *b, backward_case how)
{
    bench_reset(b);
    if (!how.from_running) save_statistics(b, b->batch);
}

/* Every grid, or every fourth: the classes are counted in fives, so that still meets each of them in each
 * place. */
static void over_grids(int step, bool is_double, backward_case how)
{
    const bnk_grid *grids;
    const int count = bench_grids(&grids);
    for (int g = 0; g < count; g += step) {
        bnk_grid grid = grids[g];
        grid.is_double = is_double;
        bench b = bench_make(grid, g);
        bnk_plan cuts[MAX_CUTS], manners[MAX_MANNERS];
        const int cut_count = cuts_of(&grid, cuts);
        for (int i = 0; i < cut_count; i++) {
            reset(&b, how);
            bench_backward(&b, &cuts[i], how.frozen, how.from_running, GRAD_ALL, OF_ITS_OWN);
            check_right(&b, how, &cuts[i]);
            const elements dx = guarded_copy(b.grad_input), dgamma = guarded_copy(b.grad_weight),
                           dbeta = guarded_copy(b.grad_bias);
            const int manner_count = manners_of(cuts[i], g % 8 == 0, manners);
            for (int m = 0; m < manner_count; m++) {
                /* All gradients, in place or not in turn; then some of them, the choice going round. */
                const int some = 1 + m % 6;
                reset(&b, how);
                bench_backward(&b, &manners[m], how.frozen, how.from_running, GRAD_ALL,
                               (where_to)(m % 3));
                check_same(&b, "grad_input", b.grad_input, dx, &manners[m]);
                check_same(&b, "grad_weight", b.grad_weight, dgamma, &manners[m]);
                check_same(&b, "grad_bias", b.grad_bias, dbeta, &manners[m]);

                reset(&b, how);
                const elements junk = guarded_copy(b.grad_weight);
                bench_backward(&b, &manners[m], how.frozen, how.from_running, some, OF_ITS_OWN);
                if (some & GRAD_INPUT) check_same(&b, "grad_input", b.grad_input, dx, &manners[m]);
                check_same(&b, "grad_weight", b.grad_weight, some & GRAD_WEIGHT ? dgamma : junk,
                           &manners[m]);
                check_same(&b, "grad_bias", b.grad_bias, some & GRAD_BIAS ? dbeta : junk,
                           &manners[m]);
                guarded_free(junk.data);
            }
            check(guarded_intact(), "%s: something was written beside a buffer",
                  plan_text(&grid, &cuts[i]));
        }
        bench_free(&b);
    }
}

static void float_with_batch_statistics(void **state)
{
    (void)state;
    over_grids(1, false, (backward_case){ .frozen = false, .from_running = false });
}

static void double_with_batch_statistics(void **state)
{
    (void)state;
    over_grids(4, true, (backward_case){ .frozen = false, .from_running = false });
}

static void float_frozen(void **state)
{
    (void)state;
    over_grids(4, false, (backward_case){ .frozen = true, .from_running = true });
}

static void double_frozen(void **state)
{
    (void)state;
    over_grids(4, true, (backward_case){ .frozen = true, .from_running = true });
}

/* A layer's backward after evaluation: frozen, with mean and invstd remembered. */
static void float_frozen_from_saved(void **state)
{
    (void)state;
    over_grids(4, false, (backward_case){ .frozen = true, .from_running = false });
}

static void absent_weight_means_one(void **state)
{
    (void)state;
    for (int variant = 0; variant < 4; variant++) {
        const backward_case how = { .frozen = variant & 1, .from_running = false };
        bench b = bench_make((bnk_grid){ 17, 5, 19, variant >> 1, 0 }, variant);
        bnk_plan cuts[MAX_CUTS];
        const int cut_count = cuts_of(&b.grid, cuts);
        for (int i = 0; i < cut_count; i++) {
            bench without = b;
            without.weight.data = NULL;
            reset(&b, how);
            bench_backward(&without, &cuts[i], how.frozen, false, GRAD_ALL, OF_ITS_OWN);
            check_right(&without, how, &cuts[i]);
        }
        bench_free(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(float_with_batch_statistics, bench_teardown),
        cmocka_unit_test_teardown(double_with_batch_statistics, bench_teardown),
        cmocka_unit_test_teardown(float_frozen, bench_teardown),
        cmocka_unit_test_teardown(double_frozen, bench_teardown),
        cmocka_unit_test_teardown(float_frozen_from_saved, bench_teardown),
        cmocka_unit_test_teardown(absent_weight_means_one, bench_teardown),
    };
    return cmocka_run_group_tests_name("kernels: backward", tests, NULL, NULL);
}
