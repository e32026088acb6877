/*
 * Operations with an activation, a residual or masked positions, with every plan: the bits are those of the plain
 * operation with the rest done one by one, and the same in every manner of running a cut.
 */
#include "check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

/* A bench, and what its epilogue and masked positions read and write. */
typedef struct extended {
    bench b;
    bnk_epilogue epilogue;
    bnk_positions positions;
    elements residual, grad_residual;
    uint8_t *bits, *mask;
    int64_t bits_count;
    double slope;
} extended;

/* Every third grid has a residual, a leaky ReLU, or masked positions with NaN in them. */
static extended extended_make(bnk_grid grid, int turn)
{
    extended f = { .b = bench_make(grid, turn), .slope = turn % 3 == 1 ? 0.5 : 0 };
    const int64_t count = f.b.input.count, values = grid.rows * grid.inner;
    f.residual = guarded_elements(count, grid.is_double, (placement)(turn % 3));
    f.grad_residual = guarded_elements(count, grid.is_double, (placement)((turn + 1) % 3));
    f.bits_count = (count + 7) / 8;
    f.bits = guarded((size_t)f.bits_count, 1, (placement)((turn + 2) % 3));
    f.mask = guarded((size_t)values, 1, PLACE_END);
    elements_fill_normal(f.residual, 9, 0.5, 1);
    for (int64_t i = 0; i < values; i++)
        f.mask[i] = i / 40 % 2 == 0 ? i * 7 % 5 < 3 : i / 200 % 2 == 0;
    f.epilogue = (bnk_epilogue){ .activation = { BNK_ACTIVATION_LEAKY_RELU, f.slope },
                                 .written_activation_mask = f.bits,
                                 .activation_mask = f.bits };
    if (turn % 3 != 1) f.epilogue.residual = f.residual.data;
    f.epilogue.grad_residual = f.grad_residual.data;
    if (turn % 3 != 2) return f;
    f.positions = (bnk_positions){ f.mask, turn % 2 };
    for (int64_t c = 0; c < grid.channels; c++)
        for (int64_t i = 0; i < values; i++)
            if (!f.mask[i]) {
                elements_set(f.b.input, ref_index(f.b.shape, c, i), NAN);
                elements_set(f.b.grad_output, ref_index(f.b.shape, c, i), NAN);
            }
    return f;
}

/* Bits beyond the last value's are written as 0. */
static void extended_reset(extended *f)
{
    bench_reset(&f->b);
    elements_fill_junk(f->grad_residual);
    memset(f->bits, 0x5B, (size_t)f->bits_count);
}

typedef struct results {
    elements output, grad_input, grad_weight, grad_bias, grad_residual;
    uint8_t *bits;
} results;

/* Forward (also inference, where that is asked for) and backward. */
static void run(extended *f, const bnk_plan *plan, bool frozen)
{
    f->b.epilogue = f->epilogue;
    f->b.positions = f->positions;
    if (frozen)
        bench_inference(&f->b, plan);
    else
        bench_forward(&f->b, plan);
    bench_backward(&f->b, plan, frozen, frozen, GRAD_ALL, OF_ITS_OWN);
}

static results copy_results(const extended *f)
{
    results r = { guarded_copy(f->b.output),      guarded_copy(f->b.grad_input),
                  guarded_copy(f->b.grad_weight), guarded_copy(f->b.grad_bias),
                  guarded_copy(f->grad_residual), guarded((size_t)f->bits_count, 1, PLACE_START) };
    memcpy(r.bits, f->bits, (size_t)f->bits_count);
    return r;
}

static void free_results(results r)
{
    guarded_free(r.output.data);
    guarded_free(r.grad_input.data);
    guarded_free(r.grad_weight.data);
    guarded_free(r.grad_bias.data);
    guarded_free(r.grad_residual.data);
    guarded_free(r.bits);
}

/* The same from plain operations; of sums of double and float alike, rounded twice, the second time counts. */
static results compose(extended *f, const bnk_plan *plan, bool frozen)
{
    bench *b = &f->b;
    b->epilogue = (bnk_epilogue){ 0 };
    b->positions = (bnk_positions){ 0 };
    if (frozen)
        bench_inference(b, plan);
    else
        bench_forward(b, plan);
    const elements dy = guarded_copy(b->grad_output), kept_dy = b->grad_output;
    memset(f->bits, 0, (size_t)f->bits_count);
    for (int64_t i = 0; i < b->output.count; i++) {
        if (f->epilogue.residual)
            elements_set(b->output, i, elements_get(b->output, i) + elements_get(f->residual, i));
        const double v = elements_get(b->output, i);
        if (v <= 0) {
            elements_set(b->output, i, f->slope == 0 ? 0 : v * f->slope);
            elements_set(dy, i, f->slope == 0 ? 0 : elements_get(dy, i) * f->slope);
        } else {
            f->bits[i / 8] = (uint8_t)(f->bits[i / 8] | 1 << i % 8);
        }
    }
    b->grad_output = dy;
    bench_backward(b, plan, frozen, frozen, GRAD_ALL, OF_ITS_OWN);
    b->grad_output = kept_dy;
    elements_copy(f->grad_residual, dy);
    guarded_free(dy.data);
    return copy_results(f);
}

static void check_array(const extended *f, const bnk_plan *plan, const char *what, elements got,
                        elements expected)
{
    const int64_t at = elements_first_difference(got, expected);
    check(at < 0, "%s, slope %g%s%s: %s[%lld] is %.17g, expected %.17g",
          plan_text(&f->b.grid, plan), f->slope, f->epilogue.residual ? ", residual" : "",
          f->positions.mask ? ", masked" : "", what, (long long)at, elements_get(got, at),
          elements_get(expected, at));
}

static void check_results(const extended *f, const bnk_plan *plan, results expected)
{
    check_array(f, plan, "output", f->b.output, expected.output);
    check_array(f, plan, "grad_input", f->b.grad_input, expected.grad_input);
    check_array(f, plan, "grad_weight", f->b.grad_weight, expected.grad_weight);
    check_array(f, plan, "grad_bias", f->b.grad_bias, expected.grad_bias);
    check_array(f, plan, "grad_residual", f->grad_residual, expected.grad_residual);
    check(memcmp(f->bits, expected.bits, (size_t)f->bits_count) == 0, "%s: the bits differ",
          plan_text(&f->b.grid, plan));
    check(guarded_intact(), "%s: something was written beside a buffer",
          plan_text(&f->b.grid, plan));
}

static void over_all_grids(bool is_double, bool frozen)
{
    const bnk_grid *grids;
    const int count = bench_grids(&grids);
    for (int g = is_double; g < count; g += 2) {
        bnk_grid grid = grids[g];
        grid.is_double = is_double;
        extended f = extended_make(grid, g + frozen);
        /* Sums of nothing are another matter (Backward.swift). */
        if (f.positions.mask && bnk_count_taking_part(f.mask, grid.rows * grid.inner) == 0) {
            bench_free(&f.b);
            continue;
        }
        bnk_plan cuts[MAX_CUTS], manners[MAX_MANNERS];
        const int cut_count = cuts_of(&grid, cuts);
        for (int i = 0; i < cut_count; i++) {
            extended_reset(&f);
            results expected;
            if (f.positions.mask) {
                run(&f, &cuts[i], frozen);
                expected = copy_results(&f);
                for (int64_t at = 0; at < f.grad_residual.count; at++)
                    check(!isnan(elements_get(f.grad_residual, at)), "%s: NaN came through a mask",
                          plan_text(&grid, &cuts[i]));
            } else {
                expected = compose(&f, &cuts[i], frozen);
            }
            const int manner_count = manners_of(cuts[i], g % 8 == 0, manners);
            for (int m = 0; m < manner_count; m++) {
                extended_reset(&f);
                run(&f, &manners[m], frozen);
                check_results(&f, &manners[m], expected);
            }
            free_results(expected);
        }
        bench_free(&f.b);
    }
}

static void float_is_composed(void **state)
{
    (void)state;
    over_all_grids(false, false);
}

static void double_is_composed(void **state)
{
    (void)state;
    over_all_grids(true, false);
}

static void frozen_is_composed(void **state)
{
    (void)state;
    over_all_grids(false, true);
    over_all_grids(true, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(float_is_composed, bench_teardown),
        cmocka_unit_test_teardown(double_is_composed, bench_teardown),
        cmocka_unit_test_teardown(frozen_is_composed, bench_teardown),
    };
    return cmocka_run_group_tests_name("kernels: epilogue", tests, NULL, NULL);
}
