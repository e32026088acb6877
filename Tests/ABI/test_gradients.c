/*
 * The gradients against central differences of the forward itself, in float64: no formula is shared
 * with the library or the reference.
 */
#include "check.h"

#include <math.h>

#include "fixture.h"

/* loss = sum(grad_output * output), so that its gradient by the output is grad_output. */
static long double loss(fixture *f, bool frozen)
{
    if (frozen)
        run_inference(f);
    else
        run_training(f);
    long double sum = 0;
    for (int64_t i = 0; i < f->output.count; i++)
        sum += (long double)elements_get(f->grad_output, i) * elements_get(f->output, i);
    return sum;
}

/* Richardson's step on two central differences: the error falls with step^4. */
static double slope(fixture *f, bool frozen, elements array, int64_t at)
{
    const double value = elements_get(array, at);
    long double difference[2];
    for (int i = 0; i < 2; i++) {
        const double step = i == 0 ? 1e-3 : 5e-4;
        elements_set(array, at, value + step);
        const double up = elements_get(array, at);
        const long double above = loss(f, frozen);
        elements_set(array, at, value - step);
        const double down = elements_get(array, at);
        const long double below = loss(f, frozen);
        difference[i] = (above - below) / ((long double)up - down);
    }
    elements_set(array, at, value);
    return (double)((4 * difference[1] - difference[0]) / 3);
}

static void check_slopes(fixture *f, bool frozen, const char *name, elements array,
                         elements gradient)
{
    for (int64_t i = 0; i < array.count; i++) {
        const double expected = slope(f, frozen, array, i);
        const double got = elements_get(gradient, i);
        check(fabs(got - expected) <= 1e-8 * (1 + fabs(expected)),
              "%s%s: %s[%lld] is %.12g, by differences %.12g", problem_text(&f->problem),
              frozen ? ", frozen" : "", name, (long long)i, got, expected);
    }
}

static void gradients_are_slopes(bool frozen)
{
    static const int64_t sizes[4][5] = { { 6, 3 }, { 3, 2, 5 }, { 2, 3, 3, 2 }, { 2, 2, 2, 1, 3 } };
    for (int rank = 2; rank <= 5; rank++)
        for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++) {
            fixture f = fixture_make(problem_of(BN_DTYPE_FLOAT64, layout, rank, sizes[rank - 2]),
                                     PLACE_END);
            /* The running statistics must not move from one loss to the next. */
            f.training.running_mean.data = f.training.running_var.data = NULL;
            f.training.running_mean.count = f.training.running_var.count = 0;
            f.training.epsilon = f.inference.epsilon = f.backward.epsilon = 1e-3;
            run_training(&f);
            f.backward.statistics = frozen ? BN_STATISTICS_RUNNING : BN_STATISTICS_BATCH;
            run_backward(&f);
            check_slopes(&f, frozen, "grad_input", f.input, f.grad_input);
            check_slopes(&f, frozen, "grad_weight", f.weight, f.grad_weight);
            check_slopes(&f, frozen, "grad_bias", f.bias, f.grad_bias);
            guarded_free_all();
        }
}

static void of_training(void **state)
{
    (void)state;
    gradients_are_slopes(false);
}

static void of_frozen_statistics(void **state)
{
    (void)state;
    gradients_are_slopes(true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(of_training, fixture_teardown),
        cmocka_unit_test_teardown(of_frozen_statistics, fixture_teardown),
    };
    return cmocka_run_group_tests_name("abi: gradients by differences", tests, NULL, NULL);
}
