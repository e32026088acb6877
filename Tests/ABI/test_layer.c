/*
 * The layer on good input: what a new one holds, its modes, and that it adds nothing to the
 * stateless functions, whose bits it must reproduce.
 */
#include "check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "layers.h"

static fixture images(int dtype, int layout)
{
    const bn_problem problem = BN_PROBLEM_2D(dtype, layout, 4, 5, 6, 7);
    return fixture_make(problem, PLACE_END);
}

static void for_every_problem(void (*test)(fixture *f))
{
    for (int dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT64; dtype++)
        for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++) {
            fixture f = images(dtype, layout);
            test(&f);
            guarded_free_all();
        }
}

static void check_constant(elements array, double expected, const char *what)
{
    for (int64_t i = 0; i < array.count; i++)
        check(elements_get(array, i) == expected, "%s[%lld] is %g, expected %g", what, (long long)i,
              elements_get(array, i), expected);
}

/* ---- a new layer ---- */

static void new_layer(fixture *f)
{
    const bn_layer_options options = options_for(f);
    bn_layer *layer = layer_of(&options);
    const int64_t channels = options.num_features;
    int32_t training = -1;
    int64_t batches = -1;
    check_ok(bn_layer_get_training(layer, &training), "get_training");
    check(training == 1, "training is %d", training);
    check_ok(bn_layer_get_num_batches_tracked(layer, &batches), "get_num_batches_tracked");
    check(batches == 0, "the counter is %lld", (long long)batches);
    check_ok(bn_layer_get_weight(layer, f->weight.data, channels), "get_weight");
    check_constant(f->weight, 1, "weight");
    check_ok(bn_layer_get_bias(layer, f->bias.data, channels), "get_bias");
    check_constant(f->bias, 0, "bias");
    check_ok(bn_layer_get_running_mean(layer, f->running_mean.data, channels), "get_running_mean");
    check_constant(f->running_mean, 0, "running_mean");
    check_ok(bn_layer_get_running_var(layer, f->running_var.data, channels), "get_running_var");
    check_constant(f->running_var, 1, "running_var");

    bn_layer_options back = BN_LAYER_OPTIONS_INIT;
    check_ok(bn_layer_get_options(layer, &back), "get_options");
    check(memcmp(&back, &options, sizeof back) == 0, "the options came back changed");
    check(guarded_intact(), "a getter wrote beside its buffer");
    bn_layer_destroy(layer);
    bn_layer_destroy(NULL);
}

static void a_new_layer_is_pytorchs(void **state)
{
    (void)state;
    for_every_problem(new_layer);
}

static void options_come_back(void **state)
{
    (void)state;
    bn_layer_options options = BN_LAYER_OPTIONS_INIT;
    options.dtype = BN_DTYPE_FLOAT64;
    options.num_features = 7;
    options.epsilon = 0.25;
    options.momentum = -3;
    options.averaging = BN_AVERAGING_CUMULATIVE;
    options.running_variance = BN_VARIANCE_BIASED;
    options.one_value = BN_ONE_VALUE_ALLOW;
    options.nonfinite = BN_NONFINITE_ERROR;
    options.has_weight = 0;
    options.has_bias = 1;
    options.track_running_stats = 0;
    bn_layer *layer = layer_of(&options);
    bn_layer_options back = BN_LAYER_OPTIONS_INIT;
    check_ok(bn_layer_get_options(layer, &back), "get_options");
    check(memcmp(&back, &options, sizeof back) == 0, "the options came back changed");
    bn_layer_destroy(layer);
}

static void values_come_back(fixture *f)
{
    const bn_layer_options options = options_for(f);
    const int64_t channels = options.num_features;
    bn_layer *layer = layer_with_values(f, &options);
    const elements out = guarded_elements(channels, f->input.is_double, PLACE_SHIFTED);
    check_ok(bn_layer_get_weight(layer, out.data, channels), "get_weight");
    check_bits(f, "weight", out, f->weight);
    check_bits(f, "weight_data", (elements){ bn_layer_weight_data(layer), channels, out.is_double },
               f->weight);
    check_ok(bn_layer_get_bias(layer, out.data, channels), "get_bias");
    check_bits(f, "bias", out, f->bias);
    check_bits(f, "bias_data", (elements){ bn_layer_bias_data(layer), channels, out.is_double },
               f->bias);
    check_ok(bn_layer_get_running_mean(layer, out.data, channels), "get_running_mean");
    check_bits(f, "running_mean", out, f->running_mean);
    check_ok(bn_layer_get_running_var(layer, out.data, channels), "get_running_var");
    check_bits(f, "running_var", out, f->running_var);
    int64_t batches = 0;
    check_ok(bn_layer_get_num_batches_tracked(layer, &batches), "get_num_batches_tracked");
    check(batches == 3, "the counter is %lld", (long long)batches);
    int64_t *skipped = f->skipped_batches;
    for (int64_t i = 0; i < 2 * channels; i++) skipped[i] = i % 4;
    check_ok(bn_layer_set_skipped_batches(layer, skipped, 2 * channels), "set_skipped_batches");
    memset(skipped, 0x77, 2 * (size_t)channels * sizeof *skipped);
    check_ok(bn_layer_get_skipped_batches(layer, skipped, 2 * channels), "get_skipped_batches");
    for (int64_t i = 0; i < 2 * channels; i++)
        check(skipped[i] == i % 4, "skipped_batches[%lld]", (long long)i);
    /* Another number of batches: none of them counts as skipped. */
    check_ok(bn_layer_set_num_batches_tracked(layer, 2), "set_num_batches_tracked");
    check_ok(bn_layer_get_skipped_batches(layer, skipped, 2 * channels), "get_skipped_batches");
    for (int64_t i = 0; i < 2 * channels; i++) {
        check(skipped[i] == 0, "skipped_batches[%lld]", (long long)i);
        skipped[i] = 1;
    }
    check_ok(bn_layer_set_skipped_batches(layer, skipped, 2 * channels), "set_skipped_batches");

    /* An optimizer updates in place. */
    elements_set((elements){ bn_layer_weight_data(layer), channels, out.is_double }, 2, -8);
    check_ok(bn_layer_get_weight(layer, out.data, channels), "get_weight");
    check(elements_get(out, 2) == -8, "weight[2] is %g", elements_get(out, 2));

    check_ok(bn_layer_reset_running_stats(layer), "reset_running_stats");
    check_ok(bn_layer_get_running_mean(layer, out.data, channels), "get_running_mean");
    check_constant(out, 0, "running_mean");
    check_ok(bn_layer_get_running_var(layer, out.data, channels), "get_running_var");
    check_constant(out, 1, "running_var");
    check_ok(bn_layer_get_num_batches_tracked(layer, &batches), "get_num_batches_tracked");
    check(batches == 0, "the counter is %lld", (long long)batches);
    check_ok(bn_layer_get_skipped_batches(layer, skipped, 2 * channels), "get_skipped_batches");
    for (int64_t i = 0; i < 2 * channels; i++)
        check(skipped[i] == 0, "skipped_batches[%lld]", (long long)i);
    check_ok(bn_layer_get_bias(layer, out.data, channels), "get_bias");
    check_bits(f, "bias", out, f->bias);
    bn_layer_destroy(layer);
}

static void what_is_set_can_be_got(void **state)
{
    (void)state;
    for_every_problem(values_come_back);
}

/* ---- forward and backward are the stateless ones ---- */

static void check_saved(const fixture *f, const bn_layer *layer)
{
    const int64_t channels = f->grid.channels;
    const elements out = guarded_elements(channels, true, PLACE_END);
    check_ok(bn_layer_get_saved_mean(layer, out.data, channels), "get_saved_mean");
    check_bits(f, "saved_mean", out, f->saved_mean);
    check_ok(bn_layer_get_saved_mean_rest(layer, out.data, channels), "get_saved_mean_rest");
    check_bits(f, "saved_mean_rest", out, f->saved_mean_rest);
    check_ok(bn_layer_get_saved_invstd(layer, out.data, channels), "get_saved_invstd");
    check_bits(f, "saved_invstd", out, f->saved_invstd);
}

static void check_running(const fixture *f, const bn_layer *layer)
{
    const int64_t channels = f->grid.channels;
    const elements out = guarded_elements(channels, f->input.is_double, PLACE_END);
    int64_t batches = -1;
    check_ok(bn_layer_get_running_mean(layer, out.data, channels), "get_running_mean");
    check_bits(f, "running_mean", out, f->running_mean);
    check_ok(bn_layer_get_running_var(layer, out.data, channels), "get_running_var");
    check_bits(f, "running_var", out, f->running_var);
    check_ok(bn_layer_get_num_batches_tracked(layer, &batches), "get_num_batches_tracked");
    check(batches == *f->num_batches_tracked, "the counter is %lld, expected %lld",
          (long long)batches, (long long)*f->num_batches_tracked);
}

static void check_statistics_used(const bn_layer *layer, bn_statistics expected)
{
    bn_statistics used = -1;
    check_ok(bn_layer_get_statistics_used(layer, &used), "get_statistics_used");
    check(used == expected, "statistics_used is %d, expected %d", used, expected);
}

/* The layer against the stateless functions with the same options over a few batches. */
static void check_training_steps(fixture *f, bn_layer_options options)
{
    bn_layer *layer = layer_with_values(f, &options);
    for (int step = 0; step < 3; step++) {
        elements_fill_normal(f->input, 50 + (uint64_t)step, step, 1 + step);
        fixture_restore_args(f);
        f->training.averaging = options.averaging;
        f->training.running_variance = options.running_variance;
        f->training.epsilon = options.epsilon;
        f->training.momentum = options.momentum;
        if (!options.has_weight) {
            f->training.weight.data = f->backward.weight.data = NULL;
            f->training.weight.count = f->backward.weight.count = 0;
        }
        if (!options.has_bias) f->training.bias.data = NULL, f->training.bias.count = 0;
        if (!options.track_running_stats) {
            f->training.running_mean.data = f->training.running_var.data = NULL;
            f->training.running_mean.count = f->training.running_var.count = 0;
        }
        run_training(f);
        run_backward(f);
        const elements output = guarded_copy(f->output), dx = guarded_copy(f->grad_input),
                       dgamma = guarded_copy(f->grad_weight), dbeta = guarded_copy(f->grad_bias);

        elements_fill_junk(f->output);
        elements_fill_junk(f->grad_input);
        elements_fill_junk(f->grad_weight);
        elements_fill_junk(f->grad_bias);
        check_ok(layer_forward(layer, f), "bn_layer_forward");
        /* Backward may be called more than once. */
        for (int again = 0; again < 2; again++)
            check_ok(layer_backward(layer, f), "bn_layer_backward");
        check_bits(f, "output", f->output, output);
        check_bits(f, "grad_input", f->grad_input, dx);
        check_bits(f, "grad_weight", f->grad_weight, dgamma);
        check_bits(f, "grad_bias", f->grad_bias, dbeta);
        check_saved(f, layer);
        check_statistics_used(layer, BN_STATISTICS_BATCH);
        if (options.track_running_stats) check_running(f, layer);
    }
    bn_layer_destroy(layer);
}

static void training_with_any_options(fixture *f)
{
    fixture_remember(f);
    for (int choice = 0; choice < 32; choice++) {
        bn_layer_options options = options_for(f);
        options.averaging = choice & 1;
        options.running_variance = choice >> 1 & 1;
        options.has_weight = choice >> 2 & 1;
        options.has_bias = choice >> 3 & 1;
        options.track_running_stats = choice >> 4 & 1;
        options.epsilon = 1e-3;
        options.momentum = 0.3;
        fixture_recall(f);
        check_training_steps(f, options);
    }
}

static void training_is_the_stateless_one(void **state)
{
    (void)state;
    for_every_problem(training_with_any_options);
}

static void evaluation(fixture *f)
{
    const bn_layer_options options = options_for(f);
    bn_layer *layer = layer_with_values(f, &options);
    check_ok(bn_layer_set_training(layer, 0), "set_training");
    int32_t training = -1;
    check_ok(bn_layer_get_training(layer, &training), "get_training");
    check(training == 0, "training is %d", training);

    run_inference(f);
    f->backward.statistics = BN_STATISTICS_RUNNING;
    run_backward(f);
    const elements output = guarded_copy(f->output), dx = guarded_copy(f->grad_input),
                   dgamma = guarded_copy(f->grad_weight), dbeta = guarded_copy(f->grad_bias);
    elements_fill_junk(f->output);
    check_ok(layer_forward(layer, f), "bn_layer_forward");
    check_bits(f, "output", f->output, output);
    check_running(f, layer);
    check_statistics_used(layer, BN_STATISTICS_RUNNING);

    /* Backward belongs to that forward, even when the running statistics and the mode have moved on. */
    check_ok(bn_layer_reset_running_stats(layer), "reset_running_stats");
    check_ok(bn_layer_set_training(layer, 1), "set_training");
    elements_fill_junk(f->grad_input);
    elements_fill_junk(f->grad_weight);
    elements_fill_junk(f->grad_bias);
    check_ok(layer_backward(layer, f), "bn_layer_backward");
    check_bits(f, "grad_input", f->grad_input, dx);
    check_bits(f, "grad_weight", f->grad_weight, dgamma);
    check_bits(f, "grad_bias", f->grad_bias, dbeta);
    bn_layer_destroy(layer);
}

static void evaluation_is_inference_and_frozen_backward(void **state)
{
    (void)state;
    for_every_problem(evaluation);
}

/* Epsilon and momentum as if the layer had been made with them; backward goes by what the forward used. */
static void options_that_change(fixture *f)
{
    bn_layer_options options = options_for(f);
    options.epsilon = 0.5;
    options.momentum = 0.75;
    bn_layer *other = layer_with_values(f, &options);
    const bn_layer_options usual = options_for(f);
    bn_layer *layer = layer_with_values(f, &usual);
    check_ok(bn_layer_set_epsilon(layer, 0.5), "set_epsilon");
    check_ok(bn_layer_set_momentum(layer, 0.75, BN_AVERAGING_EXPONENTIAL), "set_momentum");
    bn_layer_options now = BN_LAYER_OPTIONS_INIT;
    check_ok(bn_layer_get_options(layer, &now), "get_options");
    check(now.epsilon == 0.5 && now.momentum == 0.75, "epsilon %g, momentum %g", now.epsilon,
          now.momentum);

    check_ok(layer_forward(other, f), "bn_layer_forward");
    check_ok(layer_backward(other, f), "bn_layer_backward");
    const elements output = guarded_copy(f->output), dx = guarded_copy(f->grad_input);
    check_ok(bn_layer_get_running_mean(other, f->running_mean.data, f->running_mean.count), "mean");
    check_ok(bn_layer_get_running_var(other, f->running_var.data, f->running_var.count), "var");
    check_ok(layer_forward(layer, f), "bn_layer_forward");
    check_bits(f, "output", f->output, output);
    *f->num_batches_tracked += 1;
    check_running(f, layer);
    check_ok(bn_layer_set_epsilon(layer, 3), "set_epsilon");
    check_ok(bn_layer_set_momentum(layer, NAN, BN_AVERAGING_CUMULATIVE), "set_momentum");
    elements_fill_junk(f->grad_input);
    check_ok(layer_backward(layer, f), "bn_layer_backward");
    check_bits(f, "grad_input", f->grad_input, dx);
    bn_layer_destroy(layer);
    bn_layer_destroy(other);
}

static void options_can_be_set(void **state)
{
    (void)state;
    for_every_problem(options_that_change);
}

static void evaluation_without_running_statistics(fixture *f)
{
    bn_layer_options options = options_for(f);
    options.track_running_stats = 0;
    bn_layer *layer = layer_with_values(f, &options);
    check_ok(bn_layer_set_training(layer, 0), "set_training");
    run_training(f);
    run_backward(f);
    const elements output = guarded_copy(f->output), dx = guarded_copy(f->grad_input);
    check_ok(layer_forward(layer, f), "bn_layer_forward");
    check_ok(layer_backward(layer, f), "bn_layer_backward");
    check_bits(f, "output", f->output, output);
    check_bits(f, "grad_input", f->grad_input, dx);
    check_statistics_used(layer, BN_STATISTICS_BATCH);
    bn_layer_destroy(layer);
}

static void evaluation_by_the_batch(void **state)
{
    (void)state;
    for_every_problem(evaluation_without_running_statistics);
}

static void gradients_skipped(fixture *f)
{
    const bn_layer_options options = options_for(f);
    bn_layer *layer = layer_with_values(f, &options);
    check_ok(layer_forward(layer, f), "bn_layer_forward");
    check_ok(layer_backward(layer, f), "bn_layer_backward");
    const elements dx = guarded_copy(f->grad_input), dgamma = guarded_copy(f->grad_weight),
                   dbeta = guarded_copy(f->grad_bias);
    for (int wanted = 0; wanted < 8; wanted++) {
        const fixture whole = *f;
        elements_fill_junk(f->grad_input);
        elements_fill_junk(f->grad_weight);
        elements_fill_junk(f->grad_bias);
        const elements junk = guarded_copy(f->grad_input), few = guarded_copy(f->grad_weight);
        if (!(wanted & 1)) f->grad_input = absent_like(dx);
        if (!(wanted & 2)) f->grad_weight = absent_like(dx);
        if (!(wanted & 4)) f->grad_bias = absent_like(dx);
        check_ok(layer_backward(layer, f), "bn_layer_backward");
        *f = whole;
        check_bits(f, "grad_input", f->grad_input, wanted & 1 ? dx : junk);
        check_bits(f, "grad_weight", f->grad_weight, wanted & 2 ? dgamma : few);
        check_bits(f, "grad_bias", f->grad_bias, wanted & 4 ? dbeta : few);
    }
    bn_layer_destroy(layer);
}

static void each_gradient_can_be_skipped(void **state)
{
    (void)state;
    for_every_problem(gradients_skipped);
}

static void in_place(fixture *f)
{
    const bn_layer_options options = options_for(f);
    bn_layer *layer = layer_with_values(f, &options);
    check_ok(bn_layer_set_training(layer, 0), "set_training");
    for (int training = 0; training < 2; training++) {
        check_ok(bn_layer_set_training(layer, training), "set_training");
        check_ok(layer_forward(layer, f), "bn_layer_forward");
        const elements output = guarded_copy(f->output), both = guarded_copy(f->input);
        check_ok(bn_layer_forward(layer, &f->problem, both.data, both.count, both.data, both.count),
                 "in place");
        check_bits(f, "output in place", both, output);
    }
    bn_layer_destroy(layer);
}

static void forward_in_place(void **state)
{
    (void)state;
    for_every_problem(in_place);
}

/* One layer takes batches of every size, rank and layout; the last one counts. */
static void shapes_change_from_call_to_call(void **state)
{
    (void)state;
    static const int64_t sizes[][5] = {
        { 2, 5 }, { 64, 5, 40, 40 }, { 3, 5, 7 }, { 2, 5, 3, 4, 5 }, { 100, 5 }, { 1, 5, 2, 2 },
    };
    static const int ranks[] = { 2, 4, 3, 5, 2, 4 };
    bn_layer_options options = BN_LAYER_OPTIONS_INIT;
    options.num_features = 5;
    bn_layer *layer = layer_of(&options);
    bn_set_num_threads(2);
    for (size_t i = 0; i < LENGTH(ranks); i++)
        for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++) {
            fixture f =
                fixture_make(problem_of(BN_DTYPE_FLOAT32, layout, ranks[i], sizes[i]), PLACE_END);
            check_ok(bn_layer_set_weight(layer, f.weight.data, 5), "set_weight");
            check_ok(bn_layer_set_bias(layer, f.bias.data, 5), "set_bias");
            run_training(&f);
            run_backward(&f);
            const elements output = guarded_copy(f.output), dx = guarded_copy(f.grad_input);
            check_ok(layer_forward(layer, &f), "bn_layer_forward");
            check_ok(layer_backward(layer, &f), "bn_layer_backward");
            check_bits(&f, "output", f.output, output);
            check_bits(&f, "grad_input", f.grad_input, dx);
            guarded_free_all();
        }
    bn_layer_destroy(layer);
}

/* ---- edge cases ---- */

static void empty_batch(void **state)
{
    (void)state;
    fixture f = images(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW);
    const bn_layer_options options = options_for(&f);
    bn_layer *layer = layer_with_values(&f, &options);
    const bn_problem empty = BN_PROBLEM_2D(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 0, 5, 6, 7);
    for (int training = 1; training >= 0; training--) {
        check_ok(bn_layer_set_training(layer, training), "set_training");
        check_ok(bn_layer_forward(layer, &empty, NULL, 0, NULL, 0), "forward of nothing");
        check_running(&f, layer);
        check_ok(bn_layer_backward(layer, &empty, NULL, 0, NULL, 0, NULL, 0, f.grad_weight.data, 5,
                                   f.grad_bias.data, 5),
                 "backward of nothing");
        check_constant(f.grad_weight, 0, "grad_weight");
        check_constant(f.grad_bias, 0, "grad_bias");
    }
    bn_layer_destroy(layer);
}

static void one_value(void **state)
{
    (void)state;
    const bn_problem problem = BN_PROBLEM_2D(BN_DTYPE_FLOAT64, BN_LAYOUT_NCHW, 1, 5, 1, 1);
    fixture f = fixture_make(problem, PLACE_END);
    bn_layer_options options = options_for(&f);
    options.one_value = BN_ONE_VALUE_USE_RUNNING;
    bn_layer *layer = layer_with_values(&f, &options);
    check_ok(layer_forward(layer, &f), "bn_layer_forward");
    check_statistics_used(layer, BN_STATISTICS_RUNNING);
    check_running(&f, layer);
    const elements output = guarded_copy(f.output);
    run_inference(&f);
    check_bits(&f, "output", output, f.output);
    /* Its backward is the frozen one, without being told. */
    f.backward.statistics = BN_STATISTICS_RUNNING;
    run_backward(&f);
    const elements dx = guarded_copy(f.grad_input), dgamma = guarded_copy(f.grad_weight);
    check_ok(layer_backward(layer, &f), "bn_layer_backward");
    check_bits(&f, "grad_input", f.grad_input, dx);
    check_bits(&f, "grad_weight", f.grad_weight, dgamma);
    bn_layer_destroy(layer);

    options.one_value = BN_ONE_VALUE_ALLOW;
    layer = layer_with_values(&f, &options);
    check_ok(layer_forward(layer, &f), "bn_layer_forward");
    check_statistics_used(layer, BN_STATISTICS_BATCH);
    check_bits(&f, "output, the bias", f.output, f.bias);
    bn_layer_destroy(layer);
}

static void nonfinite(void **state)
{
    (void)state;
    fixture f = images(BN_DTYPE_FLOAT32, BN_LAYOUT_NHWC);
    for (int policy = 0; policy < 2; policy++) {
        bn_layer_options options = options_for(&f);
        options.nonfinite = policy;
        bn_layer *layer = layer_with_values(&f, &options);
        elements_set(f.input, ref_index(f.grid, 2, 9), NAN);
        const bn_status status = layer_forward(layer, &f);
        if (policy == BN_NONFINITE_ERROR)
            check_refused(status, BN_STATUS_NONFINITE, "1|5|NaN");
        else
            check_ok(status, "bn_layer_forward");
        int64_t channels = -1;
        check_ok(bn_layer_get_nonfinite_channels(layer, &channels), "get_nonfinite_channels");
        check(channels == 1, "nonfinite_channels is %lld", (long long)channels);
        const elements mean = guarded_elements(5, false, PLACE_END);
        check_ok(bn_layer_get_running_mean(layer, mean.data, 5), "get_running_mean");
        for (int c = 0; c < 5; c++)
            check((elements_get(mean, c) == elements_get(f.running_mean, c)) == (c == 2),
                  "running_mean[%d] is %g, was %g", c, elements_get(mean, c),
                  elements_get(f.running_mean, c));
        /* The forward has happened: its backward works, channel by channel. */
        check_ok(layer_backward(layer, &f), "bn_layer_backward");
        check(isnan(elements_get(f.grad_weight, 2)) && isfinite(elements_get(f.grad_weight, 1)),
              "grad_weight is %g and %g", elements_get(f.grad_weight, 2),
              elements_get(f.grad_weight, 1));
        bn_layer_destroy(layer);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_new_layer_is_pytorchs, fixture_teardown),
        cmocka_unit_test_teardown(options_come_back, fixture_teardown),
        cmocka_unit_test_teardown(what_is_set_can_be_got, fixture_teardown),
        cmocka_unit_test_teardown(training_is_the_stateless_one, fixture_teardown),
        cmocka_unit_test_teardown(evaluation_is_inference_and_frozen_backward, fixture_teardown),
        cmocka_unit_test_teardown(options_can_be_set, fixture_teardown),
        cmocka_unit_test_teardown(evaluation_by_the_batch, fixture_teardown),
        cmocka_unit_test_teardown(each_gradient_can_be_skipped, fixture_teardown),
        cmocka_unit_test_teardown(forward_in_place, fixture_teardown),
        cmocka_unit_test_teardown(shapes_change_from_call_to_call, fixture_teardown),
        cmocka_unit_test_teardown(empty_batch, fixture_teardown),
        cmocka_unit_test_teardown(one_value, fixture_teardown),
        cmocka_unit_test_teardown(nonfinite, fixture_teardown),
    };
    return cmocka_run_group_tests_name("abi: layer", tests, NULL, NULL);
}
