/*
 * Structs of other versions of the header: a shorter one is as if its missing members were 0, a longer one is taken if
 * what it adds is 0, and nothing is read or written beyond the size that it says. For every struct that a call takes.
 */
#include "check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "layers.h"

/* ---- what the calls need besides the struct ---- */

enum { CHANNELS = 3, MOST_BYTES = 4096 };

static fixture f;
static bn_layer *layer;
static double arrays[6][CHANNELS]; /* moments, sums */
static bn_moments moments, other_moments;
static bn_gradient_sums sums;
static bn_layer_options options;
static bn_layer_forward_args layer_forward_args;
static bn_layer_backward_args layer_backward_args;
static bn_weight_shape shape;
static bn_fold_args fold;
static bn_explain_args explain_args;
static bn_plan_info plan, asked_plan;

static void make_arguments(void)
{
    const bn_problem problem = BN_PROBLEM_2D(BN_DTYPE_FLOAT64, BN_LAYOUT_NCHW, 2, CHANNELS, 4, 5);
    f = fixture_make(problem, PLACE_END);
    fixture_add_extras(&f);
    fixture_use(&f, (extras){ .activation = BN_ACTIVATION_LEAKY_RELU,
                              .slope = 0.25,
                              .residual = true,
                              .mask = true,
                              .masked = BN_MASKED_PASS });
    run_training(&f); /* so that activation mask and saved values belong together */
    fixture_remember(&f);

    moments = other_moments = (bn_moments)BN_MOMENTS_INIT;
    moments.channels = other_moments.channels = CHANNELS;
    moments.mean = arrays[0], moments.mean_rest = arrays[1], moments.m2 = arrays[2];
    other_moments.mean = arrays[3], other_moments.mean_rest = arrays[4];
    other_moments.m2 = arrays[5];
    moments.count = 7, other_moments.count = 9;
    sums = (bn_gradient_sums)BN_GRADIENT_SUMS_INIT;
    sums.channels = CHANNELS, sums.sum_dy = arrays[0], sums.sum_dy_xmu = arrays[1];
    sums.count = 11;
    options = options_for(&f);
    options.averaging = BN_AVERAGING_CUMULATIVE;
    options.has_bias = 0;

    layer_forward_args = (bn_layer_forward_args){
        BN_LAYER_FORWARD_ARGS_DEFAULTS,      .pass = BN_PASS_KEEP_RUNNING,
        .input = view_of(f.input),           .output = mutable_view_of(f.output),
        .activation = f.training.activation, .residual = view_of(f.residual),
        .positions = f.training.positions
    };
    layer_backward_args =
        (bn_layer_backward_args){ BN_LAYER_BACKWARD_ARGS_DEFAULTS,
                                  .input = view_of(f.input),
                                  .grad_output = view_of(f.grad_output),
                                  .grad_input = mutable_view_of(f.grad_input),
                                  .grad_weight = mutable_view_of(f.grad_weight),
                                  .grad_bias = mutable_view_of(f.grad_bias),
                                  .grad_residual = mutable_view_of(f.grad_residual) };

    shape = (bn_weight_shape)BN_WEIGHT_OUTPUT_FIRST(BN_DTYPE_FLOAT64, CHANNELS, 40);
    fold = (bn_fold_args){ BN_FOLD_ARGS_DEFAULTS,
                           .running_mean = view_of(f.running_mean),
                           .running_var = view_of(f.running_var),
                           .weight = view_of(f.weight),
                           .bias = view_of(f.bias),
                           .conv_weight = view_of(f.input),
                           .folded_weight = mutable_view_of(f.output),
                           .folded_bias = mutable_view_of(f.grad_bias) };
    fold.weight_error = fold.bias_error = -7;
    explain_args = (bn_explain_args){ BN_EXPLAIN_ARGS_DEFAULTS, .operation = BN_OPERATION_BACKWARD,
                                      .activation = f.backward.activation, .residual = 1 };
    plan = (bn_plan_info)BN_PLAN_INFO_INIT;
}

/* As make_arguments left everything. */
static void reset(void)
{
    fixture_recall(&f);
    asked_plan = plan;
    for (int i = 0; i < 6; i++)
        for (int c = 0; c < CHANNELS; c++) arrays[i][c] = 1 + i + 0.5 * c;
    bn_layer_destroy(layer);
    const bn_layer_options usual = options_for(&f);
    layer = layer_with_values(&f, &usual);
    check_ok(bn_layer_forward_with(layer, &f.problem, &layer_forward_args), "forward_with");
    fixture_recall(&f);
}

static uint64_t hash_of(uint64_t hash, const void *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++)
        hash = (hash ^ ((const unsigned char *)bytes)[i]) * 1099511628211u;
    return hash;
}

/* Of all that a call may have written but its struct. */
static uint64_t outputs_hash(void)
{
    const elements written[] = { f.output,       f.grad_input,  f.grad_weight,
                                 f.grad_bias,    f.saved_mean,  f.saved_invstd,
                                 f.running_mean, f.running_var, f.grad_residual };
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < LENGTH(written); i++)
        hash = hash_of(hash, written[i].data, elements_bytes(written[i]));
    hash = hash_of(hash, f.bits, (size_t)f.bits_count);
    hash = hash_of(hash, f.num_batches_tracked, 8);
    hash = hash_of(hash, arrays, sizeof arrays);
    hash = hash_of(hash, &asked_plan, sizeof asked_plan);
    const state_bytes state = state_of(layer);
    hash = hash_of(hash, state.bytes, (size_t)state.size);
    free(state.bytes);
    return hash;
}

/* ---- the calls ---- */

static bn_status problem_call(void *s)
{
    return bn_forward_training(s, &f.training);
}
static bn_status training_call(void *s)
{
    return bn_forward_training(&f.problem, s);
}
static bn_status normalize_call(void *s)
{
    return bn_normalize(&f.problem, &moments, s);
}
static bn_status inference_call(void *s)
{
    return bn_forward_inference(&f.problem, s);
}
static bn_status normalize_saved_call(void *s)
{
    const bn_saved saved = saved_of(&f);
    return bn_normalize_saved(&f.problem, &saved, s);
}
static bn_status backward_call(void *s)
{
    return bn_backward(&f.problem, s);
}
static bn_status moments_call(void *s)
{
    return bn_moments_compute(&f.problem, f.input.data, f.input.count, NULL, s);
}
static bn_status merge_call(void *s)
{
    return bn_moments_merge(s, &other_moments);
}
static bn_status statistics_call(void *s)
{
    return bn_moments_statistics(s, 1e-5, BN_VARIANCE_BIASED, arrays[4], CHANNELS, NULL, 0);
}
static bn_status reduce_call(void *s)
{
    return bn_backward_reduce(&f.problem, &f.backward, s);
}
static bn_status apply_call(void *s)
{
    return bn_backward_apply(&f.problem, s, &f.backward);
}
static bn_status create_call(void *s)
{
    bn_layer *made = NULL;
    const bn_status status = bn_layer_create(s, &made);
    bn_layer_destroy(made);
    return status;
}
static bn_status get_options_call(void *s)
{
    return bn_layer_get_options(layer, s);
}
static bn_status layer_forward_call(void *s)
{
    return bn_layer_forward_with(layer, &f.problem, s);
}
static bn_status layer_backward_call(void *s)
{
    return bn_layer_backward_with(layer, &f.problem, s);
}
static bn_status weight_shape_call(void *s)
{
    return bn_fold(s, &fold);
}
static bn_status fold_call(void *s)
{
    return bn_fold(&shape, s);
}
static bn_status layer_fold_call(void *s)
{
    return bn_layer_fold(layer, &shape, s);
}
static bn_status explain_call(void *s)
{
    return bn_explain(&f.problem, &explain_args, s);
}
static bn_status asked_call(void *s)
{
    return bn_explain(&f.problem, s, &asked_plan);
}

static const struct subject {
    const char *name;     /* of the call */
    const char *argument; /* as errors call it */
    const void *full;
    uint32_t size, least;
    bool results_alone; /* what the struct holds before the call does not matter */
    bn_status (*call)(void *s);
} subjects[] = {
#define SUBJECT(call, argument, value, type, least, results) \
    { #call, argument, &value, sizeof(type), least, results, call##_call }
    SUBJECT(problem, "problem", f.problem, bn_problem, BN_PROBLEM_LEAST, false),
    SUBJECT(training, "args", f.training, bn_forward_training_args, BN_FORWARD_TRAINING_ARGS_LEAST,
            false),
    SUBJECT(normalize, "args", f.training, bn_forward_training_args, BN_FORWARD_TRAINING_ARGS_LEAST,
            false),
    SUBJECT(inference, "args", f.inference, bn_forward_inference_args,
            BN_FORWARD_INFERENCE_ARGS_LEAST, false),
    SUBJECT(normalize_saved, "args", f.inference, bn_forward_inference_args,
            BN_FORWARD_INFERENCE_ARGS_LEAST, false),
    SUBJECT(backward, "args", f.backward, bn_backward_args, BN_BACKWARD_ARGS_LEAST, false),
    SUBJECT(moments, "moments", moments, bn_moments, BN_MOMENTS_LEAST, false),
    SUBJECT(merge, "moments", moments, bn_moments, BN_MOMENTS_LEAST, false),
    SUBJECT(statistics, "moments", moments, bn_moments, BN_MOMENTS_LEAST, false),
    SUBJECT(reduce, "sums", sums, bn_gradient_sums, BN_GRADIENT_SUMS_LEAST, false),
    SUBJECT(apply, "sums", sums, bn_gradient_sums, BN_GRADIENT_SUMS_LEAST, false),
    SUBJECT(create, "options", options, bn_layer_options, BN_LAYER_OPTIONS_LEAST, false),
    SUBJECT(get_options, "options", options, bn_layer_options, BN_LAYER_OPTIONS_LEAST, true),
    SUBJECT(layer_forward, "args", layer_forward_args, bn_layer_forward_args,
            BN_LAYER_FORWARD_ARGS_LEAST, false),
    SUBJECT(layer_backward, "args", layer_backward_args, bn_layer_backward_args,
            BN_LAYER_BACKWARD_ARGS_LEAST, false),
    SUBJECT(weight_shape, "shape", shape, bn_weight_shape, BN_WEIGHT_SHAPE_LEAST, false),
    SUBJECT(fold, "args", fold, bn_fold_args, BN_FOLD_ARGS_LEAST, false),
    SUBJECT(layer_fold, "args", fold, bn_fold_args, BN_FOLD_ARGS_LEAST, false),
    SUBJECT(asked, "args", explain_args, bn_explain_args, BN_EXPLAIN_ARGS_LEAST, false),
    SUBJECT(explain, "info", plan, bn_plan_info, BN_PLAN_INFO_LEAST, true),
};

/* ---- one call and what came of it ---- */

typedef struct outcome {
    bn_status status;
    uint64_t outputs;
    char message[512];
    unsigned char bytes[MOST_BYTES]; /* of the struct, afterwards */
} outcome;

/* Calls with a struct that says `says` bytes, of which `has` are there and a guard page behind them. */
static outcome call(const struct subject *s, const unsigned char *bytes, uint32_t says, size_t has)
{
    static outcome o;
    unsigned char *given = guarded(has, 8, PLACE_END);
    memcpy(given, bytes, has);
    memcpy(given, &says, sizeof says);
    reset();
    o.status = s->call(given);
    o.outputs = outputs_hash();
    memset(o.bytes, 0, sizeof o.bytes);
    memcpy(o.bytes, given, has);
    snprintf(o.message, sizeof o.message, "%s", o.status == 0 ? "" : bn_last_error_message());
    check(guarded_intact(), "%s of %u bytes: something was written beside a buffer", s->name, says);
    check(memcmp(given, &says, sizeof says) == 0, "%s: struct_size changed", s->name);
    guarded_free(given);
    return o;
}

static void check_equal(const struct subject *s, uint32_t size, const outcome *got,
                        const outcome *expected)
{
    check(got->status == expected->status && strcmp(got->message, expected->message) == 0,
          "%s of %u bytes: %d %s, expected %d %s", s->name, size, got->status, got->message,
          expected->status, expected->message);
    check(got->outputs == expected->outputs, "%s of %u bytes: other results", s->name, size);
    const size_t shared = size < s->size ? size : s->size;
    check(memcmp(got->bytes + 4, expected->bytes + 4, shared - 4) == 0,
          "%s of %u bytes: other results in the struct", s->name, size);
}

static void a_shorter_struct_is_as_if_the_rest_were_0(void **state)
{
    (void)state;
    make_arguments();
    int succeeded = 0, shorter = 0;
    for (const struct subject *s = subjects; s < subjects + LENGTH(subjects); s++)
        for (uint32_t size = s->least; size <= s->size; size += 8) {
            unsigned char bytes[MOST_BYTES] = { 0 };
            memcpy(bytes, s->full, size);
            const outcome expected = call(s, bytes, s->size, s->size);
            const outcome got = call(s, bytes, size, size);
            check_equal(s, size, &got, &expected);
            check(size < s->size || got.status == BN_STATUS_OK, "%s: %s", s->name, got.message);
            shorter += size < s->size;
            succeeded += size < s->size && got.status == BN_STATUS_OK;
        }
    check(shorter > 100 && succeeded > 50, "%d shorter structs, %d of them enough", shorter,
          succeeded);
}

static void a_longer_struct_is_taken_if_it_adds_nothing(void **state)
{
    (void)state;
    make_arguments();
    for (const struct subject *s = subjects; s < subjects + LENGTH(subjects); s++) {
        unsigned char bytes[MOST_BYTES] = { 0 };
        memcpy(bytes, s->full, s->size);
        const outcome expected = call(s, bytes, s->size, s->size);
        check(expected.status == BN_STATUS_OK, "%s: %s", s->name, expected.message);
        const uint32_t sizes[] = { s->size + 8, s->size + 64, MOST_BYTES };
        for (size_t i = 0; i < LENGTH(sizes); i++) {
            /* A struct of results may hold anything, and holds 0 afterwards. */
            if (s->results_alone) memset(bytes, 0xA5, sizeof bytes);
            const outcome got = call(s, bytes, sizes[i], sizes[i]);
            check_equal(s, sizes[i], &got, &expected);
            for (size_t at = s->size; at < sizes[i]; at++)
                check(got.bytes[at] == 0, "%s of %u bytes: byte %zu is %d", s->name, sizes[i], at,
                      got.bytes[at]);
        }
    }
}

static void members_that_are_not_known_are_refused(void **state)
{
    (void)state;
    make_arguments();
    reset();
    const uint64_t untouched = outputs_hash();
    for (const struct subject *s = subjects; s < subjects + LENGTH(subjects); s++) {
        if (s->results_alone) continue;
        const uint32_t size = s->size + 40;
        for (size_t at = s->size; at < size; at += 13) {
            unsigned char bytes[MOST_BYTES] = { 0 };
            memcpy(bytes, s->full, s->size);
            bytes[at] = 0x80;
            const outcome got = call(s, bytes, size, size);
            char words[128];
            snprintf(words, sizeof words, "%s|byte %zu |128|expected 0|%u bytes", s->argument, at,
                     s->size);
            check_refused(got.status, BN_STATUS_STRUCT_SIZE, words);
            check(got.outputs == untouched, "%s with an unknown member wrote", s->name);
            check(memcmp(got.bytes + 4, bytes + 4, size - 4) == 0, "%s: the struct changed",
                  s->name);
        }
    }
}

/* Of these only struct_size is there: it is all that may be read. */
static void sizes_that_none_can_have_are_refused(void **state)
{
    (void)state;
    make_arguments();
    reset();
    const uint64_t untouched = outputs_hash();
    for (const struct subject *s = subjects; s < subjects + LENGTH(subjects); s++) {
        const uint32_t sizes[] = {
            0,           1,           4,           s->least - 8,   s->least - 1, s->least + 4,
            s->size - 4, s->size + 1, s->size + 4, MOST_BYTES + 8, 1u << 31,     UINT32_MAX - 7,
            UINT32_MAX,
        };
        for (size_t i = 0; i < LENGTH(sizes); i++) {
            const outcome got = call(s, (const unsigned char *)&sizes[i], sizes[i], 4);
            char words[128];
            snprintf(words, sizeof words, "%s->struct_size is %u,|multiple of 8|%u to 4096",
                     s->argument, sizes[i], s->least);
            check_refused(got.status, BN_STATUS_STRUCT_SIZE, words);
            check(got.outputs == untouched, "%s of %u bytes wrote", s->name, sizes[i]);
        }
    }
}

static int teardown(void **state)
{
    bn_layer_destroy(layer);
    layer = NULL;
    return fixture_teardown(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_shorter_struct_is_as_if_the_rest_were_0, teardown),
        cmocka_unit_test_teardown(a_longer_struct_is_taken_if_it_adds_nothing, teardown),
        cmocka_unit_test_teardown(members_that_are_not_known_are_refused, teardown),
        cmocka_unit_test_teardown(sizes_that_none_can_have_are_refused, teardown),
    };
    return cmocka_run_group_tests_name("abi: structs", tests, NULL, NULL);
}
