/*
 * bn_fold and bn_layer_fold: a folded layer does what convolution and normalization did, in every layout; and bad
 * input, each kind with its status, which changes nothing.
 */
#include "check.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "layers.h"

/* Where a test's layout keeps the weight of output o, input i (of its group) and tap k. */
typedef enum order { OIK, OKI, IOK, KIO, KOI, KIM } order;

typedef struct layer_case {
    const char *name;
    order order;
    int64_t groups, inputs, outputs, taps; /* all inputs, all outputs */
} layer_case;

static const layer_case cases[] = {
    { "convolution, OIHW", OIK, 1, 4, 6, 3 },    { "grouped, OIHW", OIK, 2, 4, 6, 3 },
    { "depthwise, OIHW", OIK, 4, 4, 8, 3 },      { "convolution, OHWI", OKI, 1, 4, 6, 3 },
    { "grouped, OHWI", OKI, 2, 4, 6, 3 },        { "convolution, HWIO", KIO, 1, 4, 6, 3 },
    { "grouped, HWIO", KIO, 2, 4, 6, 3 },        { "depthwise, HWI*multiplier", KIM, 4, 4, 8, 3 },
    { "transposed, IOHW", IOK, 1, 4, 6, 3 },     { "transposed grouped", IOK, 2, 4, 6, 3 },
    { "transposed depthwise", IOK, 4, 4, 8, 3 }, { "transposed, HWOI", KOI, 1, 4, 6, 3 },
    { "linear, [O][I]", OIK, 1, 4, 6, 1 },       { "linear, [I][O]", KIO, 1, 4, 6, 1 },
    { "one of everything", OIK, 1, 1, 1, 1 },
};

static int64_t place(const layer_case *c, int64_t output, int64_t input, int64_t tap)
{
    const int64_t in = c->inputs / c->groups, out = c->outputs / c->groups, k = c->taps;
    switch (c->order) {
    case OIK:
        return (output * in + input) * k + tap;
    case OKI:
        return (output * k + tap) * in + input;
    case IOK: /* the input is counted over all groups, the output within one */
        return ((output / out * in + input) * out + output % out) * k + tap;
    case KIO:
        return (tap * in + input) * c->outputs + output;
    case KOI:
        return (tap * c->outputs + output) * in + input;
    default: /* KIM: the input is the group */
        return (tap * c->inputs + output / out) * out + output % out;
    }
}

static bn_weight_shape shape_of(const layer_case *c, bn_dtype dtype)
{
    const int64_t in = c->inputs / c->groups, out = c->outputs / c->groups, k = c->taps;
    bn_weight_shape first = BN_WEIGHT_OUTPUT_FIRST(dtype, c->outputs, in * k);
    const bn_weight_shape last = BN_WEIGHT_OUTPUT_LAST(dtype, k * in, c->outputs);
    const bn_weight_shape transposed = BN_WEIGHT_TRANSPOSED(dtype, c->groups, in, out, k);
    switch (c->order) {
    case IOK:
        return transposed;
    case KIO:
    case KIM:
        return last;
    case KOI:
        first.outer = k, first.inner = in;
        return first;
    default:
        return first;
    }
}

typedef struct folding {
    bn_weight_shape shape;
    bn_fold_args args;
    elements mean, var, weight, bias, conv_weight, conv_bias, folded_weight, folded_bias;
} folding;

static elements filled(int64_t count, bool is_double, uint64_t seed)
{
    elements array = guarded_elements(count, is_double, (placement)(seed % 3));
    elements_fill_normal(array, seed, 0.5, 1);
    return array;
}

static void set_args(folding *f)
{
    const bn_fold_args fresh = BN_FOLD_ARGS_INIT;
    f->args = fresh;
    f->args.running_mean.data = f->mean.data, f->args.running_mean.count = f->mean.count;
    f->args.running_var.data = f->var.data, f->args.running_var.count = f->var.count;
    f->args.weight.data = f->weight.data, f->args.weight.count = f->weight.count;
    f->args.bias.data = f->bias.data, f->args.bias.count = f->bias.count;
    f->args.conv_weight.data = f->conv_weight.data,
    f->args.conv_weight.count = f->conv_weight.count;
    f->args.conv_bias.data = f->conv_bias.data, f->args.conv_bias.count = f->conv_bias.count;
    f->args.folded_weight.data = f->folded_weight.data;
    f->args.folded_weight.count = f->folded_weight.count;
    f->args.folded_bias.data = f->folded_bias.data,
    f->args.folded_bias.count = f->folded_bias.count;
}

static folding folding_of(const layer_case *c, bn_dtype dtype)
{
    const bool wide = dtype == BN_DTYPE_FLOAT64;
    const int64_t weights = c->outputs * (c->inputs / c->groups) * c->taps, o = c->outputs;
    folding f = { .shape = shape_of(c, dtype) };
    f.mean = filled(o, wide, 1);
    f.var = filled(o, wide, 2);
    for (int64_t i = 0; i < o; i++) elements_set(f.var, i, fabs(elements_get(f.var, i)) + 0.1);
    f.weight = filled(o, wide, 3);
    f.bias = filled(o, wide, 4);
    f.conv_weight = filled(weights, wide, 5);
    f.conv_bias = filled(o, wide, 6);
    f.folded_weight = filled(weights, wide, 7);
    f.folded_bias = filled(o, wide, 8);
    set_args(&f);
    return f;
}

/* The layer at one position of its output: the sum over inputs and taps of what meets there. (A transposed one
 * differs from others in which input meets which tap; here every pair has a value of its own.) */
static double layer_at(const layer_case *c, elements weight, double bias, int64_t output)
{
    const int64_t in = c->inputs / c->groups, group = output / (c->outputs / c->groups);
    double sum = bias;
    for (int64_t i = 0; i < in; i++)
        for (int64_t k = 0; k < c->taps; k++)
            sum += elements_get(weight, place(c, output, i, k)) *
                   cos(1 + (double)((group * in + i) * c->taps + k));
    return sum;
}

static void check_does_both(const layer_case *c, const folding *f, const char *how)
{
    const double unit = f->mean.is_double ? 0x1p-52 : 0x1p-23;
    for (int64_t o = 0; o < c->outputs; o++) {
        const double y = layer_at(c, f->conv_weight, elements_get(f->conv_bias, o), o);
        const double factor =
            elements_get(f->weight, o) / sqrt(elements_get(f->var, o) + f->args.epsilon);
        const double expected = (y - elements_get(f->mean, o)) * factor + elements_get(f->bias, o);
        const double actual = layer_at(c, f->folded_weight, elements_get(f->folded_bias, o), o);
        const double size = 1 + fabs(factor) * (4 + fabs(y)) + fabs(expected);
        check(fabs(actual - expected) <= 40 * unit * size,
              "%s, %s: output %lld is %.17g, not %.17g", c->name, how, (long long)o, actual,
              expected);
    }
}

static void a_folded_layer_does_both(void **state)
{
    (void)state;
    for (size_t i = 0; i < LENGTH(cases); i++)
        for (bn_dtype dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT64; dtype++) {
            const layer_case *c = &cases[i];
            folding f = folding_of(c, dtype);
            check(bn_fold(&f.shape, &f.args) == BN_STATUS_OK, "%s: %s", c->name,
                  bn_last_error_message());
            check_does_both(c, &f, "bn_fold");
            const bool wide = dtype == BN_DTYPE_FLOAT64;
            check(wide ? f.args.weight_error == 0 && f.args.bias_error == 0
                       : f.args.weight_error > 0 && f.args.weight_error <= 0x1p-24,
                  "%s: errors %g and %g", c->name, f.args.weight_error, f.args.bias_error);

            /* In place it is the same. */
            const elements weight = guarded_copy(f.folded_weight),
                           bias = guarded_copy(f.folded_bias);
            const elements source = guarded_copy(f.conv_weight),
                           source_bias = guarded_copy(f.conv_bias);
            f.args.folded_weight.data = f.conv_weight.data;
            f.args.folded_bias.data = f.conv_bias.data;
            check(bn_fold(&f.shape, &f.args) == BN_STATUS_OK, "%s", bn_last_error_message());
            check(elements_first_difference(f.conv_weight, weight) < 0 &&
                      elements_first_difference(f.conv_bias, bias) < 0,
                  "%s: in place it is something else", c->name);

            /* A layer folds its own numbers; those of the arguments are not looked at. */
            bn_layer_options options = BN_LAYER_OPTIONS_INIT;
            options.dtype = dtype;
            options.num_features = c->outputs;
            bn_layer *layer = layer_of(&options);
            check_ok(bn_layer_set_weight(layer, f.weight.data, f.weight.count), "weight");
            check_ok(bn_layer_set_bias(layer, f.bias.data, f.bias.count), "bias");
            check_ok(bn_layer_set_running_mean(layer, f.mean.data, f.mean.count), "mean");
            check_ok(bn_layer_set_running_var(layer, f.var.data, f.var.count), "var");
            elements_copy(f.conv_weight, source);
            elements_copy(f.conv_bias, source_bias);
            elements_fill_junk(f.folded_weight);
            elements_fill_junk(f.folded_bias);
            set_args(&f);
            f.args.running_mean.data = f.args.running_var.data = f.args.weight.data =
                f.args.bias.data = NULL;
            f.args.epsilon = -1;
            check_ok(bn_layer_fold(layer, &f.shape, &f.args), c->name);
            check(elements_first_difference(f.folded_weight, weight) < 0 &&
                      elements_first_difference(f.folded_bias, bias) < 0,
                  "%s: the layer folds to something else", c->name);
            bn_layer_destroy(layer);
            check(guarded_intact(), "%s: wrote beside a buffer", c->name);
            guarded_free_all();
        }
}

static void an_affine_pair(void **state)
{
    (void)state;
    for (bn_dtype dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT64; dtype++) {
        const layer_case c = { "affine", OIK, 1, 1, 5, 1 };
        folding f = folding_of(&c, dtype);
        const bn_weight_shape affine = BN_WEIGHT_AFFINE(dtype, 5);
        f.shape = affine;
        elements_fill_constant(f.conv_weight, 1);
        elements_fill_constant(f.conv_bias, 0);
        f.args.conv_weight.data = f.args.conv_bias.data = NULL;
        f.args.conv_weight.count = f.args.conv_bias.count = 0;
        check(bn_fold(&f.shape, &f.args) == BN_STATUS_OK, "%s", bn_last_error_message());
        check_does_both(&c, &f, "affine");

        /* Either result alone, and without weight and bias. */
        const elements scale = guarded_copy(f.folded_weight);
        elements_fill_junk(f.folded_weight);
        const elements junk = guarded_copy(f.folded_weight);
        f.args.folded_weight.data = NULL, f.args.folded_weight.count = 0;
        check(bn_fold(&f.shape, &f.args) == BN_STATUS_OK, "%s", bn_last_error_message());
        check(elements_first_difference(f.folded_weight, junk) < 0, "the weight was written");
        set_args(&f);
        f.args.folded_bias.data = NULL, f.args.folded_bias.count = 0;
        check(bn_fold(&f.shape, &f.args) == BN_STATUS_OK, "%s", bn_last_error_message());
        check(elements_first_difference(f.folded_weight, scale) < 0, "the weight is another one");
        elements_fill_constant(f.weight, 1);
        elements_fill_constant(f.bias, 0);
        set_args(&f);
        f.args.weight.data = f.args.bias.data = NULL, f.args.weight.count = f.args.bias.count = 0;
        check(bn_fold(&f.shape, &f.args) == BN_STATUS_OK, "%s", bn_last_error_message());
        check_does_both(&c, &f, "without weight and bias");

        /* No variance and no epsilon: scale 0. */
        elements_fill_constant(f.var, 0);
        set_args(&f);
        f.args.epsilon = 0;
        check(bn_fold(&f.shape, &f.args) == BN_STATUS_OK, "%s", bn_last_error_message());
        for (int64_t i = 0; i < 5; i++)
            check(elements_get(f.folded_weight, i) == 0 && elements_get(f.folded_bias, i) == 0,
                  "channel %lld has a scale or a shift", (long long)i);
        guarded_free_all();
    }
}

static void what_rounding_costs(void **state)
{
    (void)state;
    /* One number: 3 * (1/sqrt(2)) and (0 - 1e6) / sqrt(2) + 0.5, in float32. */
    float mean = 1e6F, var = 2, bias = 0.5F, conv = 3, weight = 0, shift = 0;
    const bn_weight_shape shape = BN_WEIGHT_OUTPUT_FIRST(BN_DTYPE_FLOAT32, 1, 1);
    bn_fold_args args = BN_FOLD_ARGS_INIT;
    args.epsilon = 0;
    args.running_mean.data = &mean, args.running_mean.count = 1;
    args.running_var.data = &var, args.running_var.count = 1;
    args.bias.data = &bias, args.bias.count = 1;
    args.conv_weight.data = &conv, args.conv_weight.count = 1;
    args.folded_weight.data = &weight, args.folded_weight.count = 1;
    args.folded_bias.data = &shift, args.folded_bias.count = 1;
    check(bn_fold(&shape, &args) == BN_STATUS_OK, "%s", bn_last_error_message());
    const double scale = 1 / sqrt(2.0), exact_weight = 3 * scale, exact_shift = -1e6 * scale + 0.5;
    check(weight == (float)exact_weight && shift == (float)exact_shift, "%.9g and %.9g", weight,
          shift);
    const double weight_error = fabs((double)weight - exact_weight) / exact_weight;
    const double bias_error = fabs((double)shift - exact_shift); /* of an output of size 1 */
    check(fabs(args.weight_error - weight_error) <= 1e-15, "%g, not %g", args.weight_error,
          weight_error);
    check(fabs(args.bias_error - bias_error) <= 1e-9, "%g, not %g", args.bias_error, bias_error);
    check(args.weight_error > 1e-9 && args.bias_error > 1e-4, "%g and %g", args.weight_error,
          args.bias_error);

    /* A weight that underflows is wholly lost. */
    conv = 1e-30F, var = 1e38F, mean = 0;
    check(bn_fold(&shape, &args) == BN_STATUS_OK, "%s", bn_last_error_message());
    check(weight == 0 && args.weight_error == 1, "%g, off by %g", (double)weight,
          args.weight_error);
}

/* ---- bad input ---- */

typedef struct scene {
    folding f;
    bn_weight_shape shape;
    elements copies[8];
} scene;

static elements *buffers(folding *f, int i)
{
    elements *const all[] = { &f->mean,        &f->var,       &f->weight,        &f->bias,
                              &f->conv_weight, &f->conv_bias, &f->folded_weight, &f->folded_bias };
    return all[i];
}

static scene scene_of(void)
{
    static const layer_case grouped = { "transposed", IOK, 2, 4, 6, 3 };
    scene s = { .f = folding_of(&grouped, BN_DTYPE_FLOAT32) };
    s.shape = s.f.shape;
    for (int i = 0; i < 8; i++) s.copies[i] = guarded_copy(*buffers(&s.f, i));
    return s;
}

/* The call is refused and has changed nothing; then all is good again. */
static void refuses(scene *s, bn_status expected, const char *words)
{
    elements before[8];
    for (int i = 0; i < 8; i++) before[i] = guarded_copy(*buffers(&s->f, i));
    const bn_fold_args args = s->f.args;
    check_refused(bn_fold(&s->f.shape, &s->f.args), expected, words);
    check(memcmp(&args, &s->f.args, sizeof args) == 0, "%s: changed the args", words);
    for (int i = 0; i < 8; i++) {
        elements *array = buffers(&s->f, i);
        check(memcmp(array->data, before[i].data, elements_bytes(*array)) == 0,
              "%s: changed buffer %d", words, i);
        elements_copy(*array, s->copies[i]);
        guarded_free(before[i].data);
    }
    check(guarded_intact(), "%s: wrote beside a buffer", words);
    s->f.shape = s->shape;
    set_args(&s->f);
}

/* Nothing to fold: what stands beside a 0 is a number, and no work. */
static void a_weight_without_values_is_folded_at_once(void **state)
{
    (void)state;
    static const int64_t most = (int64_t)1 << 62;
    const bn_weight_shape shapes[] = {
        { sizeof(bn_weight_shape), BN_DTYPE_FLOAT32, 1, most, 1, 0 },
        { sizeof(bn_weight_shape), BN_DTYPE_FLOAT32, 1, 0, 1, most },
        { sizeof(bn_weight_shape), BN_DTYPE_FLOAT32, 2, most, 1, 0 },
        { sizeof(bn_weight_shape), BN_DTYPE_FLOAT32, 1, INT64_MAX, 2, 0 },
    };
    bn_layer_options options = BN_LAYER_OPTIONS_INIT;
    alarm(60); /* a loop over such a number never ends */
    for (size_t i = 0; i < LENGTH(shapes); i++) {
        const int64_t channels = shapes[i].groups * shapes[i].channels;
        const float mean[2] = { 1, 2 }, var[2] = { 4, 9 }, value = 0;
        float bias[2] = { 10, 20 }, nothing = -1;
        bn_fold_args args = BN_FOLD_ARGS_INIT;
        args.epsilon = 0;
        args.running_mean.data = mean, args.running_mean.count = channels;
        args.running_var.data = var, args.running_var.count = channels;
        args.conv_weight.data = &value, args.folded_weight.data = &nothing;
        args.conv_bias.data = args.folded_bias.data = bias;
        args.conv_bias.count = args.folded_bias.count = channels;
        check_ok(bn_fold(&shapes[i], &args), "bn_fold");
        check(bias[0] == 4.5f && (channels == 1 || bias[1] == 6), "the bias is %g, %g", bias[0],
              bias[1]);
        check(nothing == -1 && args.weight_error == 0, "a weight of no values was written");
        options.num_features = channels;
        bn_layer *layer = layer_of(&options);
        check_ok(bn_layer_fold(layer, &shapes[i], &args), "bn_layer_fold");
        bn_layer_destroy(layer);
    }
    alarm(0);
}

static void bad_arguments(void **state)
{
    (void)state;
    scene s = scene_of();
    folding *f = &s.f;
    bn_fold_args *a = &f->args;
    check_refused(bn_fold(NULL, a), BN_STATUS_NULL_POINTER, "shape");
    check_refused(bn_fold(&f->shape, NULL), BN_STATUS_NULL_POINTER, "args");
    f->shape.struct_size = 39;
    refuses(&s, BN_STATUS_STRUCT_SIZE, "shape|struct_size|39|40");
    a->struct_size = 8;
    refuses(&s, BN_STATUS_STRUCT_SIZE, "args|struct_size|8|144");
    a->reserved = 1;
    refuses(&s, BN_STATUS_INVALID_OPTION, "reserved|1|0");
    f->shape.dtype = 77;
    refuses(&s, BN_STATUS_INVALID_OPTION, "dtype|77");

    f->shape.groups = -1;
    refuses(&s, BN_STATUS_NEGATIVE_SIZE, "groups is -1|0 or more");
    f->shape.outer = -2;
    refuses(&s, BN_STATUS_NEGATIVE_SIZE, "outer is -2|0 or more");
    f->shape.channels = INT64_MIN;
    refuses(&s, BN_STATUS_NEGATIVE_SIZE, "channels is -9223372036854775808|0 or more");
    f->shape.inner = -4;
    refuses(&s, BN_STATUS_NEGATIVE_SIZE, "inner is -4|0 or more");
    f->shape.groups = 0;
    refuses(&s, BN_STATUS_NO_CHANNELS, "channels|is 0|1 or more");
    f->shape.channels = 0;
    refuses(&s, BN_STATUS_NO_CHANNELS, "channels|is 0|1 or more");
    f->shape.outer = INT64_MAX;
    refuses(&s, BN_STATUS_SIZE_OVERFLOW, "sizes (2, 9223372036854775807, 3, 3)|63 bits");
    f->shape.groups = INT64_MAX, f->shape.inner = 0;
    refuses(&s, BN_STATUS_SIZE_OVERFLOW, "sizes (9223372036854775807, 2, 3, 0)|63 bits");

    a->running_mean.data = NULL, a->running_mean.count = 0;
    refuses(&s, BN_STATUS_NULL_POINTER, "running_mean");
    a->running_var.data = NULL;
    refuses(&s, BN_STATUS_NULL_POINTER, "running_var");
    a->weight.data = NULL;
    refuses(&s, BN_STATUS_NULL_POINTER, "weight");
    a->conv_weight.data = NULL,
    a->conv_weight.count = 0; /* there is more than one value a channel */
    refuses(&s, BN_STATUS_NULL_POINTER, "conv_weight");
    a->folded_weight.data = NULL;
    refuses(&s, BN_STATUS_NULL_POINTER, "folded_weight");
    a->folded_bias.data = NULL;
    refuses(&s, BN_STATUS_NULL_POINTER, "folded_bias");
    a->running_mean.count = 5;
    refuses(&s, BN_STATUS_COUNT_MISMATCH, "running_mean.count is 5|6");
    a->running_var.count = 7;
    refuses(&s, BN_STATUS_COUNT_MISMATCH, "running_var.count is 7|6");
    a->weight.count = 0;
    refuses(&s, BN_STATUS_COUNT_MISMATCH, "weight.count is 0|6");
    a->bias.count = 5;
    refuses(&s, BN_STATUS_COUNT_MISMATCH, "bias.count is 5|6");
    a->conv_weight.count = 37;
    refuses(&s, BN_STATUS_COUNT_MISMATCH, "conv_weight.count is 37|36|groups*outer*channels*inner");
    a->conv_bias.count = 3;
    refuses(&s, BN_STATUS_COUNT_MISMATCH, "conv_bias.count is 3|6|groups*channels");
    a->folded_weight.count = -1;
    refuses(&s, BN_STATUS_NEGATIVE_SIZE, "folded_weight.count is -1");
    a->folded_bias.count = 3;
    refuses(&s, BN_STATUS_COUNT_MISMATCH, "folded_bias.count is 3|6");

    a->conv_weight.data = (const char *)a->conv_weight.data + 1;
    refuses(&s, BN_STATUS_MISALIGNED, "conv_weight|4");
    a->folded_weight.data = (float *)a->folded_weight.data + 1;
    a->conv_weight.data = f->folded_weight.data;
    refuses(&s, BN_STATUS_OVERLAP, "folded_weight overlaps conv_weight partly");
    a->folded_bias.data = f->mean.data;
    refuses(&s, BN_STATUS_OVERLAP, "folded_bias overlaps running_mean");
    a->folded_bias.data = f->conv_weight.data;
    refuses(&s, BN_STATUS_OVERLAP, "folded_bias overlaps conv_weight");
    a->epsilon = -1e-9;
    refuses(&s, BN_STATUS_EPSILON, "epsilon is -1e-09|at least 0");
    a->epsilon = NAN;
    refuses(&s, BN_STATUS_EPSILON, "epsilon is nan|at least 0");
    check(bn_fold(&f->shape, a) == BN_STATUS_OK, "%s", bn_last_error_message());
}

static void bad_numbers(void **state)
{
    (void)state;
    static const char *const names[] = { "running_mean", "running_var", "weight",
                                         "bias",         "conv_weight", "conv_bias" };
    static const double bad[] = { NAN, INFINITY, -INFINITY };
    static const char *const words[] = { "nan", "inf", "-inf" };
    scene s = scene_of();
    for (int i = 0; i < 6; i++)
        for (size_t v = 0; v < LENGTH(bad); v++)
            for (int64_t at = 0; at < buffers(&s.f, i)->count; at += 5) {
                char text[80];
                snprintf(text, sizeof text, "%s[%lld] is %s, expected a finite number", names[i],
                         (long long)at, words[v]);
                elements_set(*buffers(&s.f, i), at, bad[v]);
                refuses(&s, BN_STATUS_NUMBER, text);
            }
    elements_set(s.f.var, 4, -0.5);
    refuses(&s, BN_STATUS_NUMBER, "running_var[4] is -0.5|at least 0");

    /* Results that float32 does not hold: the last value of a channel, after others were fine. */
    elements_set(s.f.conv_weight, 35, 3e38);
    elements_set(s.f.weight, 5, 100);
    refuses(&s, BN_STATUS_NUMBER, "folded_weight[35] is inf|a finite number");
    elements_set(s.f.mean, 5, 3e38);
    elements_set(s.f.weight, 5, 100);
    refuses(&s, BN_STATUS_NUMBER, "folded_bias[5] is -inf|a finite number");
}

static void bad_layers(void **state)
{
    (void)state;
    scene s = scene_of();
    check_refused(bn_layer_fold(NULL, &s.f.shape, &s.f.args), BN_STATUS_NULL_POINTER, "layer");
    bn_layer_options options = BN_LAYER_OPTIONS_INIT;
    options.num_features = 5;
    bn_layer *layer = layer_of(&options);
    check_refused(bn_layer_fold(layer, NULL, &s.f.args), BN_STATUS_NULL_POINTER, "shape");
    check_refused(bn_layer_fold(layer, &s.f.shape, NULL), BN_STATUS_NULL_POINTER, "args");
    check_refused(bn_layer_fold(layer, &s.f.shape, &s.f.args), BN_STATUS_LAYER_MISMATCH,
                  "channels is 6|5");
    s.f.shape.dtype = BN_DTYPE_FLOAT64;
    check_refused(bn_layer_fold(layer, &s.f.shape, &s.f.args), BN_STATUS_LAYER_MISMATCH,
                  "dtype is float64|float32");
    bn_layer_destroy(layer);

    options.num_features = 6;
    options.track_running_stats = 0;
    layer = layer_of(&options);
    s.f.shape.dtype = BN_DTYPE_FLOAT32;
    check_refused(bn_layer_fold(layer, &s.f.shape, &s.f.args), BN_STATUS_NO_RUNNING_STATISTICS,
                  "running statistics");
    bn_layer_destroy(layer);
    check(elements_first_difference(s.f.folded_weight, s.copies[6]) < 0 &&
              elements_first_difference(s.f.folded_bias, s.copies[7]) < 0,
          "a refused call wrote");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_folded_layer_does_both, fixture_teardown),
        cmocka_unit_test_teardown(an_affine_pair, fixture_teardown),
        cmocka_unit_test_teardown(what_rounding_costs, fixture_teardown),
        cmocka_unit_test_teardown(bad_arguments, fixture_teardown),
        cmocka_unit_test_teardown(a_weight_without_values_is_folded_at_once, fixture_teardown),
        cmocka_unit_test_teardown(bad_numbers, fixture_teardown),
        cmocka_unit_test_teardown(bad_layers, fixture_teardown),
    };
    return cmocka_run_group_tests_name("abi: folding", tests, NULL, NULL);
}
