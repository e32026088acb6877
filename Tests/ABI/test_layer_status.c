/*
 * Bad input to the layer: each kind has its status, quotes actual and expected, and leaves the layer and the
 * caller's buffers as they were.
 */
#include "check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "layers.h"

typedef struct scene {
    fixture f;
    bn_layer_options options;
    bn_layer *layer;
    state_bytes before;
} scene;

static scene make_scene(void)
{
    const bn_problem problem = BN_PROBLEM_2D(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 4, 5, 6, 7);
    scene s = { .f = fixture_make(problem, PLACE_START) };
    s.options = options_for(&s.f);
    s.layer = layer_with_values(&s.f, &s.options);
    s.before = state_of(s.layer);
    fixture_remember(&s.f);
    return s;
}

static void end_scene(scene *s)
{
    free(s->before.bytes);
    bn_layer_destroy(s->layer);
}

/* The call just made was refused and has changed nothing. */
static void refused(scene *s, bn_status actual, bn_status expected, const char *words)
{
    check_refused(actual, expected, words);
    const state_bytes after = state_of(s->layer);
    check(after.size == s->before.size &&
              memcmp(after.bytes, s->before.bytes, (size_t)after.size) == 0,
          "%s (%s): the layer changed", bn_status_name(expected), words);
    free(after.bytes);
    const char *changed = fixture_changed(&s->f);
    check(changed == NULL, "%s (%s): changed %s", bn_status_name(expected), words, changed);
    check(guarded_intact(), "%s (%s): wrote beside a buffer", bn_status_name(expected), words);
    fixture_restore_args(&s->f);
}

/* ---- creation ---- */

static void cannot_create(bn_layer_options options, bn_status expected, const char *words)
{
    bn_layer *layer = (bn_layer *)&options; /* anything but NULL */
    check_refused(bn_layer_create(&options, &layer), expected, words);
    check(layer == (bn_layer *)&options, "%s (%s): *layer was set", bn_status_name(expected),
          words);
}

static void bad_options(void **state)
{
    (void)state;
    bn_layer_options good = BN_LAYER_OPTIONS_INIT;
    good.num_features = 3;
#define CANNOT(member, value, status, words)           \
    do {                                               \
        bn_layer_options bad = good;                   \
        bad.member = (value);                          \
        cannot_create(bad, BN_STATUS_##status, words); \
    } while (0)
    CANNOT(struct_size, 60, STRUCT_SIZE, "options|struct_size|60|64");
    CANNOT(struct_size, 0, STRUCT_SIZE, "options|struct_size|0|64");
    CANNOT(dtype, 5, INVALID_OPTION, "dtype|5|1|4");
    CANNOT(num_features, 0, NO_CHANNELS, "num_features|0|1");
    CANNOT(num_features, -4, NEGATIVE_SIZE, "num_features|-4");
    CANNOT(num_features, INT64_MAX, SIZE_OVERFLOW, "9223372036854775807|63");
    CANNOT(num_features, INT64_C(1) << 60, SIZE_OVERFLOW, "1152921504606846976|63");
    CANNOT(epsilon, -1, EPSILON, "epsilon|-1");
    CANNOT(epsilon, NAN, EPSILON, "epsilon|nan");
    CANNOT(epsilon, INFINITY, EPSILON, "epsilon|inf");
    CANNOT(momentum, NAN, MOMENTUM, "momentum|nan");
    CANNOT(momentum, -INFINITY, MOMENTUM, "momentum|-inf");
    CANNOT(averaging, 2, INVALID_OPTION, "averaging|2|0|1");
    CANNOT(running_variance, 2, INVALID_OPTION, "running_variance|2|0|1");
    CANNOT(one_value, -1, INVALID_OPTION, "one_value|-1|0|1|2");
    CANNOT(nonfinite, 5, INVALID_OPTION, "nonfinite|5|0|1");
    CANNOT(has_weight, 2, INVALID_OPTION, "has_weight|2|0|1");
    CANNOT(has_bias, -1, INVALID_OPTION, "has_bias|-1|0|1");
    CANNOT(track_running_stats, 7, INVALID_OPTION, "track_running_stats|7|0|1");
    CANNOT(reserved, 1, INVALID_OPTION, "reserved|1|0");
#undef CANNOT
    bn_layer *layer = NULL;
    check_refused(bn_layer_create(NULL, &layer), BN_STATUS_NULL_POINTER, "options");
    check_refused(bn_layer_create(&good, NULL), BN_STATUS_NULL_POINTER, "layer");

    /* Cumulative averages have no momentum that could be wrong. */
    good.averaging = BN_AVERAGING_CUMULATIVE, good.momentum = NAN;
    bn_layer_destroy(layer_of(&good));
}

/* ---- NULL everywhere ---- */

static void null_layer(void **state)
{
    (void)state;
    scene s = make_scene();
    fixture *f = &s.f;
    int32_t flag = 9;
    int64_t number = 9;
    unsigned char bytes[8];
    bn_layer_options options = s.options;
#define NO_LAYER(call) check_refused(call, BN_STATUS_NULL_POINTER, "layer|NULL")
    NO_LAYER(bn_layer_get_options(NULL, &options));
    NO_LAYER(bn_layer_set_training(NULL, 1));
    NO_LAYER(bn_layer_set_epsilon(NULL, 1));
    NO_LAYER(bn_layer_set_momentum(NULL, 1, BN_AVERAGING_EXPONENTIAL));
    NO_LAYER(bn_layer_get_training(NULL, &flag));
    NO_LAYER(layer_forward(NULL, f));
    NO_LAYER(layer_backward(NULL, f));
    NO_LAYER(bn_layer_get_weight(NULL, f->weight.data, 5));
    NO_LAYER(bn_layer_set_weight(NULL, f->weight.data, 5));
    NO_LAYER(bn_layer_get_bias(NULL, f->bias.data, 5));
    NO_LAYER(bn_layer_set_bias(NULL, f->bias.data, 5));
    NO_LAYER(bn_layer_get_running_mean(NULL, f->running_mean.data, 5));
    NO_LAYER(bn_layer_set_running_mean(NULL, f->running_mean.data, 5));
    NO_LAYER(bn_layer_get_running_var(NULL, f->running_var.data, 5));
    NO_LAYER(bn_layer_set_running_var(NULL, f->running_var.data, 5));
    NO_LAYER(bn_layer_get_num_batches_tracked(NULL, &number));
    NO_LAYER(bn_layer_set_num_batches_tracked(NULL, 1));
    NO_LAYER(bn_layer_get_skipped_batches(NULL, f->skipped_batches, 10));
    NO_LAYER(bn_layer_set_skipped_batches(NULL, f->skipped_batches, 10));
    NO_LAYER(bn_layer_get_saved_mean(NULL, f->saved_mean.data, 5));
    NO_LAYER(bn_layer_get_saved_invstd(NULL, f->saved_invstd.data, 5));
    NO_LAYER(bn_layer_get_saved_mean_rest(NULL, f->saved_mean_rest.data, 5));
    NO_LAYER(bn_layer_get_statistics_used(NULL, &flag));
    NO_LAYER(bn_layer_get_nonfinite_channels(NULL, &number));
    NO_LAYER(bn_layer_get_nonfinite_running_channels(NULL, &number));
    NO_LAYER(bn_layer_reset_running_stats(NULL));
    NO_LAYER(bn_layer_state_size(NULL, &number));
    NO_LAYER(bn_layer_save_state(NULL, bytes, 8));
    NO_LAYER(bn_layer_load_state(NULL, s.before.bytes, s.before.size));
#undef NO_LAYER
    check(bn_layer_weight_data(NULL) == NULL && bn_layer_bias_data(NULL) == NULL,
          "NULL has weight or bias");
    check(flag == 9 && number == 9 && fixture_changed(f) == NULL, "something was written");
    end_scene(&s);
}

static void null_results(void **state)
{
    (void)state;
    scene s = make_scene();
    check_ok(layer_forward(s.layer, &s.f), "bn_layer_forward");
    free(s.before.bytes);
    s.before = state_of(s.layer);
    fixture_remember(&s.f);
#define NO_RESULT(call, words) refused(&s, call, BN_STATUS_NULL_POINTER, words)
    NO_RESULT(bn_layer_get_options(s.layer, NULL), "options");
    NO_RESULT(bn_layer_get_training(s.layer, NULL), "training");
    NO_RESULT(bn_layer_forward(s.layer, NULL, s.f.input.data, 840, s.f.output.data, 840),
              "problem");
    NO_RESULT(bn_layer_forward(s.layer, &s.f.problem, NULL, 840, s.f.output.data, 840), "input");
    NO_RESULT(bn_layer_forward(s.layer, &s.f.problem, s.f.input.data, 840, NULL, 840), "output");
    NO_RESULT(bn_layer_backward(s.layer, NULL, s.f.input.data, 840, s.f.grad_output.data, 840, NULL,
                                0, NULL, 0, NULL, 0),
              "problem");
    NO_RESULT(bn_layer_backward(s.layer, &s.f.problem, NULL, 840, s.f.grad_output.data, 840, NULL,
                                0, NULL, 0, NULL, 0),
              "input");
    NO_RESULT(bn_layer_backward(s.layer, &s.f.problem, s.f.input.data, 840, NULL, 840, NULL, 0,
                                NULL, 0, NULL, 0),
              "grad_output");
    NO_RESULT(bn_layer_get_weight(s.layer, NULL, 5), "out");
    NO_RESULT(bn_layer_set_weight(s.layer, NULL, 5), "values");
    NO_RESULT(bn_layer_get_bias(s.layer, NULL, 5), "out");
    NO_RESULT(bn_layer_set_bias(s.layer, NULL, 5), "values");
    NO_RESULT(bn_layer_get_running_mean(s.layer, NULL, 5), "out");
    NO_RESULT(bn_layer_set_running_mean(s.layer, NULL, 5), "values");
    NO_RESULT(bn_layer_get_running_var(s.layer, NULL, 5), "out");
    NO_RESULT(bn_layer_set_running_var(s.layer, NULL, 5), "values");
    NO_RESULT(bn_layer_get_num_batches_tracked(s.layer, NULL), "NULL");
    NO_RESULT(bn_layer_get_skipped_batches(s.layer, NULL, 10), "skipped_batches");
    NO_RESULT(bn_layer_set_skipped_batches(s.layer, NULL, 10), "skipped_batches");
    NO_RESULT(bn_layer_get_saved_mean(s.layer, NULL, 5), "out");
    NO_RESULT(bn_layer_get_saved_invstd(s.layer, NULL, 5), "out");
    NO_RESULT(bn_layer_get_statistics_used(s.layer, NULL), "statistics");
    NO_RESULT(bn_layer_get_nonfinite_channels(s.layer, NULL), "channels");
    NO_RESULT(bn_layer_get_nonfinite_running_channels(s.layer, NULL), "channels");
    NO_RESULT(bn_layer_state_size(s.layer, NULL), "size");
    NO_RESULT(bn_layer_save_state(s.layer, NULL, s.before.size), "NULL");
    NO_RESULT(bn_layer_load_state(s.layer, NULL, s.before.size), "state");
    bn_layer *layer = NULL;
    NO_RESULT(bn_layer_create_from_state(NULL, s.before.size, &layer), "state");
    check(layer == NULL, "*layer was set");
    NO_RESULT(bn_layer_create_from_state(s.before.bytes, s.before.size, NULL), "layer");
#undef NO_RESULT
    end_scene(&s);
}

/* ---- values of the wrong kind ---- */

static void bad_values(void **state)
{
    (void)state;
    scene s = make_scene();
    check_ok(layer_forward(s.layer, &s.f), "bn_layer_forward");
    free(s.before.bytes);
    s.before = state_of(s.layer);
    fixture_remember(&s.f);
    const struct {
        bn_status (*get)(const bn_layer *, void *, int64_t);
        bn_status (*set)(bn_layer *, const void *, int64_t);
        void *data;
    } arrays[] = {
        { bn_layer_get_weight, bn_layer_set_weight, s.f.weight.data },
        { bn_layer_get_bias, bn_layer_set_bias, s.f.bias.data },
        { bn_layer_get_running_mean, bn_layer_set_running_mean, s.f.running_mean.data },
        { bn_layer_get_running_var, bn_layer_set_running_var, s.f.running_var.data },
    };
    for (size_t i = 0; i < LENGTH(arrays); i++) {
        void *data = arrays[i].data, *odd = (char *)data + 1;
        refused(&s, arrays[i].get(s.layer, data, 4), BN_STATUS_COUNT_MISMATCH, "count|4|5");
        refused(&s, arrays[i].set(s.layer, data, 6), BN_STATUS_COUNT_MISMATCH, "count|6|5");
        refused(&s, arrays[i].get(s.layer, data, -5), BN_STATUS_NEGATIVE_SIZE, "count|-5");
        refused(&s, arrays[i].set(s.layer, data, -1), BN_STATUS_NEGATIVE_SIZE, "count|-1");
        refused(&s, arrays[i].get(s.layer, odd, 5), BN_STATUS_MISALIGNED, "out|0x|multiple of 4");
        refused(&s, arrays[i].set(s.layer, odd, 5), BN_STATUS_MISALIGNED,
                "values|0x|multiple of 4");
    }
    refused(&s, bn_layer_get_saved_mean(s.layer, s.f.saved_mean.data, 4), BN_STATUS_COUNT_MISMATCH,
            "count|4|5");
    refused(&s, bn_layer_get_saved_invstd(s.layer, s.f.saved_invstd.data, 50),
            BN_STATUS_COUNT_MISMATCH, "count|50|5");
    refused(&s, bn_layer_get_saved_mean(s.layer, (double *)((char *)s.f.saved_mean.data + 4), 5),
            BN_STATUS_MISALIGNED, "0x|multiple of 8");
    refused(&s, bn_layer_set_num_batches_tracked(s.layer, -1), BN_STATUS_BATCH_COUNTER, "-1|0");
    int64_t skipped[10] = { 0, 4, 0, 0, 0, 0, 0, 0, 0, 4 }; /* of 4 batches */
    refused(&s, bn_layer_get_skipped_batches(s.layer, skipped, 5), BN_STATUS_COUNT_MISMATCH,
            "skipped_batches.count|5|10|2*num_features");
    refused(&s, bn_layer_set_skipped_batches(s.layer, skipped, 11), BN_STATUS_COUNT_MISMATCH,
            "skipped_batches.count|11|10");
    skipped[9] = 5;
    refused(&s, bn_layer_set_skipped_batches(s.layer, skipped, 10), BN_STATUS_BATCH_COUNTER,
            "skipped_batches[9] is 5|0 to 4");
    skipped[9] = -1;
    refused(&s, bn_layer_set_skipped_batches(s.layer, skipped, 10), BN_STATUS_BATCH_COUNTER,
            "skipped_batches[9] is -1|0 to 4");
    refused(&s, bn_layer_set_training(s.layer, 2), BN_STATUS_INVALID_OPTION, "training|2|0|1");
    refused(&s, bn_layer_set_training(s.layer, -1), BN_STATUS_INVALID_OPTION, "training|-1|0|1");
    refused(&s, bn_layer_set_epsilon(s.layer, -1), BN_STATUS_EPSILON, "epsilon|-1");
    refused(&s, bn_layer_set_epsilon(s.layer, NAN), BN_STATUS_EPSILON, "epsilon|nan");
    refused(&s, bn_layer_set_momentum(s.layer, INFINITY, BN_AVERAGING_EXPONENTIAL),
            BN_STATUS_MOMENTUM, "momentum|inf");
    refused(&s, bn_layer_set_momentum(s.layer, 0.5, 2), BN_STATUS_INVALID_OPTION, "averaging|2");
    bn_layer_options options = s.options;
    options.struct_size = 63;
    refused(&s, bn_layer_get_options(s.layer, &options), BN_STATUS_STRUCT_SIZE,
            "options|struct_size|63|64");
    end_scene(&s);
}

/* ---- forward and backward ---- */

static void bad_forward(void **state)
{
    (void)state;
    scene s = make_scene();
    bn_problem *p = &s.f.problem;
    for (int training = 0; training < 2; training++) {
        check_ok(bn_layer_set_training(s.layer, training), "set_training");
        free(s.before.bytes);
        s.before = state_of(s.layer);
        p->dtype = BN_DTYPE_FLOAT64;
        refused(&s, layer_forward(s.layer, &s.f), BN_STATUS_LAYER_MISMATCH,
                "dtype|float64|float32");
        p->sizes[1] = 6;
        refused(&s, layer_forward(s.layer, &s.f), BN_STATUS_LAYER_MISMATCH, "channels|6|5");
        p->rank = 1;
        refused(&s, layer_forward(s.layer, &s.f), BN_STATUS_RANK, "rank|1");
        p->struct_size = 4;
        refused(&s, layer_forward(s.layer, &s.f), BN_STATUS_STRUCT_SIZE, "problem|4|56");
        p->sizes[0] = 3;
        refused(&s, layer_forward(s.layer, &s.f), BN_STATUS_COUNT_MISMATCH, "input.count|840|630");
        refused(&s, bn_layer_forward(s.layer, p, s.f.input.data, 840, s.f.output.data, 839),
                BN_STATUS_COUNT_MISMATCH, "output.count|839|840");
        refused(&s,
                bn_layer_forward(s.layer, p, (char *)s.f.input.data + 2, 840, s.f.output.data, 840),
                BN_STATUS_MISALIGNED, "input|0x|4");
        refused(&s,
                bn_layer_forward(s.layer, p, s.f.input.data, 840, (char *)s.f.input.data + 8, 840),
                BN_STATUS_OVERLAP, "output|input|overlap");
    }
    /* The output must not lie over the layer's own weight. */
    bn_layer_options single = BN_LAYER_OPTIONS_INIT;
    single.num_features = 1;
    bn_layer *layer = layer_of(&single);
    const bn_problem two = BN_PROBLEM_2D(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 2, 1, 1, 1);
    check_refused(bn_layer_forward(layer, &two, s.f.input.data, 2, bn_layer_weight_data(layer), 2),
                  BN_STATUS_OVERLAP, "output|weight");
    bn_layer_destroy(layer);
    end_scene(&s);
}

static void one_value_is_an_error(void **state)
{
    (void)state;
    const bn_problem problem = BN_PROBLEM_2D(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 1, 5, 1, 1);
    scene s = { .f = fixture_make(problem, PLACE_START) };
    s.options = options_for(&s.f);
    s.layer = layer_with_values(&s.f, &s.options);
    s.before = state_of(s.layer);
    fixture_remember(&s.f);
    refused(&s, layer_forward(s.layer, &s.f), BN_STATUS_ONE_VALUE, "1 value|drop_last");
    /* A forward that failed is none. */
    refused(&s, layer_backward(s.layer, &s.f), BN_STATUS_NO_FORWARD, "forward");
    check_ok(bn_layer_set_training(s.layer, 0), "set_training");
    check_ok(layer_forward(s.layer, &s.f), "evaluation of one value");
    end_scene(&s);
}

static void a_counter_at_its_end(void **state)
{
    (void)state;
    scene s = make_scene();
    check_ok(bn_layer_set_num_batches_tracked(s.layer, INT64_MAX), "set_num_batches_tracked");
    free(s.before.bytes);
    s.before = state_of(s.layer);
    refused(&s, layer_forward(s.layer, &s.f), BN_STATUS_BATCH_COUNTER, "9223372036854775807");
    end_scene(&s);
}

static void before_any_forward(void **state)
{
    (void)state;
    scene s = make_scene();
    bn_statistics used = 9;
    int64_t channels = 9;
    refused(&s, layer_backward(s.layer, &s.f), BN_STATUS_NO_FORWARD, "forward");
    refused(&s, bn_layer_get_saved_mean(s.layer, s.f.saved_mean.data, 5), BN_STATUS_NO_FORWARD,
            "forward");
    refused(&s, bn_layer_get_saved_invstd(s.layer, s.f.saved_invstd.data, 5), BN_STATUS_NO_FORWARD,
            "forward");
    refused(&s, bn_layer_get_statistics_used(s.layer, &used), BN_STATUS_NO_FORWARD, "forward");
    refused(&s, bn_layer_get_nonfinite_channels(s.layer, &channels), BN_STATUS_NO_FORWARD,
            "forward");
    refused(&s, bn_layer_get_nonfinite_running_channels(s.layer, &channels), BN_STATUS_NO_FORWARD,
            "forward");
    check(used == 9 && channels == 9, "a result was written");
    end_scene(&s);
}

static void bad_backward(void **state)
{
    (void)state;
    scene s = make_scene();
    check_ok(layer_forward(s.layer, &s.f), "bn_layer_forward");
    free(s.before.bytes);
    s.before = state_of(s.layer);
    fixture_remember(&s.f);
    bn_problem *p = &s.f.problem;
    /* Another shape than the forward's, even one of as many elements. */
    p->sizes[2] = 7, p->sizes[3] = 6;
    refused(&s, layer_backward(s.layer, &s.f), BN_STATUS_LAYER_MISMATCH,
            "(4, 5, 7, 6)|(4, 5, 6, 7)");
    p->layout = BN_LAYOUT_NHWC;
    refused(&s, layer_backward(s.layer, &s.f), BN_STATUS_LAYER_MISMATCH, "NHWC|NCHW");
    p->rank = 3, p->sizes[2] = 42;
    refused(&s, layer_backward(s.layer, &s.f), BN_STATUS_LAYER_MISMATCH, "(4, 5, 42)|(4, 5, 6, 7)");
    p->dtype = BN_DTYPE_FLOAT64;
    refused(&s, layer_backward(s.layer, &s.f), BN_STATUS_LAYER_MISMATCH, "dtype|float64|float32");
    p->sizes[1] = 4;
    refused(&s, layer_backward(s.layer, &s.f), BN_STATUS_LAYER_MISMATCH, "channels|4|5");

    fixture f = s.f;
    f.input.count = 839;
    refused(&s, layer_backward(s.layer, &f), BN_STATUS_COUNT_MISMATCH, "input.count|839|840");
    f = s.f;
    f.grad_output.count = 0;
    refused(&s, layer_backward(s.layer, &f), BN_STATUS_COUNT_MISMATCH, "grad_output.count|0|840");
    f = s.f;
    f.grad_input.count = 841;
    refused(&s, layer_backward(s.layer, &f), BN_STATUS_COUNT_MISMATCH, "grad_input.count|841|840");
    f = s.f;
    f.grad_weight.count = 4;
    refused(&s, layer_backward(s.layer, &f), BN_STATUS_COUNT_MISMATCH, "grad_weight.count|4|5");
    f = s.f;
    f.grad_bias.count = -5;
    refused(&s, layer_backward(s.layer, &f), BN_STATUS_NEGATIVE_SIZE, "grad_bias.count|-5");
    f = s.f;
    f.grad_bias.data = f.grad_weight.data;
    refused(&s, layer_backward(s.layer, &f), BN_STATUS_OVERLAP, "grad_weight|grad_bias");
    f = s.f;
    f.grad_weight.data = bn_layer_weight_data(s.layer);
    refused(&s, layer_backward(s.layer, &f), BN_STATUS_OVERLAP, "grad_weight|weight");
    f = s.f;
    f.grad_input.data = (char *)f.grad_output.data + 4;
    refused(&s, layer_backward(s.layer, &f), BN_STATUS_OVERLAP, "grad_input|grad_output");
    f = s.f;
    f.grad_weight.data = (char *)f.grad_weight.data + 1;
    refused(&s, layer_backward(s.layer, &f), BN_STATUS_MISALIGNED, "grad_weight|0x|4");
    end_scene(&s);
}

/* ---- what a layer does not have ---- */

static void what_is_not_there(void **state)
{
    (void)state;
    scene s = make_scene();
    bn_layer_destroy(s.layer);
    free(s.before.bytes);
    s.options.has_weight = s.options.has_bias = s.options.track_running_stats = 0;
    s.layer = layer_of(&s.options);
    s.before = state_of(s.layer);
    fixture *f = &s.f;
    int64_t batches = 9;
    refused(&s, bn_layer_get_weight(s.layer, f->weight.data, 5), BN_STATUS_NO_PARAMETER, "weight");
    refused(&s, bn_layer_set_weight(s.layer, f->weight.data, 5), BN_STATUS_NO_PARAMETER, "weight");
    refused(&s, bn_layer_get_bias(s.layer, f->bias.data, 5), BN_STATUS_NO_PARAMETER, "bias");
    refused(&s, bn_layer_set_bias(s.layer, f->bias.data, 5), BN_STATUS_NO_PARAMETER, "bias");
#define NO_RUNNING(call) \
    refused(&s, call, BN_STATUS_NO_RUNNING_STATISTICS, "running statistics|track_running_stats")
    NO_RUNNING(bn_layer_get_running_mean(s.layer, f->running_mean.data, 5));
    NO_RUNNING(bn_layer_set_running_mean(s.layer, f->running_mean.data, 5));
    NO_RUNNING(bn_layer_get_running_var(s.layer, f->running_var.data, 5));
    NO_RUNNING(bn_layer_get_skipped_batches(s.layer, f->skipped_batches, 10));
    NO_RUNNING(bn_layer_set_skipped_batches(s.layer, f->skipped_batches, 10));
    NO_RUNNING(bn_layer_set_running_var(s.layer, f->running_var.data, 5));
    NO_RUNNING(bn_layer_get_num_batches_tracked(s.layer, &batches));
    NO_RUNNING(bn_layer_set_num_batches_tracked(s.layer, 1));
    NO_RUNNING(bn_layer_reset_running_stats(s.layer));
#undef NO_RUNNING
    check(batches == 9, "the counter was written");
    check(bn_layer_weight_data(s.layer) == NULL && bn_layer_bias_data(s.layer) == NULL,
          "there are parameters after all");
    end_scene(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(bad_options, fixture_teardown),
        cmocka_unit_test_teardown(null_layer, fixture_teardown),
        cmocka_unit_test_teardown(null_results, fixture_teardown),
        cmocka_unit_test_teardown(bad_values, fixture_teardown),
        cmocka_unit_test_teardown(bad_forward, fixture_teardown),
        cmocka_unit_test_teardown(one_value_is_an_error, fixture_teardown),
        cmocka_unit_test_teardown(a_counter_at_its_end, fixture_teardown),
        cmocka_unit_test_teardown(before_any_forward, fixture_teardown),
        cmocka_unit_test_teardown(bad_backward, fixture_teardown),
        cmocka_unit_test_teardown(what_is_not_there, fixture_teardown),
    };
    return cmocka_run_group_tests_name("abi: bad input to a layer", tests, NULL, NULL);
}
