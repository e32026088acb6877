/*
 * Activation and residual in the same sweep, by the strongest yardstick there is: the bits of the plain
 * operations, and the activation and addition done after them (backward: before them) one by one.
 */
#include "check.h"

#include <math.h>
#include <string.h>

#include "fixture.h"

/* Odd sizes, so that runs of values begin and end within the bytes of a mask. */
static const struct {
    int rank;
    int64_t sizes[5];
} shapes[] = {
    { 2, { 7, 5 } },        { 2, { 300, 33 } },      { 2, { 90, 2100 } },
    { 2, { 3, 1500 } },     { 3, { 7, 5, 301 } },    { 3, { 1, 3, 5000 } },
    { 4, { 7, 5, 11, 3 } }, { 4, { 16, 19, 7, 7 } }, { 5, { 3, 5, 4, 3, 2 } },
};

static const extras kinds[] = {
    { .activation = BN_ACTIVATION_RELU },
    { .activation = BN_ACTIVATION_LEAKY_RELU, .slope = 0.01 },
    { .activation = BN_ACTIVATION_LEAKY_RELU, .slope = 2, .residual = true },
    { .activation = BN_ACTIVATION_RELU, .residual = true },
    { .activation = BN_ACTIVATION_NONE, .residual = true },
    { .activation = BN_ACTIVATION_LEAKY_RELU, .slope = 0, .residual = true },
    { .activation = BN_ACTIVATION_LEAKY_RELU, .slope = 1, .residual = true },
};

/* What values that do not pass are multiplied with, in the tensor's type. */
static double slope_of(const fixture *f, extras e)
{
    if (e.activation != BN_ACTIVATION_LEAKY_RELU) return e.activation == BN_ACTIVATION_RELU ? 0 : 1;
    return f->input.is_double ? e.slope : (double)(float)e.slope;
}

/* Product and sum in the tensor's type: double holds those of two floats closely enough to be rounded once
 * more (Figueroa, 1995). */
static double by_slope(double slope, double value)
{
    return slope == 0 ? 0 : value * slope;
}

static bool bit_at(const uint8_t *bits, int64_t i)
{
    return bits[i / 8] >> i % 8 & 1;
}

/* Residual and activation, one after the other. */
static elements composed_forward(const fixture *f, extras e, elements plain)
{
    const double slope = slope_of(f, e);
    const elements y = guarded_copy(plain);
    for (int64_t i = 0; i < y.count; i++) {
        if (e.residual) elements_set(y, i, elements_get(y, i) + elements_get(f->residual, i));
        const double v = elements_get(y, i);
        if (v <= 0) elements_set(y, i, by_slope(slope, v));
    }
    return y;
}

/* grad_output behind the activation. */
static elements composed_gate(const fixture *f, extras e, elements output)
{
    const double slope = slope_of(f, e);
    const elements dy = guarded_copy(f->grad_output);
    for (int64_t i = 0; i < dy.count; i++)
        if (e.activation != BN_ACTIVATION_NONE && elements_get(output, i) <= 0)
            elements_set(dy, i, by_slope(slope, elements_get(dy, i)));
    return dy;
}

static void check_bits_of(const fixture *f, extras e, elements output)
{
    if (e.activation == BN_ACTIVATION_NONE) return;
    for (int64_t i = 0; i < f->bits_count * 8; i++) {
        const bool expected = i < output.count && !(elements_get(output, i) <= 0);
        check(bit_at(f->bits, i) == expected, "%s, %s: bit %lld is %d", problem_text(&f->problem),
              extras_text(e), (long long)i, !expected);
    }
}

/* Both forwards: the output and the activation's mask; what else they write is as without extras. */
static void forward_is_composed(fixture *f, extras e)
{
    fixture_recall(f);
    fixture_restore_args(f);
    run_inference(f);
    elements expected = composed_forward(f, e, f->output);
    fixture_use(f, e);
    elements_fill_junk(f->output);
    run_inference(f);
    check_bits(f, extras_text(e), f->output, expected);
    check_bits_of(f, e, expected);

    fixture_restore_args(f);
    run_training(f);
    expected = composed_forward(f, e, f->output);
    const elements mean = guarded_copy(f->running_mean), var = guarded_copy(f->running_var),
                   saved = guarded_copy(f->saved_invstd);
    fixture_recall(f);
    fixture_use(f, e);
    run_training(f);
    check_bits(f, extras_text(e), f->output, expected);
    check_bits(f, "running_mean", f->running_mean, mean);
    check_bits(f, "running_var", f->running_var, var);
    check_bits(f, "saved_invstd", f->saved_invstd, saved);
    check_bits_of(f, e, expected);
}

/* Backward of the training forward just made, by the mask and by the output. */
static void backward_is_composed(fixture *f, extras e, bn_statistics statistics)
{
    const elements gated = composed_gate(f, e, f->output);
    fixture_restore_args(f);
    f->backward.statistics = statistics;
    f->backward.grad_output.data = gated.data;
    run_backward(f);
    const elements input = guarded_copy(f->grad_input), weight = guarded_copy(f->grad_weight),
                   bias = guarded_copy(f->grad_bias);
    for (int by_output = 0; by_output < 2; by_output++) {
        fixture_use(f, e);
        f->backward.statistics = statistics;
        if (by_output) {
            f->backward.activation_mask.data = NULL;
            f->backward.activation_mask.count = 0;
            f->backward.output.data = f->output.data;
            f->backward.output.count = f->output.count;
        }
        elements_fill_junk(f->grad_input);
        elements_fill_junk(f->grad_weight);
        elements_fill_junk(f->grad_bias);
        elements_fill_junk(f->grad_residual);
        run_backward(f);
        check_bits(f, extras_text(e), f->grad_input, input);
        check_bits(f, "grad_weight", f->grad_weight, weight);
        check_bits(f, "grad_bias", f->grad_bias, bias);
        if (e.residual) check_bits(f, "grad_residual", f->grad_residual, gated);
    }
}

static void all_is_composed(fixture *f, extras e)
{
    forward_is_composed(f, e);
    backward_is_composed(f, e, BN_STATISTICS_BATCH);
    backward_is_composed(f, e, BN_STATISTICS_RUNNING);
}

static fixture fixture_with_extras(bn_problem problem, placement where)
{
    fixture f = fixture_make(problem, where);
    fixture_add_extras(&f);
    fixture_remember(&f);
    return f;
}

static void bits_are_those_of_plain_operations(void **state)
{
    (void)state;
    int turn = 0;
    for (int dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT64; dtype++)
        for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++)
            for (size_t s = 0; s < LENGTH(shapes); s++) {
                const bn_problem problem =
                    problem_of(dtype, layout, shapes[s].rank, shapes[s].sizes);
                fixture f = fixture_with_extras(problem, (placement)(turn++ % 3));
                for (size_t k = 0; k < LENGTH(kinds); k++) {
                    bn_set_max_isa(turn % 4 == 0 ? BN_ISA_GENERIC : BN_ISA_AVX512);
                    bn_set_num_threads(1 + turn % 4);
                    all_is_composed(&f, kinds[k]);
                    turn++;
                }
                guarded_free_all();
            }
}

/* Channels that are applied value by value, among others that are not. */
static void extreme_channels_are_composed(void **state)
{
    (void)state;
    int turn = 0;
    for (int dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT64; dtype++)
        for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++)
            for (size_t s = 0; s < LENGTH(shapes); s++, turn++) {
                fixture f = fixture_make(problem_of(dtype, layout, shapes[s].rank, shapes[s].sizes),
                                         (placement)(turn % 3));
                fixture_make_extreme(&f);
                fixture_add_extras(&f);
                fixture_remember(&f);
                bn_set_max_isa(turn % 4 == 0 ? BN_ISA_GENERIC : BN_ISA_AVX512);
                bn_set_num_threads(1 + turn % 4);
                for (size_t k = 0; k < LENGTH(kinds); k += 2) all_is_composed(&f, kinds[k]);
                guarded_free_all();
            }
}

/* Written past the caches where these are smaller than 15 MB; Tests/Kernels does that everywhere. */
static void large_tensors_are_composed(void **state)
{
    (void)state;
    const int64_t sizes[] = { 8, 16, 170, 170 };
    for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++) {
        fixture f = fixture_with_extras(problem_of(BN_DTYPE_FLOAT32, layout, 4, sizes), PLACE_END);
        bn_set_num_threads(layout == BN_LAYOUT_NCHW ? 3 : 2);
        forward_is_composed(&f, kinds[3]);
        backward_is_composed(&f, kinds[3], BN_STATISTICS_BATCH);
        guarded_free_all();
    }
}

/* ---- NaN and infinity ---- */

/* NaN passes an activation, and its gradient too; infinity of either sign is a number like others. */
static void nan_passes(void **state)
{
    (void)state;
    const int64_t sizes[] = { 5, 6, 37 };
    for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++)
        for (size_t k = 0; k < LENGTH(kinds); k++) {
            fixture f =
                fixture_with_extras(problem_of(BN_DTYPE_FLOAT32, layout, 3, sizes), PLACE_START);
            elements_set(f.input, ref_index(f.grid, 1, 3), NAN);
            elements_set(f.input, ref_index(f.grid, 4, 9), INFINITY);
            elements_set(f.residual, ref_index(f.grid, 2, 5), NAN);
            elements_set(f.residual, ref_index(f.grid, 2, 6), INFINITY);
            elements_set(f.residual, ref_index(f.grid, 3, 7), -INFINITY);
            elements_set(f.grad_output, ref_index(f.grid, 0, 2), NAN);
            elements_set(f.grad_output, ref_index(f.grid, 5, 4), -INFINITY);
            fixture_remember(&f);
            all_is_composed(&f, kinds[k]);
            guarded_free_all();
        }
}

/* The sign of 0 is no reason to pass: 0 and -0 are both written as 0, and stop the gradient. */
static void zeros_do_not_pass(void **state)
{
    (void)state;
    fixture f = fixture_with_extras(
        (bn_problem)BN_PROBLEM_2D(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 1, 2, 3, 3), PLACE_END);
    elements_fill_constant(f.weight, 0);
    elements_set(f.bias, 0, 0.0);
    elements_set(f.bias, 1, -0.0);
    fixture_use(&f, kinds[0]);
    run_inference(&f);
    for (int64_t i = 0; i < f.output.count; i++)
        check(elements_get(f.output, i) == 0 && !signbit(elements_get(f.output, i)),
              "output[%lld] is %g", (long long)i, elements_get(f.output, i));
    check(f.bits[0] == 0 && f.bits[1] == 0 && f.bits[2] == 0, "bits are %02x %02x %02x", f.bits[0],
          f.bits[1], f.bits[2]);
}

/* ---- in place ---- */

/* The output takes the place of `place`. */
static void forward_in_place(fixture *f, extras e, elements place, bool is_training)
{
    fixture_recall(f);
    fixture_use(f, e);
    is_training ? run_training(f) : run_inference(f);
    const elements expected = guarded_copy(f->output);
    uint8_t bits[32768];
    check(f->bits_count <= (int64_t)sizeof bits, "no room");
    memcpy(bits, f->bits, (size_t)f->bits_count);

    fixture_recall(f);
    f->training.output.data = f->inference.output.data = place.data;
    is_training ? run_training(f) : run_inference(f);
    check_bits(f, extras_text(e), place, expected);
    if (e.activation != BN_ACTIVATION_NONE)
        check(memcmp(bits, f->bits, (size_t)f->bits_count) == 0, "%s: activation_mask",
              extras_text(e));
}

static void backward_in_place(fixture *f, extras e, bn_statistics statistics)
{
    fixture_recall(f);
    fixture_use(f, e);
    run_training(f);
    fixture_remember(f);
    f->backward.statistics = statistics;
    run_backward(f);
    const elements input = guarded_copy(f->grad_input), bias = guarded_copy(f->grad_bias),
                   residual = guarded_copy(f->grad_residual), weight = guarded_copy(f->grad_weight);
    for (int way = 0; way < 4; way++) {
        elements to_input = f->grad_input, to_residual = f->grad_residual;
        if (way == 0) to_input = f->input;
        if (way == 1) to_input = f->grad_output;
        if (way == 2) to_residual = f->grad_output;
        if (way == 3) to_input = f->input, to_residual = f->grad_output;
        fixture_recall(f);
        f->backward.grad_input.data = to_input.data;
        if (e.residual) f->backward.grad_residual.data = to_residual.data;
        run_backward(f);
        check_bits(f, "grad_input in place", to_input, input);
        check_bits(f, "grad_weight", f->grad_weight, weight);
        check_bits(f, "grad_bias", f->grad_bias, bias);
        if (e.residual) check_bits(f, "grad_residual in place", to_residual, residual);
    }
}

static void in_place(void **state)
{
    (void)state;
    for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++)
        for (size_t s = 0; s < LENGTH(shapes); s++)
            for (size_t k = 0; k < LENGTH(kinds); k++) {
                fixture f = fixture_with_extras(
                    problem_of(BN_DTYPE_FLOAT32, layout, shapes[s].rank, shapes[s].sizes),
                    (placement)(s % 3));
                if (k % 2) fixture_make_extreme(&f);
                fixture_remember(&f);
                forward_in_place(&f, kinds[k], f.input, true);
                forward_in_place(&f, kinds[k], f.input, false);
                if (kinds[k].residual) {
                    forward_in_place(&f, kinds[k], f.residual, true);
                    forward_in_place(&f, kinds[k], f.residual, false);
                }
                backward_in_place(&f, kinds[k], BN_STATISTICS_BATCH);
                guarded_free_all();
            }
}

/* ---- what nobody asked for ---- */

/* Each gradient has the same bits whether the others are wanted or not. */
static void any_gradients(void **state)
{
    (void)state;
    const int64_t sizes[] = { 4, 9, 5, 5 };
    for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++) {
        fixture f =
            fixture_with_extras(problem_of(BN_DTYPE_FLOAT32, layout, 4, sizes), PLACE_SHIFTED);
        fixture_use(&f, kinds[3]);
        run_training(&f);
        run_backward(&f);
        const elements all[] = { guarded_copy(f.grad_input), guarded_copy(f.grad_weight),
                                 guarded_copy(f.grad_bias), guarded_copy(f.grad_residual) };
        const elements got[] = { f.grad_input, f.grad_weight, f.grad_bias, f.grad_residual };
        for (unsigned wanted = 0; wanted < 16; wanted++) {
            fixture_use(&f, kinds[3]);
#define SKIP(member) (f.backward.member = (bn_mutable_view)BN_ABSENT)
            if (!(wanted & 1)) SKIP(grad_input);
            if (!(wanted & 2)) SKIP(grad_weight);
            if (!(wanted & 4)) SKIP(grad_bias);
            if (!(wanted & 8)) SKIP(grad_residual);
#undef SKIP
            for (int i = 0; i < 4; i++) elements_fill_junk(got[i]);
            run_backward(&f);
            for (int i = 0; i < 4; i++) {
                const elements untouched = guarded_copy(got[i]);
                elements_fill_junk(untouched);
                check_bits(&f, "gradient", got[i], wanted >> i & 1 ? all[i] : untouched);
            }
        }
        guarded_free_all();
    }
}

/* An empty batch is nothing to activate; an activation needs no mask of the caller's in a forward. */
static void empty_batches_and_absent_masks(void **state)
{
    (void)state;
    fixture f = fixture_with_extras(
        (bn_problem)BN_PROBLEM_2D(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 0, 3, 4, 4), PLACE_START);
    fixture_use(&f, kinds[3]);
    run_training(&f);
    run_inference(&f);
    /* No bytes may be NULL, as those of every other buffer of an empty batch. */
    for (int absent = 0; absent < 2; absent++) {
        if (absent) f.backward.activation_mask.data = NULL;
        elements_fill_junk(f.grad_weight);
        elements_fill_junk(f.grad_bias);
        run_backward(&f);
        for (int64_t c = 0; c < 3; c++)
            check(elements_get(f.grad_weight, c) == 0 && elements_get(f.grad_bias, c) == 0,
                  "gradients of nothing are %g and %g", elements_get(f.grad_weight, c),
                  elements_get(f.grad_bias, c));
    }

    fixture g = fixture_with_extras(
        (bn_problem)BN_PROBLEM_2D(BN_DTYPE_FLOAT32, BN_LAYOUT_NHWC, 2, 3, 4, 4), PLACE_END);
    fixture_use(&g, kinds[3]);
    run_training(&g);
    const elements expected = guarded_copy(g.output);
    fixture_recall(&g);
    g.training.activation_mask.data = NULL;
    g.training.activation_mask.count = 0;
    run_training(&g);
    check_bits(&g, "without activation_mask", g.output, expected);
}

/* ---- refusals ---- */

typedef enum operation { TRAINING, INFERENCE, BACKWARD } operation;

static void refuses(fixture *f, operation op, bn_status expected, const char *words)
{
    fixture_remember(f);
    check_refused(op == TRAINING    ? bn_forward_training(&f->problem, &f->training)
                  : op == INFERENCE ? bn_forward_inference(&f->problem, &f->inference)
                                    : bn_backward(&f->problem, &f->backward),
                  expected, words);
    const char *changed = fixture_changed(f);
    check(changed == NULL, "%s (%s): changed %s", bn_status_name(expected), words, changed);
    fixture_use(f, kinds[2]);
}

static void bad_fusion_is_refused(void **state)
{
    (void)state;
    fixture f = fixture_with_extras(
        (bn_problem)BN_PROBLEM_2D(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 2, 3, 4, 5), PLACE_START);
    fixture_use(&f, kinds[2]);
#define IN_ALL(change, status, words)                              \
    do {                                                           \
        f.training change, refuses(&f, TRAINING, status, words);   \
        f.inference change, refuses(&f, INFERENCE, status, words); \
        f.backward change, refuses(&f, BACKWARD, status, words);   \
    } while (0)
#define IN_FORWARDS(change, status, words)                         \
    do {                                                           \
        f.training change, refuses(&f, TRAINING, status, words);   \
        f.inference change, refuses(&f, INFERENCE, status, words); \
    } while (0)
    IN_ALL(.activation.kind = 3, BN_STATUS_INVALID_OPTION, "activation is 3|leaky ReLU");
    IN_ALL(.activation.kind = -1, BN_STATUS_INVALID_OPTION, "activation is -1");
    IN_ALL(.activation.slope = -0.01, BN_STATUS_NEGATIVE_SLOPE, "activation.slope is -0.01");
    IN_ALL(.activation.slope = NAN, BN_STATUS_NEGATIVE_SLOPE, "activation.slope is nan");
    IN_ALL(.activation.slope = INFINITY, BN_STATUS_NEGATIVE_SLOPE, "activation.slope is inf");
    IN_ALL(.activation.slope = 1e39, BN_STATUS_NEGATIVE_SLOPE, "activation.slope is 1e+39|range");
    IN_ALL(.activation.limit = 6, BN_STATUS_INVALID_OPTION, "activation.limit is 6|expected 0");
    IN_ALL(.activation.reserved = 1, BN_STATUS_INVALID_OPTION, "reserved is 1");
    IN_ALL(.activation.kind = BN_ACTIVATION_RELU, BN_STATUS_INVALID_OPTION,
           "activation.slope is 2.0|expected 0");
    IN_ALL(.activation.kind = BN_ACTIVATION_NONE, BN_STATUS_INVALID_OPTION,
           "activation.slope is 2.0|expected 0");
    IN_ALL(.positions.reserved = -1, BN_STATUS_INVALID_OPTION, "reserved is -1");
    IN_ALL(.activation_mask.count = 14, BN_STATUS_COUNT_MISMATCH, "activation_mask.count|14|15");
    IN_ALL(.activation_mask.count = 16, BN_STATUS_COUNT_MISMATCH, "activation_mask.count|16|15");
    IN_ALL(.activation_mask.count = -1, BN_STATUS_NEGATIVE_SIZE, "activation_mask.count|-1");
    IN_FORWARDS(.residual.count = 119, BN_STATUS_COUNT_MISMATCH, "residual.count|119|120");
    IN_FORWARDS(.residual.data = NULL, BN_STATUS_NULL_POINTER, "residual");
    IN_FORWARDS(.residual.data = (char *)f.residual.data + 1, BN_STATUS_MISALIGNED, "residual");
    IN_FORWARDS(.residual.data = (char *)f.output.data + 4, BN_STATUS_OVERLAP, "output|residual");
    IN_FORWARDS(.activation_mask.data = f.output.data, BN_STATUS_OVERLAP, "output|activation_mask");
    IN_FORWARDS(.activation_mask.data = f.weight.data, BN_STATUS_OVERLAP, "activation_mask|weight");

    f.backward.grad_residual.count = 121;
    refuses(&f, BACKWARD, BN_STATUS_COUNT_MISMATCH, "grad_residual.count|121|120");
    f.backward.grad_residual.data = f.grad_input.data;
    refuses(&f, BACKWARD, BN_STATUS_OVERLAP, "grad_residual|grad_input");
    f.backward.grad_residual.data = f.input.data;
    refuses(&f, BACKWARD, BN_STATUS_OVERLAP, "grad_residual|input");
    f.backward.activation_mask.data = NULL, f.backward.activation_mask.count = 0;
    refuses(&f, BACKWARD, BN_STATUS_NULL_POINTER, "activation_mask");
    f.backward.output.data = f.output.data, f.backward.output.count = 7;
    refuses(&f, BACKWARD, BN_STATUS_COUNT_MISMATCH, "output.count|7|120");
    f.backward.output.data = f.grad_input.data, f.backward.output.count = 120;
    refuses(&f, BACKWARD, BN_STATUS_OVERLAP, "grad_input|output");
    f.training.reserved_end = 1;
    refuses(&f, TRAINING, BN_STATUS_INVALID_OPTION, "reserved|1");
}

/* A slope beyond float32's range is one in float64, where 0 times it is 0. */
static void large_slopes_in_float64(void **state)
{
    (void)state;
    fixture f = fixture_with_extras(
        (bn_problem)BN_PROBLEM_2D(BN_DTYPE_FLOAT64, BN_LAYOUT_NCHW, 2, 3, 4, 5), PLACE_START);
    const extras e = { .activation = BN_ACTIVATION_LEAKY_RELU, .slope = 1e39 };
    elements_set(f.weight, 1, 0);
    elements_set(f.bias, 1, 0);
    fixture_remember(&f);
    all_is_composed(&f, e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(bits_are_those_of_plain_operations, fixture_teardown),
        cmocka_unit_test_teardown(extreme_channels_are_composed, fixture_teardown),
        cmocka_unit_test_teardown(large_tensors_are_composed, fixture_teardown),
        cmocka_unit_test_teardown(nan_passes, fixture_teardown),
        cmocka_unit_test_teardown(zeros_do_not_pass, fixture_teardown),
        cmocka_unit_test_teardown(in_place, fixture_teardown),
        cmocka_unit_test_teardown(any_gradients, fixture_teardown),
        cmocka_unit_test_teardown(empty_batches_and_absent_masks, fixture_teardown),
        cmocka_unit_test_teardown(bad_fusion_is_refused, fixture_teardown),
        cmocka_unit_test_teardown(large_slopes_in_float64, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
