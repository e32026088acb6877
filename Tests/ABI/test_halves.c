/*
 * bfloat16 and float16 through the C interface. The yardstick are float32 tensors with the same values: what they
 * give, rounded once. Sums, which halves may add up in another way, are compared by what is promised of them, and
 * everything that follows from them to the bit.
 */
#include "check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "half.h"
#include "layers.h"

static const struct {
    int rank;
    int64_t sizes[5];
} shapes[] = {
    { 2, { 300, 33 } },
    { 3, { 7, 5, 301 } },
    { 4, { 16, 19, 7, 7 } },
    { 5, { 3, 5, 4, 3, 2 } },
};

static const extras kinds[] = {
    { .activation = BN_ACTIVATION_NONE },
    { .activation = BN_ACTIVATION_RELU, .residual = true, .mask = true },
    { .activation = BN_ACTIVATION_LEAKY_RELU,
      .slope = 0.25,
      .mask = true,
      .masked = BN_MASKED_PASS },
};

/* A float32 fixture whose tensors hold numbers of a half type, and these tensors in that type. */
typedef struct twin {
    fixture f;
    half_format format;
    bn_problem problem;
    uint16_t *input, *grad_output, *residual;
    uint16_t *output, *grad_input, *grad_residual; /* junk until written */
    int64_t count;
} twin;

static uint16_t *narrowed(half_format format, elements values)
{
    uint16_t *halves = guarded((size_t)values.count * 2, 2, PLACE_END);
    for (int64_t i = 0; i < values.count; i++) {
        elements_set(values, i, half_round(format, elements_get(values, i)));
        halves[i] = half_bits(format, elements_get(values, i));
    }
    return halves;
}

static uint16_t *junk(int64_t count)
{
    uint16_t *halves = guarded((size_t)count * 2, 2, PLACE_SHIFTED);
    memset(halves, 0x5B, (size_t)count * 2);
    return halves;
}

static twin twin_make(bn_dtype dtype, bn_layout layout, int rank, const int64_t *sizes)
{
    twin t = { .f = fixture_make(problem_of(BN_DTYPE_FLOAT32, layout, rank, sizes), PLACE_END) };
    t.format = dtype == BN_DTYPE_FLOAT16 ? half_float16 : half_bfloat16;
    t.problem = problem_of(dtype, layout, rank, sizes);
    t.count = t.f.input.count;
    fixture_add_extras(&t.f);
    t.input = narrowed(t.format, t.f.input);
    t.grad_output = narrowed(t.format, t.f.grad_output);
    t.residual = narrowed(t.format, t.f.residual);
    t.output = junk(t.count);
    t.grad_input = junk(t.count);
    t.grad_residual = junk(t.count);
    return t;
}

/* The fixture's arguments, with the tensors in halves. */
static bn_forward_training_args half_training(const twin *t)
{
    bn_forward_training_args args = t->f.training;
    args.input.data = t->input, args.output.data = t->output;
    if (args.residual.data) args.residual.data = t->residual;
    return args;
}

static bn_forward_inference_args half_inference(const twin *t)
{
    bn_forward_inference_args args = t->f.inference;
    args.input.data = t->input, args.output.data = t->output;
    if (args.residual.data) args.residual.data = t->residual;
    return args;
}

static bn_backward_args half_backward(const twin *t)
{
    bn_backward_args args = t->f.backward;
    args.input.data = t->input, args.grad_output.data = t->grad_output,
    args.grad_input.data = t->grad_input;
    if (args.grad_residual.data) args.grad_residual.data = t->grad_residual;
    return args;
}

static void done(const twin *t, extras e, const char *call, bn_status status)
{
    check(status == BN_STATUS_OK, "%s of %s %s, %s: %s: %s", call, t->format.name,
          problem_text(&t->f.problem), extras_text(e), bn_status_name(status),
          bn_last_error_message());
    check(guarded_intact(), "%s of %s %s wrote beside a buffer", call, t->format.name,
          problem_text(&t->f.problem));
}

/* Fails unless these are the float32 values, rounded once. */
static void check_rounded(const twin *t, extras e, const char *what, const uint16_t *got,
                          elements expected)
{
    for (int64_t i = 0; i < t->count; i++) {
        const double rounded = half_round(t->format, elements_get(expected, i));
        const double value = half_value(t->format, got[i]);
        check((isnan(rounded) && isnan(value)) || got[i] == half_bits(t->format, rounded),
              "%s %s, %s: %s[%lld] is %.9g, expected %.9g", t->format.name,
              problem_text(&t->f.problem), extras_text(e), what, (long long)i, value, rounded);
    }
}

static void check_same(const twin *t, extras e, const char *what, const void *got,
                       const void *expected, size_t bytes)
{
    check(memcmp(got, expected, bytes) == 0, "%s %s, %s: another %s", t->format.name,
          problem_text(&t->f.problem), extras_text(e), what);
}

/* Runs a test for both types, both layouts, all ranks and kinds, on changing threads and instruction sets. */
static void for_every_twin(void (*test)(twin *t, extras e))
{
    int turn = 0;
    for (int dtype = BN_DTYPE_BFLOAT16; dtype <= BN_DTYPE_FLOAT16; dtype++)
        for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++)
            for (size_t s = 0; s < LENGTH(shapes); s++)
                for (size_t k = 0; k < LENGTH(kinds); k++, turn++) {
                    bn_set_num_threads(1 + turn % 4);
                    bn_set_max_isa(turn % 3 == 0 ? BN_ISA_GENERIC : BN_ISA_AVX512);
                    twin t = twin_make(dtype, layout, shapes[s].rank, shapes[s].sizes);
                    fixture_use(&t.f, kinds[k]);
                    test(&t, kinds[k]);
                    guarded_free_all();
                }
}

/* ---- what has no sums ---- */

/* Whether the output, in halves, is not <= 0, where its position takes part. */
static void check_activation_mask(const twin *t, extras e)
{
    for (int64_t i = 0; e.activation != BN_ACTIVATION_NONE && i < t->count; i++) {
        const bool expected = (!e.mask || t->f.mask[fixture_position(&t->f, i)]) &&
                              !(half_value(t->format, t->output[i]) <= 0);
        check((t->f.bits[i / 8] >> i % 8 & 1) == expected, "%s %s, %s: bit %lld is %d",
              t->format.name, problem_text(&t->f.problem), extras_text(e), (long long)i, !expected);
    }
}

static void inference_is_rounded(twin *t, extras e)
{
    /* Outputs from subnormal numbers to infinity, or what float16 has of both. */
    for (int64_t c = 0; c < t->f.weight.count; c++)
        if (c % 5 > 2) {
            const double size = c % 5 == 3 ? 1e-6 : 2e4;
            elements_set(t->f.weight, c, size * elements_get(t->f.weight, c));
            elements_set(t->f.bias, c, size * elements_get(t->f.bias, c));
        }
    run_inference(&t->f);
    const bn_forward_inference_args args = half_inference(t);
    done(t, e, "inference", bn_forward_inference(&t->problem, &args));
    check_rounded(t, e, "output", t->output, t->f.output);
    check_activation_mask(t, e);
    /* In place. */
    bn_forward_inference_args place = args;
    place.output.data = t->input;
    done(t, e, "inference in place", bn_forward_inference(&t->problem, &place));
    check_same(t, e, "output in place", t->input, t->output, (size_t)t->count * 2);
}

static void inference_is_that_of_float32(void **state)
{
    (void)state;
    for_every_twin(inference_is_rounded);
}

static void frozen_backward_is_rounded(twin *t, extras e)
{
    run_inference(&t->f); /* for the activation's mask */
    t->f.backward.statistics = BN_STATISTICS_RUNNING;
    bn_backward_args args = half_backward(t);
    args.grad_weight = args.grad_bias = (bn_mutable_view)BN_ABSENT;
    run_backward(&t->f);
    done(t, e, "frozen backward", bn_backward(&t->problem, &args));
    check_rounded(t, e, "grad_input", t->grad_input, t->f.grad_input);
    if (e.residual) check_rounded(t, e, "grad_residual", t->grad_residual, t->f.grad_residual);
}

static void frozen_backward_is_that_of_float32(void **state)
{
    (void)state;
    for_every_twin(frozen_backward_is_rounded);
}

/* ---- what has ---- */

enum { MOST_CHANNELS = 64 };
typedef struct sums_memory {
    double first[MOST_CHANNELS], rest[MOST_CHANNELS], second[MOST_CHANNELS];
} sums_memory;

static bn_moments moments_in(sums_memory *memory, int64_t channels)
{
    bn_moments m = BN_MOMENTS_INIT;
    m.channels = channels;
    m.mean = memory->first, m.mean_rest = memory->rest, m.m2 = memory->second;
    return m;
}

static bn_gradient_sums sums_in(sums_memory *memory, int64_t channels)
{
    bn_gradient_sums s = BN_GRADIENT_SUMS_INIT;
    s.channels = channels;
    s.sum_dy = memory->first, s.sum_dy_xmu = memory->second;
    return s;
}

static bn_moments moments_of(const twin *t, extras e, const bn_problem *problem, const void *input,
                             sums_memory *memory)
{
    bn_moments m = moments_in(memory, t->f.grid.channels);
    done(t, e, "moments",
         bn_moments_compute(problem, input, t->count, &t->f.training.positions, &m));
    return m;
}

/* Moments are good to 18 bits; the same ones normalize to the same, and the whole is its two parts. */
static void training_is_rounded(twin *t, extras e)
{
    static sums_memory memory[2];
    const bn_moments of_float = moments_of(t, e, &t->f.problem, t->f.input.data, &memory[0]);
    const bn_moments own = moments_of(t, e, &t->problem, t->input, &memory[1]);
    check(own.count == of_float.count, "count is %lld, expected %lld", (long long)own.count,
          (long long)of_float.count);
    for (int64_t c = 0; c < own.channels; c++) {
        const double deviation = sqrt(of_float.m2[c] / (double)own.count);
        check(fabs(own.mean[c] - of_float.mean[c]) <= 0x1p-18 * deviation &&
                  fabs(own.m2[c] - of_float.m2[c]) <= 0x1p-18 * of_float.m2[c],
              "%s %s: channel %lld: mean %.9g, m2 %.9g, expected %.9g, %.9g", t->format.name,
              problem_text(&t->f.problem), (long long)c, own.mean[c], own.m2[c], of_float.mean[c],
              of_float.m2[c]);
    }

    bn_forward_training_args args = half_training(t);
    const elements mean = guarded_copy(t->f.running_mean), var = guarded_copy(t->f.running_var);
    done(t, e, "normalize", bn_normalize(&t->f.problem, &of_float, &t->f.training));
    const elements new_mean = guarded_copy(t->f.running_mean);
    const elements new_var = guarded_copy(t->f.running_var);
    elements_copy(t->f.running_mean, mean);
    elements_copy(t->f.running_var, var);
    done(t, e, "normalize", bn_normalize(&t->problem, &of_float, &args));
    check_rounded(t, e, "output", t->output, t->f.output);
    check_activation_mask(t, e);
    check_bits(&t->f, "running_mean", t->f.running_mean, new_mean);
    check_bits(&t->f, "running_var", t->f.running_var, new_var);

    done(t, e, "normalize", bn_normalize(&t->problem, &own, &args));
    const elements saved_mean = guarded_copy(t->f.saved_mean);
    const elements saved_invstd = guarded_copy(t->f.saved_invstd);
    args.output.data = junk(t->count);
    done(t, e, "training", bn_forward_training(&t->problem, &args));
    check_same(t, e, "output", args.output.data, t->output, (size_t)t->count * 2);
    check_bits(&t->f, "saved_mean", t->f.saved_mean, saved_mean);
    check_bits(&t->f, "saved_invstd", t->f.saved_invstd, saved_invstd);
}

static void training_is_that_of_float32(void **state)
{
    (void)state;
    for_every_twin(training_is_rounded);
}

/* The same of backward, whose sums are bounded by those of their terms' sizes. */
static void backward_is_rounded(twin *t, extras e)
{
    static sums_memory memory[2];
    bn_forward_training_args forward = half_training(t);
    done(t, e, "training", bn_forward_training(&t->problem, &forward));
    bn_backward_args args = half_backward(t);
    bn_gradient_sums of_float = sums_in(&memory[0], t->f.grid.channels);
    bn_gradient_sums own = sums_in(&memory[1], t->f.grid.channels);
    done(t, e, "reduce", bn_backward_reduce(&t->f.problem, &t->f.backward, &of_float));
    done(t, e, "reduce", bn_backward_reduce(&t->problem, &args, &own));
    for (int64_t c = 0; c < own.channels; c++) {
        double sizes = 0, products = 0;
        for (int64_t i = 0; i < t->f.positions; i++) {
            const int64_t at = ref_index(t->f.grid, c, i);
            const double dy = fabs(elements_get(t->f.grad_output, at));
            sizes += dy;
            products += dy * fabs(elements_get(t->f.input, at) - elements_get(t->f.saved_mean, c));
        }
        check(fabs(own.sum_dy[c] - of_float.sum_dy[c]) <= 0x1p-18 * sizes &&
                  fabs(own.sum_dy_xmu[c] - of_float.sum_dy_xmu[c]) <= 0x1p-18 * products,
              "%s %s, %s: channel %lld: sums %.9g and %.9g, expected %.9g and %.9g", t->format.name,
              problem_text(&t->f.problem), extras_text(e), (long long)c, own.sum_dy[c],
              own.sum_dy_xmu[c], of_float.sum_dy[c], of_float.sum_dy_xmu[c]);
    }

    done(t, e, "apply", bn_backward_apply(&t->f.problem, &of_float, &t->f.backward));
    const elements weight = guarded_copy(t->f.grad_weight), bias = guarded_copy(t->f.grad_bias);
    elements_fill_junk(t->f.grad_weight);
    elements_fill_junk(t->f.grad_bias);
    done(t, e, "apply", bn_backward_apply(&t->problem, &of_float, &args));
    check_rounded(t, e, "grad_input", t->grad_input, t->f.grad_input);
    if (e.residual) check_rounded(t, e, "grad_residual", t->grad_residual, t->f.grad_residual);
    check_bits(&t->f, "grad_weight", t->f.grad_weight, weight);
    check_bits(&t->f, "grad_bias", t->f.grad_bias, bias);

    done(t, e, "apply", bn_backward_apply(&t->problem, &own, &args));
    args.grad_input.data = junk(t->count);
    done(t, e, "backward", bn_backward(&t->problem, &args));
    check_same(t, e, "grad_input", args.grad_input.data, t->grad_input, (size_t)t->count * 2);
}

static void backward_is_that_of_float32(void **state)
{
    (void)state;
    for_every_twin(backward_is_rounded);
}

/* Squares are added up in float, where those of large bfloat16 are infinite and those of small ones 0. */
static void squares_beyond_float32(void **state)
{
    (void)state;
    static const double sizes[] = { 1e18, 3e19, 1e25, 1e38, 1e-18, 1e-25, 1e-36 };
    const int64_t shape[] = { 8, 3, 200 };
    for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++)
        for (size_t s = 0; s < LENGTH(sizes); s++)
            for (int mean = 0; mean < 2; mean++) {
                twin t = twin_make(BN_DTYPE_BFLOAT16, layout, 3, shape);
                elements_fill_normal(t.f.input, 80 + s, mean * sizes[s], 0.1 * sizes[s]);
                t.input = narrowed(t.format, t.f.input);
                fixture_use(&t.f, kinds[0]);
                t.f.training.epsilon = 0;
                run_training(&t.f);
                const elements invstd = guarded_copy(t.f.saved_invstd);
                bn_forward_training_args args = half_training(&t);
                done(&t, kinds[0], "training", bn_forward_training(&t.problem, &args));
                for (int64_t c = 0; c < 3; c++) {
                    const double got = elements_get(t.f.saved_invstd, c);
                    const double expected = elements_get(invstd, c);
                    check(fabs(got - expected) <= 0x1p-18 * expected,
                          "values of %g: invstd is %.9g, expected %.9g", sizes[s], got, expected);
                }
                guarded_free_all();
            }
}

/* ---- layer ---- */

/* A layer of a half type, and the one made from its state, do what the functions do. */
static void a_layer_does_what_the_functions_do(twin *t, extras e)
{
    bn_layer_options options = options_for(&t->f);
    options.dtype = t->problem.dtype;
    const elements mean = guarded_copy(t->f.running_mean), var = guarded_copy(t->f.running_var);
    bn_layer *layer = layer_with_values(&t->f, &options);
    bn_forward_training_args args = half_training(t);
    done(t, e, "training", bn_forward_training(&t->problem, &args));
    bn_backward_args back = half_backward(t);
    done(t, e, "backward", bn_backward(&t->problem, &back));

    bn_layer_forward_args forward = BN_LAYER_FORWARD_ARGS_INIT;
    forward.input.data = t->input, forward.input.count = t->count;
    forward.output.data = junk(t->count), forward.output.count = t->count;
    forward.activation.kind = e.activation, forward.activation.slope = e.slope;
    forward.positions.masked = e.masked;
    forward.residual.data = args.residual.data, forward.residual.count = args.residual.count;
    forward.positions.mask.data = args.positions.mask.data,
    forward.positions.mask.count = args.positions.mask.count;
    const size_t bytes = (size_t)t->count * 2;
    for (bn_pass pass = BN_PASS_NORMAL; pass <= BN_PASS_RECOMPUTE; pass += BN_PASS_RECOMPUTE) {
        forward.pass = pass;
        memset(forward.output.data, 0x5B, bytes);
        done(t, e, "layer", bn_layer_forward_with(layer, &t->problem, &forward));
        check_same(t, e, "output of a layer", forward.output.data, t->output, bytes);
    }
    check_ok(bn_layer_get_running_mean(layer, mean.data, mean.count), "get_running_mean");
    check_ok(bn_layer_get_running_var(layer, var.data, var.count), "get_running_var");
    check_bits(&t->f, "running_mean", mean, t->f.running_mean);
    check_bits(&t->f, "running_var", var, t->f.running_var);

    bn_layer_backward_args backward = BN_LAYER_BACKWARD_ARGS_INIT;
    const elements weight = guarded_copy(t->f.grad_weight), bias = guarded_copy(t->f.grad_bias);
    backward.input.data = t->input, backward.input.count = t->count;
    backward.grad_output.data = t->grad_output, backward.grad_output.count = t->count;
    backward.grad_input.data = junk(t->count), backward.grad_input.count = t->count;
    backward.grad_weight.data = t->f.grad_weight.data, backward.grad_weight.count = weight.count;
    backward.grad_bias.data = t->f.grad_bias.data, backward.grad_bias.count = bias.count;
    elements_fill_junk(t->f.grad_weight);
    elements_fill_junk(t->f.grad_bias);
    done(t, e, "layer", bn_layer_backward_with(layer, &t->problem, &backward));
    check_same(t, e, "grad_input of a layer", backward.grad_input.data, t->grad_input, bytes);
    check_bits(&t->f, "grad_weight", t->f.grad_weight, weight);
    check_bits(&t->f, "grad_bias", t->f.grad_bias, bias);

    bn_layer *again = NULL;
    const state_bytes state = state_of(layer);
    check_ok(bn_layer_create_from_state(state.bytes, state.size, &again), "create_from_state");
    bn_layer_options made = BN_LAYER_OPTIONS_INIT;
    check_ok(bn_layer_get_options(again, &made), "get_options");
    check(made.dtype == t->problem.dtype, "dtype is %d, expected %d", made.dtype, t->problem.dtype);
    forward.pass = BN_PASS_NORMAL;
    check_ok(bn_layer_set_training(again, 0), "set_training");
    const bn_forward_inference_args inference = half_inference(t);
    done(t, e, "inference", bn_forward_inference(&t->problem, &inference));
    done(t, e, "layer", bn_layer_forward_with(again, &t->problem, &forward));
    check_same(t, e, "output of a layer from a state", forward.output.data, t->output, bytes);

    /* Of tensors, float32 is another type; of a layer from a state too. */
    check_refused(bn_layer_forward_with(layer, &t->f.problem, &forward), BN_STATUS_LAYER_MISMATCH,
                  "dtype is float32");
    const bn_layer_options floats = options_for(&t->f);
    bn_layer *other = layer_of(&floats);
    check_refused(bn_layer_load_state(other, state.bytes, state.size), BN_STATUS_LAYER_MISMATCH,
                  "expected the layer's float32");
    free(state.bytes);
    bn_layer_destroy(layer);
    bn_layer_destroy(again);
    bn_layer_destroy(other);
}

static void layers_of_halves(void **state)
{
    (void)state;
    for_every_twin(a_layer_does_what_the_functions_do);
}

/* Getters and setters move C floats, no less and no more: the arrays end at a guard page. */
static void getters_of_halves_have_the_parameter_type(void **state)
{
    (void)state;
    enum { C = 5 };
    typedef bn_status get(const bn_layer *layer, void *out, int64_t count);
    typedef bn_status set(bn_layer * layer, const void *values, int64_t count);
    static const struct {
        const char *name;
        get *get;
        set *set;
    } arrays[] = {
        { "weight", bn_layer_get_weight, bn_layer_set_weight },
        { "bias", bn_layer_get_bias, bn_layer_set_bias },
        { "running_mean", bn_layer_get_running_mean, bn_layer_set_running_mean },
        { "running_var", bn_layer_get_running_var, bn_layer_set_running_var },
    };
    for (bn_dtype dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT16; dtype++) {
        bn_layer_options options = BN_LAYER_OPTIONS_INIT;
        options.dtype = dtype;
        options.num_features = C;
        bn_layer *layer = layer_of(&options);
        const bool is_double = dtype == BN_DTYPE_FLOAT64;
        for (size_t i = 0; i < LENGTH(arrays); i++)
            for (placement where = PLACE_END; where <= PLACE_SHIFTED; where++) {
                elements values = guarded_elements(C, is_double, where);
                elements got = guarded_elements(C, is_double, where);
                elements_fill_normal(values, i, 1.25, 0.5); /* more digits than a half has */
                elements_fill_junk(got);
                check_ok(arrays[i].set(layer, values.data, C), arrays[i].name);
                check_ok(arrays[i].get(layer, got.data, C), arrays[i].name);
                check(elements_first_difference(got, values) < 0 && guarded_intact(),
                      "%s of dtype %d is no array of %s", arrays[i].name, dtype,
                      is_double ? "double" : "float");
                const void *own = i == 0 ? bn_layer_weight_data(layer) : bn_layer_bias_data(layer);
                check(i > 1 || memcmp(own, values.data, elements_bytes(values)) == 0,
                      "%s_data of dtype %d is another array", arrays[i].name, dtype);
            }
        bn_layer_destroy(layer);
        guarded_free_all();
    }
}

/* ---- the rest ---- */

static void explained(void **state)
{
    (void)state;
    for (int dtype = BN_DTYPE_BFLOAT16; dtype <= BN_DTYPE_FLOAT16; dtype++)
        for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++)
            for (bn_operation op = BN_OPERATION_FORWARD_TRAINING;
                 op <= BN_OPERATION_BACKWARD_FROZEN; op++) {
                const bn_problem problem = BN_PROBLEM_2D(dtype, layout, 32, 64, 56, 56);
                const bn_explain_args args = asking(op);
                bn_plan_info info = BN_PLAN_INFO_INIT;
                char text[BN_EXPLAIN_TEXT_SIZE];
                check_ok(bn_explain(&problem, &args, &info), "bn_explain");
                check_ok(bn_explain_text(&problem, &args, text, sizeof text), "bn_explain_text");
                const int64_t bytes = 2LL * 32 * 64 * 56 * 56;
                check(info.tensor_bytes == bytes && info.limit_bytes_written == bytes,
                      "a tensor has %lld bytes, %lld are written, expected %lld",
                      (long long)info.tensor_bytes, (long long)info.limit_bytes_written,
                      (long long)bytes);
                check(strstr(text, dtype == BN_DTYPE_FLOAT16 ? " float16" : "bfloat16") != NULL,
                      "not the type: %s", text);
                check(strstr(text, "computed in float32 and rounded once") != NULL,
                      "not what is computed with: %s", text);
            }
}

static void bad_halves_are_refused(void **state)
{
    (void)state;
    const int64_t sizes[] = { 4, 3, 10 };
    twin t = twin_make(BN_DTYPE_BFLOAT16, BN_LAYOUT_NCHW, 3, sizes);
    fixture_use(&t.f, kinds[1]);
    fixture_remember(&t.f);
    bn_forward_training_args args = half_training(&t);
#define REFUSED(change, status, words)                                                          \
    do {                                                                                        \
        args = half_training(&t);                                                               \
        change;                                                                                 \
        check_refused(bn_forward_training(&t.problem, &args), status, words);                   \
        check(fixture_changed(&t.f) == NULL, "%s: changed %s", words, fixture_changed(&t.f));   \
        for (int64_t i = 0; i < t.count; i++) check(t.output[i] == 0x5B5B, "%s: wrote", words); \
    } while (0)
    REFUSED(args.input.data = (const char *)t.input + 1, BN_STATUS_MISALIGNED, "input|2");
    REFUSED(args.output.data = t.input + 1, BN_STATUS_OVERLAP, "output|input");
    REFUSED(args.residual.data = t.output - 1, BN_STATUS_OVERLAP, "output|residual");
    REFUSED(args.weight.data = (const char *)t.f.weight.data + 2, BN_STATUS_MISALIGNED, "weight|4");
    REFUSED(args.residual.count = 60, BN_STATUS_COUNT_MISMATCH, "residual.count|60|120");
    REFUSED((args.activation.kind = BN_ACTIVATION_LEAKY_RELU, args.activation.slope = 1e39),
            BN_STATUS_NEGATIVE_SLOPE, "1e+39");
#undef REFUSED
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(inference_is_that_of_float32, fixture_teardown),
        cmocka_unit_test_teardown(frozen_backward_is_that_of_float32, fixture_teardown),
        cmocka_unit_test_teardown(training_is_that_of_float32, fixture_teardown),
        cmocka_unit_test_teardown(backward_is_that_of_float32, fixture_teardown),
        cmocka_unit_test_teardown(squares_beyond_float32, fixture_teardown),
        cmocka_unit_test_teardown(layers_of_halves, fixture_teardown),
        cmocka_unit_test_teardown(getters_of_halves_have_the_parameter_type, fixture_teardown),
        cmocka_unit_test_teardown(explained, fixture_teardown),
        cmocka_unit_test_teardown(bad_halves_are_refused, fixture_teardown),
    };
    return cmocka_run_group_tests_name("abi: halves", tests, NULL, NULL);
}
