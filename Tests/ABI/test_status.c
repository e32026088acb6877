/*
 * Bad input to the stateless functions: each kind has a status of its own and a message that quotes actual
 * and expected, and changes nothing, anywhere.
 */
#include "check.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "fixture.h"

typedef enum operation { TRAINING, INFERENCE, BACKWARD, OPERATIONS } operation;

static const char *const operation_names[] = { "training", "inference", "backward" };

static bn_status call(fixture *f, operation op)
{
    switch (op) {
    case TRAINING:
        return bn_forward_training(&f->problem, &f->training);
    case INFERENCE:
        return bn_forward_inference(&f->problem, &f->inference);
    default:
        return bn_backward(&f->problem, &f->backward);
    }
}

/* The call fails as it must and changes nothing; then the arguments are good again. */
static void refuses(fixture *f, operation op, bn_status expected, const char *words)
{
    const bn_forward_training_args before = f->training;
    fixture_remember(f);
    check_refused(call(f, op), expected, words);
    const char *changed = fixture_changed(f);
    check(changed == NULL, "%s, %s (%s): changed %s", operation_names[op], bn_status_name(expected),
          words, changed);
    check(memcmp(&before, &f->training, sizeof before) == 0, "%s, %s (%s): changed the args",
          operation_names[op], bn_status_name(expected), words);
    check(guarded_intact(), "%s, %s (%s): wrote beside a buffer", operation_names[op],
          bn_status_name(expected), words);
    fixture_restore_args(f);
}

static fixture images(bn_dtype dtype)
{
    const bn_problem problem = BN_PROBLEM_2D(dtype, BN_LAYOUT_NCHW, 2, 3, 4, 5);
    return fixture_make(problem, PLACE_START);
}

/* ---- 1xx: the call itself ---- */

static void null_pointers(void **state)
{
    (void)state;
    fixture f = images(BN_DTYPE_FLOAT32);
    check_refused(bn_forward_training(NULL, &f.training), BN_STATUS_NULL_POINTER, "problem");
    check_refused(bn_forward_training(&f.problem, NULL), BN_STATUS_NULL_POINTER, "args");
    check_refused(bn_forward_inference(NULL, &f.inference), BN_STATUS_NULL_POINTER, "problem");
    check_refused(bn_forward_inference(&f.problem, NULL), BN_STATUS_NULL_POINTER, "args");
    check_refused(bn_backward(NULL, &f.backward), BN_STATUS_NULL_POINTER, "problem");
    check_refused(bn_backward(&f.problem, NULL), BN_STATUS_NULL_POINTER, "args");

    f.training.input.data = NULL;
    refuses(&f, TRAINING, BN_STATUS_NULL_POINTER, "input");
    f.training.input.data = NULL, f.training.input.count = 0;
    refuses(&f, TRAINING, BN_STATUS_NULL_POINTER, "input");
    f.training.output.data = NULL;
    refuses(&f, TRAINING, BN_STATUS_NULL_POINTER, "output");
    /* Only NULL with count 0 means absent. */
    f.training.weight.data = NULL;
    refuses(&f, TRAINING, BN_STATUS_NULL_POINTER, "weight");
    f.training.bias.data = NULL;
    refuses(&f, TRAINING, BN_STATUS_NULL_POINTER, "bias");
    f.training.saved.mean.data = NULL;
    refuses(&f, TRAINING, BN_STATUS_NULL_POINTER, "saved.mean");
    f.training.saved.invstd.data = NULL;
    refuses(&f, TRAINING, BN_STATUS_NULL_POINTER, "saved.invstd");
    /* Both running statistics or neither. */
    f.training.running_mean.data = NULL, f.training.running_mean.count = 0;
    refuses(&f, TRAINING, BN_STATUS_NULL_POINTER, "running_mean");
    f.training.running_var.data = NULL, f.training.running_var.count = 0;
    refuses(&f, TRAINING, BN_STATUS_NULL_POINTER, "running_var");
    f.training.averaging = BN_AVERAGING_CUMULATIVE, f.training.num_batches_tracked = NULL;
    refuses(&f, TRAINING, BN_STATUS_NULL_POINTER, "num_batches_tracked");
    /* Skipped batches are some of those tracked. */
    f.training.num_batches_tracked = NULL;
    refuses(&f, TRAINING, BN_STATUS_NULL_POINTER, "num_batches_tracked");
    f.training.skipped_batches.data = NULL;
    refuses(&f, TRAINING, BN_STATUS_NULL_POINTER, "skipped_batches");

    f.inference.input.data = NULL;
    refuses(&f, INFERENCE, BN_STATUS_NULL_POINTER, "input");
    f.inference.output.data = NULL;
    refuses(&f, INFERENCE, BN_STATUS_NULL_POINTER, "output");
    f.inference.weight.data = NULL;
    refuses(&f, INFERENCE, BN_STATUS_NULL_POINTER, "weight");
    f.inference.bias.data = NULL;
    refuses(&f, INFERENCE, BN_STATUS_NULL_POINTER, "bias");
    f.inference.running_mean.data = NULL;
    refuses(&f, INFERENCE, BN_STATUS_NULL_POINTER, "running_mean");
    f.inference.running_var.data = NULL, f.inference.running_var.count = 0;
    refuses(&f, INFERENCE, BN_STATUS_NULL_POINTER, "running_var");

    f.backward.input.data = NULL;
    refuses(&f, BACKWARD, BN_STATUS_NULL_POINTER, "input");
    f.backward.grad_output.data = NULL;
    refuses(&f, BACKWARD, BN_STATUS_NULL_POINTER, "grad_output");
    f.backward.grad_input.data = NULL;
    refuses(&f, BACKWARD, BN_STATUS_NULL_POINTER, "grad_input");
    f.backward.saved.mean.data = NULL, f.backward.saved.mean.count = 0;
    refuses(&f, BACKWARD, BN_STATUS_NULL_POINTER, "saved.mean");
    f.backward.saved.invstd.data = NULL, f.backward.saved.invstd.count = 0;
    refuses(&f, BACKWARD, BN_STATUS_NULL_POINTER, "saved.invstd");
    f.backward.statistics = BN_STATISTICS_RUNNING;
    f.backward.running_mean.data = NULL, f.backward.running_mean.count = 0;
    refuses(&f, BACKWARD, BN_STATUS_NULL_POINTER, "running_mean");
    f.backward.statistics = BN_STATISTICS_RUNNING;
    f.backward.running_var.data = NULL, f.backward.running_var.count = 0;
    refuses(&f, BACKWARD, BN_STATUS_NULL_POINTER, "running_var");
}

static void struct_sizes(void **state)
{
    (void)state;
    fixture f = images(BN_DTYPE_FLOAT32);
    for (operation op = TRAINING; op < OPERATIONS; op++) {
        f.problem.struct_size = 55;
        refuses(&f, op, BN_STATUS_STRUCT_SIZE, "problem|struct_size|55|56");
        f.problem.struct_size = 0;
        refuses(&f, op, BN_STATUS_STRUCT_SIZE, "problem|struct_size|0|56");
        f.problem.struct_size = UINT32_MAX;
        refuses(&f, op, BN_STATUS_STRUCT_SIZE, "problem|struct_size|4294967295|56");
    }
    f.training.struct_size = 199;
    refuses(&f, TRAINING, BN_STATUS_STRUCT_SIZE, "args|struct_size|199|72|4096");
    f.training.struct_size = 0;
    refuses(&f, TRAINING, BN_STATUS_STRUCT_SIZE, "args|struct_size|0|72|4096");
    f.inference.struct_size = 40;
    refuses(&f, INFERENCE, BN_STATUS_STRUCT_SIZE, "args|struct_size|40|48|4096");
    f.backward.struct_size = 8;
    refuses(&f, BACKWARD, BN_STATUS_STRUCT_SIZE, "args|struct_size|8|48|4096");

    /* A struct that says it is small is read no further: behind these four bytes lies a guard page. */
    uint32_t *small = guarded(4, 4, PLACE_END);
    *small = 4;
    check_refused(bn_forward_training((const bn_problem *)small, &f.training),
                  BN_STATUS_STRUCT_SIZE, "problem|4|56");
    check_refused(bn_forward_training(&f.problem, (bn_forward_training_args *)small),
                  BN_STATUS_STRUCT_SIZE, "args|4|72|4096");
    check_refused(bn_forward_inference(&f.problem, (bn_forward_inference_args *)small),
                  BN_STATUS_STRUCT_SIZE, "args|4|48|4096");
    check_refused(bn_backward(&f.problem, (bn_backward_args *)small), BN_STATUS_STRUCT_SIZE,
                  "args|4|48|4096");
}

static void unknown_options(void **state)
{
    (void)state;
    fixture f = images(BN_DTYPE_FLOAT32);
    for (operation op = TRAINING; op < OPERATIONS; op++) {
        f.problem.dtype = 0;
        refuses(&f, op, BN_STATUS_INVALID_OPTION, "dtype|0|1|2");
        f.problem.dtype = 5;
        refuses(&f, op, BN_STATUS_INVALID_OPTION, "dtype|5|1|4");
        f.problem.layout = 0;
        refuses(&f, op, BN_STATUS_INVALID_OPTION, "layout|0|1|2");
        f.problem.layout = -7;
        refuses(&f, op, BN_STATUS_INVALID_OPTION, "layout|-7|1|2");
    }
    f.training.averaging = 2;
    refuses(&f, TRAINING, BN_STATUS_INVALID_OPTION, "averaging|2|0|1");
    f.training.running_variance = -1;
    refuses(&f, TRAINING, BN_STATUS_INVALID_OPTION, "running_variance|-1|0|1");
    f.training.one_value = 3;
    refuses(&f, TRAINING, BN_STATUS_INVALID_OPTION, "one_value|3|0|1|2");
    f.training.nonfinite = 2;
    refuses(&f, TRAINING, BN_STATUS_INVALID_OPTION, "nonfinite|2|0|1");
    f.training.reserved = 9;
    refuses(&f, TRAINING, BN_STATUS_INVALID_OPTION, "reserved|9|0");
    f.inference.reserved = 1;
    refuses(&f, INFERENCE, BN_STATUS_INVALID_OPTION, "reserved|1|0");
    f.backward.statistics = 2;
    refuses(&f, BACKWARD, BN_STATUS_INVALID_OPTION, "statistics|2|0|1");
}

/* ---- 2xx: shapes ---- */

static void bad_shapes(void **state)
{
    (void)state;
    fixture f = images(BN_DTYPE_FLOAT32);
    static const int32_t ranks[] = { -1, 0, 1, 6, INT32_MAX };
    for (operation op = TRAINING; op < OPERATIONS; op++) {
        for (size_t i = 0; i < LENGTH(ranks); i++) {
            char words[32];
            snprintf(words, sizeof words, "rank|%d|2", ranks[i]);
            f.problem.rank = ranks[i];
            refuses(&f, op, BN_STATUS_RANK, words);
        }
        f.problem.sizes[0] = -1;
        refuses(&f, op, BN_STATUS_NEGATIVE_SIZE, "sizes[0]|-1");
        f.problem.sizes[1] = -3;
        refuses(&f, op, BN_STATUS_NEGATIVE_SIZE, "sizes[1]|-3");
        f.problem.sizes[3] = INT64_MIN;
        refuses(&f, op, BN_STATUS_NEGATIVE_SIZE, "sizes[3]|-9223372036854775808");
        f.problem.sizes[1] = 0;
        refuses(&f, op, BN_STATUS_NO_CHANNELS, "channels|0|1");
    }
}

static void sizes_that_overflow(void **state)
{
    (void)state;
    fixture f = images(BN_DTYPE_FLOAT32);
    for (operation op = TRAINING; op < OPERATIONS; op++) {
        /* The product of the sizes ... */
        f.problem.sizes[0] = INT64_C(1) << 40, f.problem.sizes[2] = INT64_C(1) << 40;
        refuses(&f, op, BN_STATUS_SIZE_OVERFLOW, "1099511627776|63");
        f.problem.sizes[2] = f.problem.sizes[3] = INT64_MAX;
        refuses(&f, op, BN_STATUS_SIZE_OVERFLOW, "9223372036854775807|63");
        /* ... which wraps to a small number ... */
        f.problem.sizes[0] = INT64_C(1) << 32, f.problem.sizes[2] = INT64_C(1) << 32;
        refuses(&f, op, BN_STATUS_SIZE_OVERFLOW, "4294967296|63");
        /* ... its bytes, while the elements would fit ... */
        f.problem.sizes[0] = INT64_C(1) << 61;
        f.problem.sizes[1] = f.problem.sizes[2] = f.problem.sizes[3] = 1;
        refuses(&f, op, BN_STATUS_SIZE_OVERFLOW, "2305843009213693952|4 bytes|63");
        /* ... and the channels alone, of an empty batch. */
        f.problem.sizes[0] = 0, f.problem.sizes[1] = INT64_MAX;
        refuses(&f, op, BN_STATUS_SIZE_OVERFLOW, "9223372036854775807|63");
    }
    /* Sizes beyond the rank do not count. */
    const int64_t sizes[] = { 2, 3, 4 };
    fixture matrix = fixture_make(problem_of(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 3, sizes), 0);
    matrix.problem.sizes[3] = INT64_MAX, matrix.problem.sizes[4] = -1;
    run_training(&matrix);
}

static void wrong_counts(void **state)
{
    (void)state;
    fixture f = images(BN_DTYPE_FLOAT64);
#define WRONG(op, args, member, wrong, words)                               \
    do {                                                                    \
        f.args.member.count = (wrong);                                      \
        refuses(&f, op, BN_STATUS_COUNT_MISMATCH, #member ".count|" words); \
    } while (0)
    WRONG(TRAINING, training, input, 119, "119|120");
    WRONG(TRAINING, training, input, 0, "0|120");
    WRONG(TRAINING, training, output, 121, "121|120");
    WRONG(TRAINING, training, weight, 4, "4|3");
    WRONG(TRAINING, training, weight, 0, "0|3");
    WRONG(TRAINING, training, bias, 2, "2|3");
    WRONG(TRAINING, training, running_mean, 5, "5|3");
    WRONG(TRAINING, training, running_var, 1, "1|3");
    WRONG(TRAINING, training, saved.mean, 6, "6|3");
    WRONG(TRAINING, training, saved.invstd, 7, "7|3");
    WRONG(INFERENCE, inference, input, 12, "12|120");
    WRONG(INFERENCE, inference, output, 1200, "1200|120");
    WRONG(INFERENCE, inference, weight, 120, "120|3");
    WRONG(INFERENCE, inference, bias, 1, "1|3");
    WRONG(INFERENCE, inference, running_mean, 2, "2|3");
    WRONG(INFERENCE, inference, running_var, 4, "4|3");
    WRONG(BACKWARD, backward, input, 60, "60|120");
    WRONG(BACKWARD, backward, grad_output, 3, "3|120");
    WRONG(BACKWARD, backward, grad_input, 240, "240|120");
    WRONG(BACKWARD, backward, grad_weight, 4, "4|3");
    WRONG(BACKWARD, backward, grad_bias, 2, "2|3");
    WRONG(BACKWARD, backward, weight, 30, "30|3");
    WRONG(BACKWARD, backward, saved.mean, 1, "1|3");
    WRONG(BACKWARD, backward, saved.invstd, 6, "6|3");
#undef WRONG
    f.backward.statistics = BN_STATISTICS_RUNNING, f.backward.running_mean.count = 8;
    refuses(&f, BACKWARD, BN_STATUS_COUNT_MISMATCH, "running_mean.count|8|3");
    f.backward.statistics = BN_STATISTICS_RUNNING, f.backward.running_var.count = 9;
    refuses(&f, BACKWARD, BN_STATUS_COUNT_MISMATCH, "running_var.count|9|3");

    f.training.input.count = -120;
    refuses(&f, TRAINING, BN_STATUS_NEGATIVE_SIZE, "input.count|-120");
    f.inference.running_var.count = INT64_MIN;
    refuses(&f, INFERENCE, BN_STATUS_NEGATIVE_SIZE, "running_var.count|-9223372036854775808");
    f.backward.grad_weight.count = -1;
    refuses(&f, BACKWARD, BN_STATUS_NEGATIVE_SIZE, "grad_weight.count|-1");
}

/* ---- 3xx: memory ---- */

static void *moved(const void *pointer, int64_t bytes)
{
    return (void *)((uintptr_t)pointer + (uintptr_t)bytes);
}

static void misaligned_pointers(void **state)
{
    (void)state;
    for (int dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT64; dtype++) {
        fixture f = images(dtype);
        const int64_t size = (int64_t)element_size(f.input.is_double);
        char words[64];
#define MISALIGNED(op, args, member, unit)                                        \
    do {                                                                          \
        snprintf(words, sizeof words, #member "|0x|multiple of %d", (int)(unit)); \
        for (int64_t by = 1; by < (unit); by++) {                                 \
            f.args.member.data = moved(f.args.member.data, by);                   \
            refuses(&f, op, BN_STATUS_MISALIGNED, words);                         \
        }                                                                         \
    } while (0)
        MISALIGNED(TRAINING, training, input, size);
        MISALIGNED(TRAINING, training, output, size);
        MISALIGNED(TRAINING, training, weight, size);
        MISALIGNED(TRAINING, training, bias, size);
        MISALIGNED(TRAINING, training, running_mean, size);
        MISALIGNED(TRAINING, training, running_var, size);
        MISALIGNED(TRAINING, training, saved.mean, 8);
        MISALIGNED(TRAINING, training, saved.invstd, 8);
        for (int64_t by = 1; by < 8; by++) {
            f.training.num_batches_tracked = moved(f.training.num_batches_tracked, by);
            refuses(&f, TRAINING, BN_STATUS_MISALIGNED, "num_batches_tracked|0x|multiple of 8");
        }
        MISALIGNED(INFERENCE, inference, input, size);
        MISALIGNED(INFERENCE, inference, output, size);
        MISALIGNED(INFERENCE, inference, weight, size);
        MISALIGNED(INFERENCE, inference, bias, size);
        MISALIGNED(INFERENCE, inference, running_mean, size);
        MISALIGNED(INFERENCE, inference, running_var, size);
        MISALIGNED(BACKWARD, backward, input, size);
        MISALIGNED(BACKWARD, backward, grad_output, size);
        MISALIGNED(BACKWARD, backward, grad_input, size);
        MISALIGNED(BACKWARD, backward, grad_weight, size);
        MISALIGNED(BACKWARD, backward, grad_bias, size);
        MISALIGNED(BACKWARD, backward, weight, size);
        MISALIGNED(BACKWARD, backward, saved.mean, 8);
        MISALIGNED(BACKWARD, backward, saved.invstd, 8);
#undef MISALIGNED
        guarded_free_all();
    }
}

/* Every pair of buffers of which one is written, laid over each other. */
static void overlapping_buffers(void **state)
{
    (void)state;
    fixture f = images(BN_DTYPE_FLOAT64);
#define OVER(op, args, written, other)                                      \
    do {                                                                    \
        f.args.written.data = (void *)(uintptr_t)f.args.other.data;         \
        refuses(&f, op, BN_STATUS_OVERLAP, #written "|" #other "|overlap"); \
    } while (0)
    OVER(TRAINING, training, running_mean, running_var);
    OVER(TRAINING, training, running_mean, weight);
    OVER(TRAINING, training, running_mean, bias);
    OVER(TRAINING, training, running_mean, input);
    OVER(TRAINING, training, running_mean, output);
    OVER(TRAINING, training, running_var, weight);
    OVER(TRAINING, training, running_var, bias);
    OVER(TRAINING, training, running_var, output);
    OVER(TRAINING, training, saved.mean, saved.invstd);
    OVER(TRAINING, training, saved.mean, running_mean);
    OVER(TRAINING, training, saved.mean, running_var);
    OVER(TRAINING, training, saved.mean, weight);
    OVER(TRAINING, training, saved.mean, input);
    OVER(TRAINING, training, saved.mean, output);
    OVER(TRAINING, training, saved.invstd, bias);
    OVER(TRAINING, training, saved.invstd, running_var);
    OVER(TRAINING, training, saved.invstd, output);
    OVER(BACKWARD, backward, grad_weight, grad_bias);
    OVER(BACKWARD, backward, grad_weight, weight);
    OVER(BACKWARD, backward, grad_weight, input);
    OVER(BACKWARD, backward, grad_weight, grad_output);
    OVER(BACKWARD, backward, grad_weight, grad_input);
    OVER(BACKWARD, backward, grad_weight, saved.mean);
    OVER(BACKWARD, backward, grad_bias, weight);
    OVER(BACKWARD, backward, grad_bias, saved.invstd);
    OVER(BACKWARD, backward, grad_bias, grad_input);
#undef OVER
#define COUNTER_OVER(other)                                                                 \
    do {                                                                                    \
        f.training.num_batches_tracked = (void *)(uintptr_t)f.training.other.data;          \
        refuses(&f, TRAINING, BN_STATUS_OVERLAP, "num_batches_tracked|" #other "|overlap"); \
    } while (0)
    COUNTER_OVER(saved.mean);
    COUNTER_OVER(running_mean);
    COUNTER_OVER(output);
    COUNTER_OVER(input);
#undef COUNTER_OVER

    /* Tensors against parameters: the written tensor's last element is the parameter's first. */
    const int64_t last = 119 * 8;
#define OVER_FIRST(op, args, written, other)                                \
    do {                                                                    \
        f.args.other.data = moved(f.args.written.data, last);               \
        refuses(&f, op, BN_STATUS_OVERLAP, #written "|" #other "|overlap"); \
    } while (0)
    OVER_FIRST(TRAINING, training, output, weight);
    OVER_FIRST(TRAINING, training, output, bias);
    OVER_FIRST(INFERENCE, inference, output, weight);
    OVER_FIRST(INFERENCE, inference, output, bias);
    OVER_FIRST(INFERENCE, inference, output, running_mean);
    OVER_FIRST(INFERENCE, inference, output, running_var);
    OVER_FIRST(BACKWARD, backward, grad_input, weight);
    OVER_FIRST(BACKWARD, backward, grad_input, saved.mean);
    OVER_FIRST(BACKWARD, backward, grad_input, saved.invstd);
#undef OVER_FIRST

    f.backward.statistics = BN_STATISTICS_RUNNING;
    f.backward.running_var.data = f.backward.grad_bias.data;
    refuses(&f, BACKWARD, BN_STATUS_OVERLAP, "grad_bias|running_var|overlap");
    f.backward.statistics = BN_STATISTICS_RUNNING;
    f.backward.running_mean.data = f.backward.grad_weight.data;
    refuses(&f, BACKWARD, BN_STATUS_OVERLAP, "grad_weight|running_mean|overlap");
}

/* In place means the very same memory, not a part of it. */
static void partial_overlap_is_not_in_place(void **state)
{
    (void)state;
    for (int step = -1; step <= 1; step += 2) {
        fixture f = images(BN_DTYPE_FLOAT64);
        /* Two tensors in one buffer, one element apart. */
        const elements room = guarded_elements(122, true, PLACE_END);
        elements_fill_normal(room, 5, 0, 1);
        void *one = moved(room.data, 8), *two = moved(one, 8 * step);
        const elements before = guarded_elements(122, true, PLACE_START);
        elements_copy(before, room);

        f.training.input.data = one, f.training.output.data = two;
        refuses(&f, TRAINING, BN_STATUS_OVERLAP, "output|input|overlap");
        f.inference.input.data = one, f.inference.output.data = two;
        refuses(&f, INFERENCE, BN_STATUS_OVERLAP, "output|input|overlap");
        f.backward.input.data = one, f.backward.grad_input.data = two;
        refuses(&f, BACKWARD, BN_STATUS_OVERLAP, "grad_input|input|overlap");
        f.backward.grad_output.data = one, f.backward.grad_input.data = two;
        refuses(&f, BACKWARD, BN_STATUS_OVERLAP, "grad_input|grad_output|overlap");
        check(elements_first_difference(room, before) < 0, "the tensors changed");
        guarded_free_all();
    }
}

/* Buffers that are only read may be the same, and neighbours are not overlapping. */
static void reading_twice_and_touching_is_allowed(void **state)
{
    (void)state;
    fixture f = images(BN_DTYPE_FLOAT64);
    f.training.bias.data = f.training.weight.data;
    run_training(&f);
    f.inference.running_mean.data = f.inference.weight.data = f.inference.bias.data =
        f.inference.running_var.data;
    run_inference(&f);
    f.backward.grad_output.data = f.backward.input.data;
    run_backward(&f);

    const elements room = guarded_elements(240, true, PLACE_END);
    elements_fill_normal(room, 5, 0, 1);
    f.training.input.data = room.data, f.training.output.data = moved(room.data, 120 * 8);
    run_training(&f);
}

/* ---- 4xx: numbers ---- */

static void bad_epsilon(void **state)
{
    (void)state;
    fixture f = images(BN_DTYPE_FLOAT32);
    static const struct {
        double value;
        const char *words;
    } bad[] = {
        { -1e-5, "epsilon|-1e-05" }, { -INFINITY, "epsilon|-inf" }, { INFINITY, "epsilon|inf" },
        { NAN, "epsilon|nan" },      { -0x1p-1074, "epsilon|-" },
    };
    for (size_t i = 0; i < LENGTH(bad); i++) {
        f.training.epsilon = bad[i].value;
        refuses(&f, TRAINING, BN_STATUS_EPSILON, bad[i].words);
        f.inference.epsilon = bad[i].value;
        refuses(&f, INFERENCE, BN_STATUS_EPSILON, bad[i].words);
        f.backward.statistics = BN_STATISTICS_RUNNING, f.backward.epsilon = bad[i].value;
        refuses(&f, BACKWARD, BN_STATUS_EPSILON, bad[i].words);
        /* With batch statistics backward has no use for it. */
        f.backward.epsilon = bad[i].value;
        run_backward(&f);
        fixture_restore_args(&f);
    }
}

static void bad_momentum(void **state)
{
    (void)state;
    fixture f = images(BN_DTYPE_FLOAT32);
    static const double bad[] = { NAN, INFINITY, -INFINITY };
    for (size_t i = 0; i < LENGTH(bad); i++) {
        f.training.momentum = bad[i];
        refuses(&f, TRAINING, BN_STATUS_MOMENTUM, isnan(bad[i]) ? "momentum|nan" : "momentum|inf");
        /* Not used: cumulative, or nothing to average. */
        f.training.momentum = bad[i], f.training.averaging = BN_AVERAGING_CUMULATIVE;
        run_training(&f);
        f.training.averaging = BN_AVERAGING_EXPONENTIAL;
        f.training.running_mean.data = f.training.running_var.data = NULL;
        f.training.running_mean.count = f.training.running_var.count = 0;
        run_training(&f);
        fixture_restore_args(&f);
    }
    /* Any finite one is the caller's to choose. */
    f.training.momentum = 1.5;
    run_training(&f);
    f.training.momentum = -0.5;
    run_training(&f);
}

static void one_value_per_channel(void **state)
{
    (void)state;
    const int64_t matrix[] = { 1, 3 }, image[] = { 1, 3, 1, 1 };
    const bn_problem problems[] = {
        problem_of(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 2, matrix),
        problem_of(BN_DTYPE_FLOAT64, BN_LAYOUT_NHWC, 4, image),
    };
    for (size_t i = 0; i < LENGTH(problems); i++) {
        fixture f = fixture_make(problems[i], PLACE_END);
        refuses(&f, TRAINING, BN_STATUS_ONE_VALUE, "1 value|drop_last|(1, 3");
        /* To use running statistics there must be some. */
        f.training.one_value = BN_ONE_VALUE_USE_RUNNING;
        f.training.running_mean.data = f.training.running_var.data = NULL;
        f.training.running_mean.count = f.training.running_var.count = 0;
        refuses(&f, TRAINING, BN_STATUS_ONE_VALUE, "running");
        run_inference(&f);
        run_backward(&f);
    }
}

static void bad_batch_counters(void **state)
{
    (void)state;
    fixture f = images(BN_DTYPE_FLOAT32);
    for (int averaging = 0; averaging < 2; averaging++) {
        f.training.averaging = averaging;
        *f.num_batches_tracked = -1;
        refuses(&f, TRAINING, BN_STATUS_BATCH_COUNTER, "num_batches_tracked|-1|0");
        f.training.averaging = averaging;
        *f.num_batches_tracked = INT64_MAX;
        refuses(&f, TRAINING, BN_STATUS_BATCH_COUNTER, "num_batches_tracked|9223372036854775807");
        f.training.averaging = averaging;
        *f.num_batches_tracked = INT64_MAX - 1;
        run_training(&f);
        check(*f.num_batches_tracked == INT64_MAX, "the counter is %lld",
              (long long)*f.num_batches_tracked);
    }
}

static void bad_skipped_batches(void **state)
{
    (void)state;
    fixture f = images(BN_DTYPE_FLOAT32);
    for (int averaging = 0; averaging < 2; averaging++) {
        for (int i = 0; i < 6; i++) {
            char words[64];
            f.training.averaging = averaging;
            f.skipped_batches[i] = 4;
            snprintf(words, sizeof words, "skipped_batches[%d] is 4|0 to 3", i);
            refuses(&f, TRAINING, BN_STATUS_BATCH_COUNTER, words);
            f.training.averaging = averaging;
            f.skipped_batches[i] = INT64_MIN;
            refuses(&f, TRAINING, BN_STATUS_BATCH_COUNTER, "is -9223372036854775808|0 to 3");
            f.training.averaging = averaging;
            f.skipped_batches[i] = 3;
            run_training(&f);
            *f.num_batches_tracked = 3;
            f.skipped_batches[i] = 0;
        }
        f.training.averaging = averaging;
        f.training.skipped_batches.count = 3;
        refuses(&f, TRAINING, BN_STATUS_COUNT_MISMATCH, "skipped_batches.count|3|6|2*num_features");
        f.training.skipped_batches.count = -6;
        refuses(&f, TRAINING, BN_STATUS_NEGATIVE_SIZE, "skipped_batches.count|-6");
        f.training.skipped_batches.data = (int64_t *)((char *)f.skipped_batches + 4);
        refuses(&f, TRAINING, BN_STATUS_MISALIGNED, "skipped_batches|0x|multiple of 8");
        f.training.skipped_batches.data = f.num_batches_tracked - 2;
        refuses(&f, TRAINING, BN_STATUS_OVERLAP, "num_batches_tracked|skipped_batches");
    }
}

/* BN_STATUS_NONFINITE, the one error that does its work, is in test_operations.c and test_running.c. */

/* ---- the message ---- */

static void *message_of_another_thread(void *result)
{
    snprintf(result, 256, "%s", bn_last_error_message());
    bn_set_num_threads(-5);
    return NULL;
}

static void messages_belong_to_their_thread(void **state)
{
    (void)state;
    fixture f = images(BN_DTYPE_FLOAT32);
    f.training.input.count = 77;
    check_refused(call(&f, TRAINING), BN_STATUS_COUNT_MISMATCH, "input.count|77");
    char mine[256], theirs[256];
    snprintf(mine, sizeof mine, "%s", bn_last_error_message());

    pthread_t thread;
    check(pthread_create(&thread, NULL, message_of_another_thread, theirs) == 0, "pthread_create");
    check(pthread_join(thread, NULL) == 0, "pthread_join");
    check(theirs[0] == 0, "a new thread's first message is \"%s\"", theirs);
    check(strcmp(mine, bn_last_error_message()) == 0,
          "another thread's failure changed \"%s\" to \"%s\"", mine, bn_last_error_message());

    fixture_restore_args(&f);
    run_training(&f);
    check(strcmp(mine, bn_last_error_message()) == 0, "a success changed \"%s\" to \"%s\"", mine,
          bn_last_error_message());
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(null_pointers, fixture_teardown),
        cmocka_unit_test_teardown(struct_sizes, fixture_teardown),
        cmocka_unit_test_teardown(unknown_options, fixture_teardown),
        cmocka_unit_test_teardown(bad_shapes, fixture_teardown),
        cmocka_unit_test_teardown(sizes_that_overflow, fixture_teardown),
        cmocka_unit_test_teardown(wrong_counts, fixture_teardown),
        cmocka_unit_test_teardown(misaligned_pointers, fixture_teardown),
        cmocka_unit_test_teardown(overlapping_buffers, fixture_teardown),
        cmocka_unit_test_teardown(partial_overlap_is_not_in_place, fixture_teardown),
        cmocka_unit_test_teardown(reading_twice_and_touching_is_allowed, fixture_teardown),
        cmocka_unit_test_teardown(bad_epsilon, fixture_teardown),
        cmocka_unit_test_teardown(bad_momentum, fixture_teardown),
        cmocka_unit_test_teardown(one_value_per_channel, fixture_teardown),
        cmocka_unit_test_teardown(bad_batch_counters, fixture_teardown),
        cmocka_unit_test_teardown(bad_skipped_batches, fixture_teardown),
        cmocka_unit_test_teardown(messages_belong_to_their_thread, fixture_teardown),
    };
    return cmocka_run_group_tests_name("abi: bad input", tests, NULL, NULL);
}
