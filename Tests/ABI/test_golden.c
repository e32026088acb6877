/*
 * The results themselves: digests of what every operation writes, over a wide grid of types, layouts, shapes and
 * options, are those recorded in golden.txt, with every instruction set that the machine has and on any number of
 * threads. Other tests say which results are right; this one says that a change has not moved any bit of them.
 *
 *     test_abi_golden                    compares
 *     test_abi_golden --record FILE      writes FILE anew, for a change that means to move bits
 *
 * Input values are made of integers alone, so that they are the same wherever this runs.
 */
#include "check.h"

#include <batchnorm.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "half.h"

/* ---- the grid ---- */

static const struct {
    int rank;
    int64_t sizes[5];
} shapes[] = {
    { 2, { 1, 7 } },           { 2, { 128, 32 } },        { 2, { 700, 33 } },
    { 2, { 5, 1500 } },        { 2, { 20000, 1 } },       { 3, { 6, 5, 301 } },
    { 3, { 1, 130, 65 } },     { 4, { 2, 3, 5, 7 } },     { 4, { 16, 19, 7, 7 } },
    { 4, { 4, 17, 28, 28 } },  { 4, { 2, 65, 20, 20 } },  { 4, { 3, 2, 1, 20011 } },
    { 5, { 3, 16, 2, 9, 5 } }, { 4, { 4, 8, 112, 112 } },
};
enum { LARGE = 13 }; /* from this shape on: the first variants only */

typedef enum values { ORDINARY, FAR, EXTREME, NONFINITE } values;

typedef struct variant {
    const char *name;
    values
        values; /* FAR: a mean of many deviations; EXTREME: some channels whose coefficients float32 cannot hold */
    int activation; /* 0: none, 1: ReLU, 2: leaky ReLU */
    bool bare;      /* neither weight nor bias */
    bool residual;
    bool by_output; /* backward takes the output in place of the activation's mask */
    bool mask, lengths, pass;
    bool cumulative;
} variant;

static const variant variants[] = {
    { .name = "plain" },
    { .name = "far", .values = FAR, .cumulative = true },
    { .name = "relu", .activation = 1 },
    { .name = "bare", .bare = true },
    { .name = "extreme", .values = EXTREME },
    { .name = "nonfinite", .values = NONFINITE },
    { .name = "leaky-residual-output", .activation = 2, .residual = true, .by_output = true },
    { .name = "residual", .residual = true },
    { .name = "mask", .mask = true },
    { .name = "relu-residual-mask", .activation = 1, .residual = true, .mask = true },
    { .name = "leaky-mask-pass", .activation = 2, .mask = true, .pass = true },
    { .name = "lengths-far", .values = FAR, .lengths = true },
    { .name = "extreme-relu-mask", .values = EXTREME, .activation = 1, .mask = true },
};
enum { FIRST_VARIANTS = 3 };

/* ---- values ---- */

static uint32_t random_state;

static int32_t random_integer(int32_t bound) /* of [-bound, bound] */
{
    random_state = random_state * 1664525u + 1013904223u;
    return (int32_t)((random_state >> 8) % (uint32_t)(2 * bound + 1)) - bound;
}

/* Of a bell's shape, with a deviation of about 1; a multiple of 2^-10. */
static double random_value(void)
{
    int32_t sum = 0;
    for (int i = 0; i < 4; i++) sum += random_integer(900);
    return sum * 0x1p-10;
}

static size_t element_size(bn_dtype dtype)
{
    return dtype == BN_DTYPE_FLOAT64 ? 8 : dtype == BN_DTYPE_FLOAT32 ? 4 : 2;
}

static bn_dtype parameter_type(bn_dtype dtype)
{
    return dtype == BN_DTYPE_FLOAT64 ? BN_DTYPE_FLOAT64 : BN_DTYPE_FLOAT32;
}

static half_format format_of(bn_dtype dtype)
{
    return dtype == BN_DTYPE_FLOAT16 ? half_float16 : half_bfloat16;
}

static void put(void *array, bn_dtype dtype, int64_t index, double value)
{
    switch (dtype) {
    case BN_DTYPE_FLOAT32:
        ((float *)array)[index] = (float)value;
        break;
    case BN_DTYPE_FLOAT64:
        ((double *)array)[index] = value;
        break;
    default:
        ((uint16_t *)array)[index] =
            half_bits(format_of(dtype), half_round(format_of(dtype), value));
    }
}

static void *made(size_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 64) / 64 * 64 + 64);
    if (memory == NULL) abort();
    memset(memory, 0x5B, bytes); /* what is not written shows */
    return memory;
}

static void *random_array(bn_dtype dtype, int64_t count, double mean, double deviation)
{
    void *array = made((size_t)count * element_size(dtype));
    for (int64_t i = 0; i < count; i++) put(array, dtype, i, mean + deviation * random_value());
    return array;
}

/* ---- a case: one problem and variant, with all its arrays ---- */

typedef struct scene {
    const variant *variant;
    bn_problem problem;
    bn_dtype parameter;
    int64_t channels, positions, count, bits;
    void *input, *grad_output, *residual;
    void *weight, *bias, *running_mean, *running_var;
    uint8_t *mask;
    int64_t *lengths;

    /* written */
    void *output, *grad_input, *grad_residual, *grad_weight, *grad_bias, *mean, *var;
    uint8_t *activation_mask;
    double *saved_mean, *saved_rest, *saved_invstd, *first, *second, *third;
    int64_t batches, *skipped;
} scene;

static int64_t channel_of(const scene *s, int64_t index)
{
    return s->problem.layout == BN_LAYOUT_NHWC
               ? index % s->channels
               : index / (s->positions / s->problem.sizes[0]) % s->channels;
}

static void fill_input(scene *s)
{
    const bn_dtype dtype = s->problem.dtype;
    const bool is_half = element_size(dtype) == 2;
    const double mean = s->variant->values != FAR ? 0.5 : is_half ? 40 : 3000;
    for (int64_t i = 0; i < s->count; i++) {
        const int64_t channel = channel_of(s, i);
        double value = mean * (double)(1 + channel % 3) + 1.5 * random_value();
        if (s->variant->values == EXTREME && !is_half && channel % 7 == 3)
            value = dtype == BN_DTYPE_FLOAT64 ? 0x1p1010 : 0x1p120;
        if (s->variant->values == EXTREME && !is_half && channel % 7 == 4)
            value *= dtype == BN_DTYPE_FLOAT64 ? 0x1p-1030 : 0x1p-135;
        if (s->variant->values == NONFINITE && channel % 5 == 1 && i % 11 == 3)
            value = channel % 2 == 0 ? (double)NAN : (double)INFINITY;
        put(s->input, dtype, i, value);
    }
}

static void fill_parameters(scene *s)
{
    const double tiny = s->parameter == BN_DTYPE_FLOAT64 ? 0x1p-1030 : 0x1p-135;
    const double huge = s->parameter == BN_DTYPE_FLOAT64 ? 0x1p1010 : 0x1p120;
    for (int64_t c = 0; c < s->channels; c++) {
        double weight = 1 + 0.5 * random_value(), mean = random_value();
        double var = 0.5 + 0.25 * (double)(c % 9);
        if (s->variant->values == EXTREME) {
            if (c % 7 == 1) weight = tiny;
            if (c % 7 == 2) weight = -huge;
            if (c % 7 == 4) var = tiny;
            if (c % 7 == 5) mean = -huge;
        }
        put(s->weight, s->parameter, c, weight);
        put(s->bias, s->parameter, c, random_value());
        put(s->running_mean, s->parameter, c, mean);
        put(s->running_var, s->parameter, c, var);
    }
}

static void fill_positions(scene *s)
{
    for (int64_t i = 0; i < s->positions; i++) {
        const int part =
            (int)(i / 97 % 3); /* long stretches of either kind as well as single positions */
        s->mask[i] = part == 0 || random_integer(100) > (part == 1 ? 80 : -40);
    }
    s->mask[s->positions - 1] = 1;
    const int64_t steps = s->problem.rank == 3 ? s->problem.sizes[2] : 1;
    for (int64_t n = 0; n < s->problem.sizes[0]; n++)
        s->lengths[n] = (random_integer(1000) + 1000) * steps / 2000;
    s->lengths[s->problem.sizes[0] - 1] = steps;
}

static scene scene_make(bn_problem problem, const variant *v)
{
    scene s = { .problem = problem, .variant = v, .parameter = parameter_type(problem.dtype) };
    random_state = 20261126;
    s.channels = problem.sizes[1];
    s.positions = problem.sizes[0];
    for (int i = 2; i < problem.rank; i++) s.positions *= problem.sizes[i];
    s.count = s.positions * s.channels;
    s.bits = (s.count + 7) / 8;

    const size_t tensor = (size_t)s.count * element_size(problem.dtype);
    const size_t vector = (size_t)s.channels * element_size(s.parameter);
    s.input = made(tensor);
    s.weight = made(vector), s.bias = made(vector);
    s.running_mean = made(vector), s.running_var = made(vector);
    s.mask = made((size_t)s.positions);
    s.lengths = made((size_t)problem.sizes[0] * sizeof(int64_t));
    fill_input(&s);
    fill_parameters(&s);
    fill_positions(&s);
    s.grad_output = random_array(problem.dtype, s.count, 0.125, 1);
    s.residual = random_array(problem.dtype, s.count, 0.25, 1);

    s.output = made(tensor), s.grad_input = made(tensor), s.grad_residual = made(tensor);
    s.grad_weight = made(vector), s.grad_bias = made(vector);
    s.mean = made(vector), s.var = made(vector);
    s.activation_mask = made((size_t)s.bits);
    double **const statistics[] = { &s.saved_mean, &s.saved_rest, &s.saved_invstd,
                                    &s.first,      &s.second,     &s.third };
    for (size_t i = 0; i < LENGTH(statistics); i++)
        *statistics[i] = made((size_t)s.channels * sizeof(double));
    s.skipped = made(2 * (size_t)s.channels * sizeof(int64_t));
    return s;
}

static void scene_free(scene *s)
{
    void *const all[] = {
        s->input,        s->grad_output,     s->residual,    s->weight,     s->bias,
        s->running_mean, s->running_var,     s->mask,        s->lengths,    s->output,
        s->grad_input,   s->grad_residual,   s->grad_weight, s->grad_bias,  s->mean,
        s->var,          s->activation_mask, s->saved_mean,  s->saved_rest, s->saved_invstd,
        s->first,        s->second,          s->third,       s->skipped
    };
    for (size_t i = 0; i < LENGTH(all); i++) free(all[i]);
}

/* ---- digests ---- */

static uint64_t mix(uint64_t digest, uint64_t word) /* FNV-1a, by words */
{
    return (digest ^ word) * 0x100000001B3u ^ digest >> 29;
}

/* Of some elements; all NaNs count as the same. */
static uint64_t digest(uint64_t so_far, const void *array, bn_dtype dtype, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        uint64_t word;
        if (dtype == BN_DTYPE_FLOAT64) {
            memcpy(&word, (const double *)array + i, 8);
            if (isnan(((const double *)array)[i])) word = 1;
        } else if (dtype == BN_DTYPE_FLOAT32) {
            uint32_t bits;
            memcpy(&bits, (const float *)array + i, 4);
            word = isnan(((const float *)array)[i]) ? 1 : bits;
        } else {
            const uint16_t bits = ((const uint16_t *)array)[i];
            word = isnan(half_value(format_of(dtype), bits)) ? 1 : bits;
        }
        so_far = mix(so_far, word);
    }
    return so_far;
}

static uint64_t digest_bytes(uint64_t so_far, const void *array, int64_t count)
{
    for (int64_t i = 0; i < count; i++) so_far = mix(so_far, ((const uint8_t *)array)[i]);
    return so_far;
}

enum { START = 1469598103 };

static uint64_t tensor_digest(const scene *s, uint64_t so_far, const void *tensor)
{
    return digest(so_far, tensor, s->problem.dtype, s->count);
}

static uint64_t vector_digest(const scene *s, uint64_t so_far, const void *vector)
{
    return digest(so_far, vector, s->parameter, s->channels);
}

static uint64_t float64_digest(const scene *s, uint64_t so_far, const double *vector)
{
    return digest(so_far, vector, BN_DTYPE_FLOAT64, s->channels);
}

/* ---- the calls ---- */

static void done(const scene *s, const char *call, bn_status status)
{
    check(status == BN_STATUS_OK, "%s, %s: %s: %s", call, s->variant->name, bn_status_name(status),
          bn_last_error_message());
}

/* The nouns that the argument structs have in common. */
static bn_activation activation(const scene *s)
{
    return s->variant->activation == 2 ? (bn_activation)BN_LEAKY_RELU(0.0625)
                                       : (bn_activation){ .kind = s->variant->activation };
}

static bn_positions positions(const scene *s)
{
    bn_positions p = { .masked = s->variant->pass ? BN_MASKED_PASS : BN_MASKED_ZERO };
    if (s->variant->mask) p.mask = (bn_byte_view){ s->mask, s->positions };
    if (s->variant->lengths) p.lengths = (bn_int64_view){ s->lengths, s->problem.sizes[0] };
    return p;
}

static bn_saved saved(const scene *s)
{
    return (bn_saved){ { s->saved_mean, s->channels },
                       { s->saved_invstd, s->channels },
                       { s->saved_rest, s->channels } };
}

static bn_view parameter(const scene *s, const void *values)
{
    return s->variant->bare ? (bn_view)BN_ABSENT : (bn_view){ values, s->channels };
}

static bn_forward_training_args training_args(scene *s)
{
    const size_t vector = (size_t)s->channels * element_size(s->parameter);
    memcpy(s->mean, s->running_mean, vector);
    memcpy(s->var, s->running_var, vector);
    s->batches = 3;
    memset(s->skipped, 0, 2 * (size_t)s->channels * sizeof(int64_t));
    bn_forward_training_args args = {
        BN_FORWARD_TRAINING_ARGS_DEFAULTS,
        .averaging = s->variant->cumulative ? BN_AVERAGING_CUMULATIVE : BN_AVERAGING_EXPONENTIAL,
        .one_value = BN_ONE_VALUE_ALLOW,
        .input = { s->input, s->count },
        .output = { s->output, s->count },
        .weight = parameter(s, s->weight),
        .bias = parameter(s, s->bias),
        .running_mean = { s->mean, s->channels },
        .running_var = { s->var, s->channels },
        .num_batches_tracked = &s->batches,
        .skipped_batches = { s->skipped, 2 * s->channels },
        .saved = saved(s),
        .activation = activation(s),
        .positions = positions(s),
    };
    if (s->variant->residual) args.residual = (bn_view){ s->residual, s->count };
    if (s->variant->activation)
        args.activation_mask = (bn_mutable_byte_view){ s->activation_mask, s->bits };
    return args;
}

static bn_forward_inference_args inference_args(scene *s)
{
    bn_forward_inference_args args = {
        BN_FORWARD_INFERENCE_ARGS_DEFAULTS,
        .input = { s->input, s->count },
        .output = { s->output, s->count },
        .weight = parameter(s, s->weight),
        .bias = parameter(s, s->bias),
        .running_mean = { s->running_mean, s->channels },
        .running_var = { s->running_var, s->channels },
        .activation = activation(s),
        .positions = positions(s),
    };
    if (s->variant->residual) args.residual = (bn_view){ s->residual, s->count };
    if (s->variant->activation)
        args.activation_mask = (bn_mutable_byte_view){ s->activation_mask, s->bits };
    return args;
}

static bn_backward_args backward_args(scene *s, bn_statistics statistics)
{
    bn_backward_args args = {
        BN_BACKWARD_ARGS_DEFAULTS,
        .statistics = statistics,
        .input = { s->input, s->count },
        .grad_output = { s->grad_output, s->count },
        .grad_input = { s->grad_input, s->count },
        .grad_weight = { s->grad_weight, s->channels },
        .grad_bias = { s->grad_bias, s->channels },
        .weight = parameter(s, s->weight),
        .saved = saved(s),
        .running_mean = { s->running_mean, s->channels },
        .running_var = { s->running_var, s->channels },
        .activation = activation(s),
        .positions = positions(s),
    };
    if (s->variant->by_output)
        args.output = (bn_view){ s->output, s->count };
    else if (s->variant->activation)
        args.activation_mask = (bn_byte_view){ s->activation_mask, s->bits };
    if (s->variant->residual) args.grad_residual = (bn_mutable_view){ s->grad_residual, s->count };
    return args;
}

/* ---- the operations: each writes, and gives a digest of all that it has written ---- */

static uint64_t forward_digest(const scene *s)
{
    uint64_t d = tensor_digest(s, START, s->output);
    return s->variant->activation ? digest_bytes(d, s->activation_mask, s->bits) : d;
}

static uint64_t training_digest(const scene *s)
{
    uint64_t d = forward_digest(s);
    d = vector_digest(s, vector_digest(s, d, s->mean), s->var);
    d = float64_digest(s, float64_digest(s, d, s->saved_mean), s->saved_rest);
    d = float64_digest(s, d, s->saved_invstd);
    d = digest_bytes(d, s->skipped, 2 * s->channels * (int64_t)sizeof(int64_t));
    return mix(d, (uint64_t)s->batches);
}

static uint64_t gradients_digest(const scene *s)
{
    uint64_t d = tensor_digest(s, START, s->grad_input);
    d = vector_digest(s, vector_digest(s, d, s->grad_weight), s->grad_bias);
    return s->variant->residual ? tensor_digest(s, d, s->grad_residual) : d;
}

static uint64_t training(scene *s)
{
    bn_forward_training_args args = training_args(s);
    done(s, "training forward", bn_forward_training(&s->problem, &args));
    return training_digest(s);
}

static uint64_t backward(scene *s)
{
    const bn_backward_args args = backward_args(s, BN_STATISTICS_BATCH);
    done(s, "backward", bn_backward(&s->problem, &args));
    return gradients_digest(s);
}

static uint64_t renormalize(scene *s)
{
    const bn_forward_inference_args args = inference_args(s);
    const bn_saved statistics = saved(s);
    done(s, "forward by saved statistics", bn_normalize_saved(&s->problem, &statistics, &args));
    return forward_digest(s);
}

/* Both operations in two parts each. */
static uint64_t split(scene *s)
{
    bn_moments moments = BN_MOMENTS_INIT;
    moments.channels = s->channels;
    moments.mean = s->first, moments.mean_rest = s->second, moments.m2 = s->third;
    const bn_positions taking_part = positions(s);
    done(s, "moments", bn_moments_compute(&s->problem, s->input, s->count, &taking_part, &moments));
    uint64_t d = float64_digest(s, float64_digest(s, START, s->first), s->second);
    d = mix(float64_digest(s, d, s->third), (uint64_t)moments.count);
    bn_forward_training_args forward = training_args(s);
    done(s, "normalize", bn_normalize(&s->problem, &moments, &forward));
    d = mix(d, training_digest(s));

    bn_gradient_sums sums = BN_GRADIENT_SUMS_INIT;
    sums.channels = s->channels;
    sums.sum_dy = s->first, sums.sum_dy_xmu = s->second;
    const bn_backward_args args = backward_args(s, BN_STATISTICS_BATCH);
    done(s, "reduce", bn_backward_reduce(&s->problem, &args, &sums));
    d = float64_digest(s, float64_digest(s, d, s->first), s->second);
    done(s, "apply", bn_backward_apply(&s->problem, &sums, &args));
    return mix(d, gradients_digest(s));
}

static uint64_t inference(scene *s)
{
    const bn_forward_inference_args args = inference_args(s);
    done(s, "inference forward", bn_forward_inference(&s->problem, &args));
    return forward_digest(s);
}

static uint64_t frozen(scene *s)
{
    const bn_backward_args args = backward_args(s, BN_STATISTICS_RUNNING);
    done(s, "frozen backward", bn_backward(&s->problem, &args));
    return gradients_digest(s);
}

/* In this order: a backward follows the forward that it belongs to. */
static const struct {
    const char *name;
    uint64_t (*run)(scene *s);
} operations[] = {
    { "training", training }, { "backward", backward },   { "renormalize", renormalize },
    { "split", split },       { "inference", inference }, { "frozen", frozen },
};

/* ---- every case, one after the other ---- */

enum { NAME = 96 };
typedef void (*visit)(const char *name, uint64_t digest, void *context);

static void visit_scene(scene *s, const char *name, visit visitor, void *context)
{
    for (size_t i = 0; i < LENGTH(operations); i++) {
        char full[NAME + 16];
        snprintf(full, sizeof full, "%s %s", name, operations[i].name);
        uint64_t d = operations[i].run(s);
        visitor(full, (d ^ d >> 32) & 0xFFFFFFFFu, context);
    }
}

static void visit_all(visit visitor, void *context)
{
    static const char *const dtypes[] = { "float32", "float64", "bfloat16", "float16" };
    static const char *const layouts[] = { "NCHW", "NHWC" };
    for (size_t i = 0; i < LENGTH(shapes); i++)
        for (int32_t dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT16; dtype++)
            for (int32_t layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++) {
                if (shapes[i].rank == 2 && layout == BN_LAYOUT_NHWC) continue;
                bn_problem problem = BN_PROBLEM_INIT;
                problem.dtype = dtype;
                problem.layout = layout;
                problem.rank = shapes[i].rank;
                memcpy(problem.sizes, shapes[i].sizes, sizeof problem.sizes);
                char sizes[48] = "";
                for (int k = 0; k < problem.rank; k++)
                    snprintf(sizes + strlen(sizes), sizeof sizes - strlen(sizes), "%s%lld",
                             k > 0 ? "x" : "", (long long)problem.sizes[k]);
                const size_t count = i < LARGE ? LENGTH(variants) : FIRST_VARIANTS;
                for (size_t v = 0; v < count; v++) {
                    if (variants[v].lengths && problem.rank != 3) continue;
                    char name[NAME];
                    snprintf(name, sizeof name, "%s %s %s %s", dtypes[dtype - 1],
                             layouts[layout - 1], sizes, variants[v].name);
                    scene s = scene_make(problem, &variants[v]);
                    visit_scene(&s, name, visitor, context);
                    scene_free(&s);
                }
            }
}

/* ---- recording and comparing ---- */

/* A line for each case: its name, and a digest for each of the operations. */
static void write_digest(const char *name, uint64_t digest, void *context)
{
    static size_t index;
    FILE *file = context;
    if (index % LENGTH(operations) == 0)
        fprintf(file, "%.*s", (int)(strrchr(name, ' ') - name), name);
    index++;
    fprintf(file, " %08llx%s", (unsigned long long)digest,
            index % LENGTH(operations) == 0 ? "\n" : "");
}

static void record(const char *path)
{
    FILE *file = fopen(path, "w");
    if (file == NULL) {
        perror(path);
        exit(1);
    }
    fprintf(file, "# Written by test_abi_golden --record: what test_golden.c compares with.\n#");
    for (size_t i = 0; i < LENGTH(operations); i++) fprintf(file, " %s", operations[i].name);
    fprintf(file, "\n");
    visit_all(write_digest, file);
    fclose(file);
}

typedef struct comparison {
    FILE *file;
    char line[256];
    char *rest; /* of the line: digests that are not compared yet */
    const char *setting;
    int64_t compared, different;
} comparison;

static void compare_digest(const char *name, uint64_t digest, void *context)
{
    comparison *c = context;
    if (c->compared % (int64_t)LENGTH(operations) == 0) {
        do {
            check(fgets(c->line, sizeof c->line, c->file), "no line for %s", name);
        } while (c->line[0] == '#');
        const size_t length = (size_t)(strrchr(name, ' ') - name);
        check(strncmp(c->line, name, length) == 0, "%s stands where %s should", c->line, name);
        c->rest = c->line + length;
    }
    const uint64_t recorded = strtoull(c->rest, &c->rest, 16);
    if (recorded != digest && c->different++ < 20)
        print_error("%s, %s: %08llx, recorded %08llx\n", name, c->setting,
                    (unsigned long long)digest, (unsigned long long)recorded);
    c->compared++;
}

static void compare(const char *setting)
{
    comparison c = { .file = fopen(GOLDEN_FILE, "r"), .setting = setting };
    check(c.file, "%s cannot be opened", GOLDEN_FILE);
    visit_all(compare_digest, &c);
    check(fgets(c.line, sizeof c.line, c.file) == NULL, "a line too many: %s", c.line);
    fclose(c.file);
    check(c.different == 0, "%lld of %lld results differ, %s", (long long)c.different,
          (long long)c.compared, setting);
}

static void results_are_those_recorded(void **state)
{
    (void)state;
    static const int32_t threads[] = { 1, 2, 5 };
    bn_set_max_isa(BN_ISA_AVX512);
    const bn_isa best = bn_get_isa();
    for (bn_isa isa = BN_ISA_GENERIC; isa <= best; isa++)
        for (size_t t = 0; t < LENGTH(threads); t++) {
            if (isa != best && threads[t] != 2) continue;
            bn_set_max_isa(isa);
            bn_set_num_threads(threads[t]);
            char setting[64];
            snprintf(setting, sizeof setting, "%s on %d threads", bn_isa_name(isa), threads[t]);
            compare(setting);
        }
    if (best < BN_ISA_AVX512) print_message("skipped on this machine: avx512\n");
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "--record") == 0) {
        record(argv[2]);
        return 0;
    }
    const struct CMUnitTest tests[] = { cmocka_unit_test(results_are_those_recorded) };
    return cmocka_run_group_tests_name("golden", tests, NULL, NULL);
}
