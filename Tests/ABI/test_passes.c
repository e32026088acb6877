/*
 * What a layer does beyond batch normalization: that it is what the stateless functions do, what it remembers
 * for backward, and the passes that update nothing.
 */
#include "check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "layers.h"

static const extras kinds[] = {
    { .activation = BN_ACTIVATION_NONE },
    { .activation = BN_ACTIVATION_RELU, .residual = true },
    { .activation = BN_ACTIVATION_LEAKY_RELU, .slope = 0.25, .mask = true },
    { .activation = BN_ACTIVATION_RELU,
      .residual = true,
      .lengths = true,
      .masked = BN_MASKED_PASS },
};

static const int64_t sequences[][3] = {
    { 6, 5, 41 }, { 40, 130, 6 }, { 3, 7, 3000 }, { 5, 600, 9 }
};

static fixture fixture_with_extras(bn_problem problem)
{
    fixture f = fixture_make(problem, PLACE_END);
    fixture_add_extras(&f);
    fixture_remember(&f);
    return f;
}

static bn_layer_forward_args forward_args(const fixture *f, extras e, bn_pass pass)
{
    bn_layer_forward_args args = BN_LAYER_FORWARD_ARGS_INIT;
    args.pass = pass;
    args.input.data = f->input.data, args.input.count = f->input.count;
    args.output.data = f->output.data, args.output.count = f->output.count;
    args.activation.kind = e.activation;
    args.activation.slope = e.slope;
    args.positions.masked = e.masked;
    if (e.residual) args.residual.data = f->residual.data, args.residual.count = f->residual.count;
    if (e.mask) args.positions.mask.data = f->mask, args.positions.mask.count = f->positions;
    if (e.lengths)
        args.positions.lengths.data = f->lengths,
        args.positions.lengths.count = f->original.sizes[0];
    return args;
}

static bn_layer_backward_args backward_args(const fixture *f, extras e)
{
    bn_layer_backward_args args = BN_LAYER_BACKWARD_ARGS_INIT;
    args.input.data = f->input.data, args.input.count = f->input.count;
    args.grad_output.data = f->grad_output.data, args.grad_output.count = f->grad_output.count;
    args.grad_input.data = f->grad_input.data, args.grad_input.count = f->grad_input.count;
    args.grad_weight.data = f->grad_weight.data, args.grad_weight.count = f->grad_weight.count;
    args.grad_bias.data = f->grad_bias.data, args.grad_bias.count = f->grad_bias.count;
    if (e.residual)
        args.grad_residual.data = f->grad_residual.data,
        args.grad_residual.count = f->grad_residual.count;
    return args;
}

static void forward(bn_layer *layer, const fixture *f, extras e, bn_pass pass)
{
    const bn_layer_forward_args args = forward_args(f, e, pass);
    check_ok(bn_layer_forward_with(layer, &f->problem, &args), extras_text(e));
    check(guarded_intact(), "%s wrote beside a buffer", extras_text(e));
}

static void backward(bn_layer *layer, const fixture *f, extras e)
{
    const bn_layer_backward_args args = backward_args(f, e);
    check_ok(bn_layer_backward_with(layer, &f->problem, &args), extras_text(e));
    check(guarded_intact(), "%s wrote beside a buffer", extras_text(e));
}

static void junk_gradients(const fixture *f)
{
    elements_fill_junk(f->grad_input);
    elements_fill_junk(f->grad_weight);
    elements_fill_junk(f->grad_bias);
    elements_fill_junk(f->grad_residual);
}

/* Fails unless the gradients are those of the stateless backward just run. */
static void check_gradients(const fixture *f, extras e, const elements expected[4])
{
    check_bits(f, "grad_input", f->grad_input, expected[0]);
    check_bits(f, "grad_weight", f->grad_weight, expected[1]);
    check_bits(f, "grad_bias", f->grad_bias, expected[2]);
    if (e.residual) check_bits(f, "grad_residual", f->grad_residual, expected[3]);
}

/* ---- what the stateless functions do ---- */

static void step_is_stateless(fixture *f, extras e, bool is_training)
{
    const bn_layer_options options = options_for(f);
    fixture_recall(f);
    fixture_use(f, e);
    bn_layer *layer = layer_with_values(f, &options);
    check_ok(bn_layer_set_training(layer, is_training), "set_training");
    f->backward.statistics = is_training ? BN_STATISTICS_BATCH : BN_STATISTICS_RUNNING;
    is_training ? run_training(f) : run_inference(f);
    run_backward(f);
    const elements output = guarded_copy(f->output);
    const elements gradients[] = { guarded_copy(f->grad_input), guarded_copy(f->grad_weight),
                                   guarded_copy(f->grad_bias), guarded_copy(f->grad_residual) };

    elements_fill_junk(f->output);
    forward(layer, f, e, BN_PASS_NORMAL);
    check_bits(f, "output", f->output, output);
    /* The layer has what it needs: mask and lengths may change or go. */
    memset(f->mask, 0, (size_t)f->positions);
    for (int64_t n = 0; n < f->original.sizes[0]; n++) f->lengths[n] = 0;
    for (int again = 0; again < 2; again++) {
        junk_gradients(f);
        backward(layer, f, e);
        check_gradients(f, e, gradients);
    }
    if (is_training) {
        elements mean = guarded_copy(f->running_mean), var = guarded_copy(f->running_var);
        check_ok(bn_layer_get_running_mean(layer, mean.data, mean.count), "get_running_mean");
        check_ok(bn_layer_get_running_var(layer, var.data, var.count), "get_running_var");
        check_bits(f, "running_mean", mean, f->running_mean);
        check_bits(f, "running_var", var, f->running_var);
    }
    bn_layer_destroy(layer);
}

static void a_layer_does_what_the_functions_do(void **state)
{
    (void)state;
    for (int dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT64; dtype++)
        for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++)
            for (size_t s = 0; s < LENGTH(sequences); s++) {
                fixture f = fixture_with_extras(problem_of(dtype, layout, 3, sequences[s]));
                for (size_t k = 0; k < LENGTH(kinds); k++) {
                    step_is_stateless(&f, kinds[k], true);
                    step_is_stateless(&f, kinds[k], false);
                }
                guarded_free_all();
            }
}

/* The plain functions are those with arguments, without extras; what one forward had, the next has not. */
static void plain_calls_forget_extras(void **state)
{
    (void)state;
    fixture f = fixture_with_extras(problem_of(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 3, sequences[0]));
    const bn_layer_options options = options_for(&f);
    bn_layer *fresh = layer_with_values(&f, &options), *used = layer_with_values(&f, &options);
    forward(used, &f, kinds[2], BN_PASS_KEEP_RUNNING);
    check_ok(layer_forward(fresh, &f), "forward");
    check_ok(layer_backward(fresh, &f), "backward");
    const elements output = guarded_copy(f.output);
    const elements gradients[] = { guarded_copy(f.grad_input), guarded_copy(f.grad_weight),
                                   guarded_copy(f.grad_bias), f.grad_residual };
    elements_fill_junk(f.output);
    junk_gradients(&f);
    check_ok(layer_forward(used, &f), "forward");
    check_ok(layer_backward(used, &f), "backward");
    check_bits(&f, "output", f.output, output);
    check_gradients(&f, kinds[0], gradients);
    /* Backward with arguments of a plain forward: the residual's gradient is grad_output. */
    junk_gradients(&f);
    backward(used, &f, kinds[1]);
    check_gradients(&f, kinds[0], gradients);
    check_bits(&f, "grad_residual", f.grad_residual, f.grad_output);
    bn_layer_destroy(fresh);
    bn_layer_destroy(used);
}

/* ---- passes ---- */

/* What says the same in other words is the same: lengths and a mask, bytes that are not 0, a slope of 0. */
static void recomputed_in_other_words(void **state)
{
    (void)state;
    fixture f = fixture_with_extras(problem_of(BN_DTYPE_FLOAT32, BN_LAYOUT_NHWC, 3, sequences[0]));
    const bn_layer_options options = options_for(&f);
    bn_layer *layer = layer_with_values(&f, &options);
    for (int64_t i = 0; i < f.positions; i++)
        f.mask[i] = i % 41 < f.lengths[i / 41] ? (uint8_t)(1 + i % 255) : 0;
    extras e = { .activation = BN_ACTIVATION_RELU, .lengths = true };
    forward(layer, &f, e, BN_PASS_NORMAL);
    const elements output = guarded_copy(f.output);
    e = (extras){ .activation = BN_ACTIVATION_LEAKY_RELU, .slope = 0, .mask = true };
    for (int again = 0; again < 2; again++) {
        elements_fill_junk(f.output);
        forward(layer, &f, e, BN_PASS_RECOMPUTE);
        check_bits(&f, "recomputed", f.output, output);
        e = (extras){ .activation = BN_ACTIVATION_RELU, .lengths = true };
    }
    bn_layer_destroy(layer);
}

/* Everything that the layer's state holds is as it was. */
static void check_state(const bn_layer *layer, state_bytes before, const char *what)
{
    const state_bytes after = state_of(layer);
    check(after.size == before.size && memcmp(after.bytes, before.bytes, (size_t)after.size) == 0,
          "%s changed the layer's state", what);
    free(after.bytes);
}

static void kept_statistics(fixture *f, extras e)
{
    const bn_layer_options options = options_for(f);
    bn_layer *layer = layer_with_values(f, &options), *keeping = layer_with_values(f, &options);
    const state_bytes before = state_of(keeping);
    forward(layer, f, e, BN_PASS_NORMAL);
    backward(layer, f, e);
    const elements output = guarded_copy(f->output);
    const elements gradients[] = { guarded_copy(f->grad_input), guarded_copy(f->grad_weight),
                                   guarded_copy(f->grad_bias), guarded_copy(f->grad_residual) };
    elements_fill_junk(f->output);
    junk_gradients(f);
    forward(keeping, f, e, BN_PASS_KEEP_RUNNING);
    backward(keeping, f, e);
    check_bits(f, "output", f->output, output);
    check_gradients(f, e, gradients);
    check_state(keeping, before, "BN_PASS_KEEP_RUNNING");
    free(before.bytes);
    bn_layer_destroy(layer);
    bn_layer_destroy(keeping);
}

static void running_statistics_may_be_kept(void **state)
{
    (void)state;
    for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++)
        for (size_t k = 0; k < LENGTH(kinds); k++) {
            fixture f = fixture_with_extras(problem_of(BN_DTYPE_FLOAT32, layout, 3, sequences[k]));
            kept_statistics(&f, kinds[k]);
            guarded_free_all();
        }
}

/* In evaluation nothing is updated anyway, and one value per channel is normalized as the policy says. */
static void keeping_in_other_cases(void **state)
{
    (void)state;
    const int64_t one[] = { 1, 7 };
    fixture f = fixture_with_extras(problem_of(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 2, one));
    bn_layer_options options = options_for(&f);
    options.one_value = BN_ONE_VALUE_USE_RUNNING;
    options.averaging = BN_AVERAGING_CUMULATIVE;
    bn_layer *layer = layer_with_values(&f, &options);
    check_ok(bn_layer_set_num_batches_tracked(layer, INT64_MAX), "set_num_batches_tracked");
    const state_bytes before = state_of(layer);
    run_inference(&f);
    const elements expected = guarded_copy(f.output);
    forward(layer, &f, kinds[0], BN_PASS_KEEP_RUNNING);
    check_bits(&f, "by the running statistics", f.output, expected);
    elements_fill_junk(f.output);
    forward(layer, &f, kinds[0], BN_PASS_RECOMPUTE);
    check_bits(&f, "recomputed", f.output, expected);
    check_state(layer, before, "one value per channel");
    check_ok(bn_layer_set_training(layer, 0), "set_training");
    elements_fill_junk(f.output);
    const state_bytes evaluating = state_of(layer);
    forward(layer, &f, kinds[0], BN_PASS_KEEP_RUNNING);
    check_bits(&f, "evaluation", f.output, expected);
    check_state(layer, evaluating, "evaluation");
    free(before.bytes);
    free(evaluating.bytes);
    bn_layer_destroy(layer);
}

/* The last forward once more: to the bit, whatever has happened to mode and running statistics. */
static void recomputes(fixture *f, extras e, bool is_training)
{
    const bn_layer_options options = options_for(f);
    bn_layer *layer = layer_with_values(f, &options);
    check_ok(bn_layer_set_training(layer, is_training), "set_training");
    elements_fill_junk(f->output);
    forward(layer, f, e, BN_PASS_NORMAL);
    backward(layer, f, e);
    const elements output = guarded_copy(f->output);
    const elements gradients[] = { guarded_copy(f->grad_input), guarded_copy(f->grad_weight),
                                   guarded_copy(f->grad_bias), guarded_copy(f->grad_residual) };
    check_ok(bn_layer_reset_running_stats(layer), "reset_running_stats");
    check_ok(bn_layer_set_training(layer, !is_training), "set_training");
    const state_bytes before = state_of(layer);
    for (int again = 0; again < 2; again++) {
        elements_fill_junk(f->output);
        junk_gradients(f);
        forward(layer, f, e, BN_PASS_RECOMPUTE);
        check_bits(f, is_training ? "batch, recomputed" : "running, recomputed", f->output, output);
        backward(layer, f, e);
        check_gradients(f, e, gradients);
    }
    check_state(layer, before, "BN_PASS_RECOMPUTE");
    bn_statistics used = -1;
    check_ok(bn_layer_get_statistics_used(layer, &used), "get_statistics_used");
    check(used == (is_training ? BN_STATISTICS_BATCH : BN_STATISTICS_RUNNING), "used %d", used);
    free(before.bytes);
    bn_layer_destroy(layer);
}

/* Means that one float64 cannot hold show whether what it lacks has been kept. */
static void the_last_forward_once_more(void **state)
{
    (void)state;
    static const double means[][2] = { { 0.5, 2 }, { 1e4, 1e-2 }, { -3e7, 1 }, { 1e15, 1 } };
    size_t turn = 0;
    for (int dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT64; dtype++)
        for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++)
            for (size_t m = 0; m < LENGTH(means); m++) {
                fixture f = fixture_with_extras(
                    problem_of(dtype, layout, 3, sequences[turn % LENGTH(sequences)]));
                elements_fill_normal(f.input, 70 + m, means[m][0], means[m][1]);
                bn_set_num_threads(1 + (int32_t)(turn % 4));
                for (size_t k = 0; k < LENGTH(kinds); k++) {
                    recomputes(&f, kinds[k], true);
                    recomputes(&f, kinds[k], false);
                }
                guarded_free_all();
                turn++;
            }
}

static void nan_and_all_masked_recomputed(void **state)
{
    (void)state;
    fixture f = fixture_with_extras(problem_of(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 3, sequences[0]));
    elements_set(f.input, ref_index(f.grid, 2, 7), NAN);
    elements_set(f.input, ref_index(f.grid, 3, 7), INFINITY);
    for (size_t k = 0; k < LENGTH(kinds); k++) recomputes(&f, kinds[k], true);

    const bn_layer_options options = options_for(&f);
    bn_layer *layer = layer_with_values(&f, &options);
    const state_bytes before = state_of(layer);
    memset(f.mask, 0, (size_t)f.positions);
    elements_fill_junk(f.output);
    forward(layer, &f, kinds[2], BN_PASS_NORMAL);
    backward(layer, &f, kinds[2]);
    for (int64_t i = 0; i < f.output.count; i++)
        check(elements_get(f.output, i) == 0 && elements_get(f.grad_input, i) == 0,
              "all masked: output[%lld] is %g, grad_input %g", (long long)i,
              elements_get(f.output, i), elements_get(f.grad_input, i));
    elements_fill_junk(f.output);
    forward(layer, &f, kinds[2], BN_PASS_RECOMPUTE);
    check(elements_get(f.output, 0) == 0, "all masked, recomputed: %g", elements_get(f.output, 0));
    check_state(layer, before, "all masked");
    free(before.bytes);
    bn_layer_destroy(layer);
}

static void empty_batches(void **state)
{
    (void)state;
    const int64_t sizes[] = { 0, 4, 9 };
    fixture f = fixture_with_extras(problem_of(BN_DTYPE_FLOAT32, BN_LAYOUT_NHWC, 3, sizes));
    const bn_layer_options options = options_for(&f);
    bn_layer *layer = layer_with_values(&f, &options);
    const state_bytes before = state_of(layer);
    for (size_t k = 0; k < LENGTH(kinds); k++)
        for (bn_pass pass = BN_PASS_NORMAL; pass <= BN_PASS_RECOMPUTE; pass++) {
            junk_gradients(&f);
            forward(layer, &f, kinds[k], pass);
            backward(layer, &f, kinds[k]);
            for (int64_t c = 0; c < 4; c++)
                check(elements_get(f.grad_weight, c) == 0 && elements_get(f.grad_bias, c) == 0,
                      "gradients of nothing are %g and %g", elements_get(f.grad_weight, c),
                      elements_get(f.grad_bias, c));
        }
    check_state(layer, before, "an empty batch");
    free(before.bytes);
    bn_layer_destroy(layer);
}

/* ---- refusals ---- */

/* A forward that is refused leaves everything as it was, also what the last one left for backward. */
static void bad_forwards_are_refused(void **state)
{
    (void)state;
    const extras e = kinds[2];
    fixture f = fixture_with_extras(problem_of(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 3, sequences[0]));
    bn_layer_options options = options_for(&f);
    bn_layer *layer = layer_with_values(&f, &options);
    bn_layer_forward_args args = forward_args(&f, e, BN_PASS_RECOMPUTE);
    check_refused(bn_layer_forward_with(layer, &f.problem, &args), BN_STATUS_NO_FORWARD, "forward");
    bn_layer_backward_args back = backward_args(&f, e);
    check_refused(bn_layer_backward_with(layer, &f.problem, &back), BN_STATUS_NO_FORWARD,
                  "forward");
    check_refused(bn_layer_forward_with(NULL, &f.problem, &args), BN_STATUS_NULL_POINTER, "layer");
    check_refused(bn_layer_forward_with(layer, NULL, &args), BN_STATUS_NULL_POINTER, "problem");
    check_refused(bn_layer_forward_with(layer, &f.problem, NULL), BN_STATUS_NULL_POINTER, "args");
    check_refused(bn_layer_backward_with(NULL, &f.problem, &back), BN_STATUS_NULL_POINTER, "layer");
    check_refused(bn_layer_backward_with(layer, NULL, &back), BN_STATUS_NULL_POINTER, "problem");
    check_refused(bn_layer_backward_with(layer, &f.problem, NULL), BN_STATUS_NULL_POINTER, "args");

    forward(layer, &f, e, BN_PASS_NORMAL);
    backward(layer, &f, e);
    const elements gradients[] = { guarded_copy(f.grad_input), guarded_copy(f.grad_weight),
                                   guarded_copy(f.grad_bias), f.grad_residual };
    const state_bytes before = state_of(layer);
    fixture_remember(&f);
    bn_problem problem = f.problem;
    uint8_t all[246];
    memset(all, 1, sizeof all);
#define REFUSED(change, status, words)                                                    \
    do {                                                                                  \
        args = forward_args(&f, e, BN_PASS_NORMAL);                                       \
        change;                                                                           \
        check_refused(bn_layer_forward_with(layer, &problem, &args), status, words);      \
        check(fixture_changed(&f) == NULL, "%s: changed %s", words, fixture_changed(&f)); \
        problem = f.problem;                                                              \
    } while (0)
    REFUSED(args.struct_size--, BN_STATUS_STRUCT_SIZE, "args->struct_size");
    REFUSED(args.pass = 3, BN_STATUS_INVALID_OPTION, "pass is 3|recompute");
    REFUSED(args.activation.kind = 9, BN_STATUS_INVALID_OPTION, "activation is 9");
    REFUSED(args.positions.masked = -1, BN_STATUS_INVALID_OPTION, "masked is -1");
    REFUSED(args.activation.slope = -1, BN_STATUS_NEGATIVE_SLOPE, "-1");
    REFUSED(args.input.count++, BN_STATUS_COUNT_MISMATCH, "input.count");
    REFUSED(args.output.data = NULL, BN_STATUS_NULL_POINTER, "output");
    REFUSED(args.residual.data = f.residual.data, BN_STATUS_COUNT_MISMATCH, "residual.count");
    REFUSED(args.positions.mask.count--, BN_STATUS_COUNT_MISMATCH, "mask.count");
    REFUSED((args.positions.lengths.data = f.lengths, args.positions.lengths.count = 6),
            BN_STATUS_EXCLUSIVE, "mask|lengths");
    REFUSED((args.pass = BN_PASS_RECOMPUTE, problem.layout = BN_LAYOUT_NHWC),
            BN_STATUS_LAYER_MISMATCH, "NHWC|NCHW");
    REFUSED((args.pass = BN_PASS_RECOMPUTE, problem.sizes[0] = 5), BN_STATUS_LAYER_MISMATCH,
            "(5, 5, 41)|(6, 5, 41)");
    REFUSED((args.pass = BN_PASS_RECOMPUTE, args.positions.mask.count = 3),
            BN_STATUS_COUNT_MISMATCH, "mask.count");
#define OTHER(change, words) \
    REFUSED((args.pass = BN_PASS_RECOMPUTE, change), BN_STATUS_LAYER_MISMATCH, words)
    OTHER(args.activation = (bn_activation)BN_ACTIVATION_INIT, "by 1|last forward, 0.25");
    OTHER(args.activation = (bn_activation)BN_RELU, "by 0|last forward, 0.25");
    OTHER(args.activation.slope = 0.5, "by 0.5|last forward, 0.25");
    OTHER((args.residual.data = f.residual.data, args.residual.count = f.residual.count),
          "residual.count is 1230|last forward, 0");
    OTHER((args.positions.mask.data = NULL, args.positions.mask.count = 0),
          "takes part|masked as in the last forward");
    OTHER(args.positions.mask.data = all, "position|takes part");
    OTHER(args.positions.masked = BN_MASKED_PASS, "masked is 1|last forward, 0");
#undef OTHER
    REFUSED(problem.sizes[1] = 4, BN_STATUS_LAYER_MISMATCH, "4|5");
    REFUSED(problem.dtype = BN_DTYPE_FLOAT64, BN_STATUS_LAYER_MISMATCH, "float64|float32");
    /* Nothing is allocated for a tensor that is not there. */
    REFUSED((problem.sizes[0] = 6000, args.input.count *= 1000, args.output.count *= 1000,
             args.positions.mask.count = 246000, args.output.data = (char *)f.input.data + 4),
            BN_STATUS_OVERLAP, "output|input");

    back.reserved = 1;
    check_refused(bn_layer_backward_with(layer, &f.problem, &back), BN_STATUS_INVALID_OPTION,
                  "reserved");
    back = backward_args(&f, e);
    back.struct_size = 8;
    check_refused(bn_layer_backward_with(layer, &f.problem, &back), BN_STATUS_STRUCT_SIZE, "8");
    back = backward_args(&f, kinds[1]);
    back.grad_residual.count--;
    check_refused(bn_layer_backward_with(layer, &f.problem, &back), BN_STATUS_COUNT_MISMATCH,
                  "grad_residual.count");
    check(fixture_changed(&f) == NULL, "changed %s", fixture_changed(&f));
    check_state(layer, before, "a refused call");
    junk_gradients(&f);
    backward(layer, &f, e);
    check_gradients(&f, e, gradients);
    free(before.bytes);
    bn_layer_destroy(layer);
}

/* One value per channel is refused after more memory has been taken: the last forward's is still there. */
static void a_refused_larger_forward_forgets_nothing(void **state)
{
    (void)state;
    const int64_t small[] = { 2, 300 }, large[] = { 1, 300, 1 };
    const int64_t wide[] = { 300, 300 };
    fixture f = fixture_with_extras(problem_of(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 2, small));
    fixture g = fixture_with_extras(problem_of(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 2, wide));
    fixture one = fixture_with_extras(problem_of(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 3, large));
    const bn_layer_options options = options_for(&f);
    bn_layer *layer = layer_with_values(&f, &options);
    const extras e = { .activation = BN_ACTIVATION_RELU, .mask = true };
    forward(layer, &f, e, BN_PASS_NORMAL);
    backward(layer, &f, e);
    const elements gradients[] = { guarded_copy(f.grad_input), guarded_copy(f.grad_weight),
                                   guarded_copy(f.grad_bias), f.grad_residual };
    /* All but one position masked: the shape is large, M is 1. */
    memset(g.mask, 0, (size_t)g.positions);
    g.mask[7] = 1;
    bn_layer_forward_args args = forward_args(&g, e, BN_PASS_NORMAL);
    check_refused(bn_layer_forward_with(layer, &g.problem, &args), BN_STATUS_ONE_VALUE, "");
    args = forward_args(&one, e, BN_PASS_NORMAL);
    check_refused(bn_layer_forward_with(layer, &one.problem, &args), BN_STATUS_ONE_VALUE, "");
    junk_gradients(&f);
    backward(layer, &f, e);
    check_gradients(&f, e, gradients);
    bn_layer_destroy(layer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_layer_does_what_the_functions_do, fixture_teardown),
        cmocka_unit_test_teardown(plain_calls_forget_extras, fixture_teardown),
        cmocka_unit_test_teardown(running_statistics_may_be_kept, fixture_teardown),
        cmocka_unit_test_teardown(keeping_in_other_cases, fixture_teardown),
        cmocka_unit_test_teardown(the_last_forward_once_more, fixture_teardown),
        cmocka_unit_test_teardown(nan_and_all_masked_recomputed, fixture_teardown),
        cmocka_unit_test_teardown(recomputed_in_other_words, fixture_teardown),
        cmocka_unit_test_teardown(empty_batches, fixture_teardown),
        cmocka_unit_test_teardown(bad_forwards_are_refused, fixture_teardown),
        cmocka_unit_test_teardown(a_refused_larger_forward_forgets_nothing, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
