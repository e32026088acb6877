/*
 * What a compiled program has built in: the size of every struct, the place of every member, the value of
 * every constant. A change here breaks programs that are already out there.
 */
#include "check.h"

#include <batchnorm.h>
#include <string.h>

typedef struct pin {
    const char *name;
    size_t actual, expected;
} pin;

static void check_pins(const pin *pins, size_t count)
{
    for (size_t i = 0; i < count; i++)
        check(pins[i].actual == pins[i].expected, "%s is %zu, was published as %zu", pins[i].name,
              pins[i].actual, pins[i].expected);
}

#define SIZE(type, size) { "sizeof(" #type ")", sizeof(type), size }
#define AT(type, member, offset) { #type "." #member, offsetof(type, member), offset }

/* Programs may have been compiled with structs of these sizes, and no shorter ones. */
static void least_sizes(void **state)
{
    (void)state;
#define LEAST(name, size)           \
    {                               \
        #name, (size_t)(name), size \
    }
    const pin pins[] = {
        LEAST(BN_PROBLEM_LEAST, 56),
        LEAST(BN_FORWARD_TRAINING_ARGS_LEAST, 72),
        LEAST(BN_FORWARD_INFERENCE_ARGS_LEAST, 48),
        LEAST(BN_BACKWARD_ARGS_LEAST, 48),
        LEAST(BN_MOMENTS_LEAST, 48),
        LEAST(BN_GRADIENT_SUMS_LEAST, 40),
        LEAST(BN_LAYER_OPTIONS_LEAST, 64),
        LEAST(BN_LAYER_FORWARD_ARGS_LEAST, 40),
        LEAST(BN_LAYER_BACKWARD_ARGS_LEAST, 40),
        LEAST(BN_WEIGHT_SHAPE_LEAST, 40),
        LEAST(BN_FOLD_ARGS_LEAST, 144),
        LEAST(BN_EXPLAIN_ARGS_LEAST, 64),
        LEAST(BN_PLAN_INFO_LEAST, 8),
    };
    check_pins(pins, LENGTH(pins));
}

static void problem_layout(void **state)
{
    (void)state;
    const pin pins[] = {
        SIZE(bn_problem, 56),      AT(bn_problem, struct_size, 0), AT(bn_problem, dtype, 4),
        AT(bn_problem, layout, 8), AT(bn_problem, rank, 12),       AT(bn_problem, sizes, 16),
    };
    check_pins(pins, LENGTH(pins));
}

/* What argument structs embed. These can never grow. */
static void nouns_layout(void **state)
{
    (void)state;
    const pin pins[] = {
        SIZE(bn_view, 16),
        AT(bn_view, data, 0),
        AT(bn_view, count, 8),
        SIZE(bn_mutable_view, 16),
        AT(bn_mutable_view, data, 0),
        AT(bn_mutable_view, count, 8),
        SIZE(bn_byte_view, 16),
        AT(bn_byte_view, data, 0),
        AT(bn_byte_view, count, 8),
        SIZE(bn_mutable_byte_view, 16),
        AT(bn_mutable_byte_view, data, 0),
        AT(bn_mutable_byte_view, count, 8),
        SIZE(bn_int64_view, 16),
        AT(bn_int64_view, data, 0),
        AT(bn_int64_view, count, 8),
        SIZE(bn_mutable_int64_view, 16),
        AT(bn_mutable_int64_view, data, 0),
        AT(bn_mutable_int64_view, count, 8),
        SIZE(bn_mutable_float64_view, 16),
        AT(bn_mutable_float64_view, data, 0),
        AT(bn_mutable_float64_view, count, 8),
        SIZE(bn_activation, 24),
        AT(bn_activation, kind, 0),
        AT(bn_activation, reserved, 4),
        AT(bn_activation, slope, 8),
        AT(bn_activation, limit, 16),
        SIZE(bn_positions, 40),
        AT(bn_positions, mask, 0),
        AT(bn_positions, lengths, 16),
        AT(bn_positions, masked, 32),
        AT(bn_positions, reserved, 36),
        SIZE(bn_saved, 48),
        AT(bn_saved, mean, 0),
        AT(bn_saved, invstd, 16),
        AT(bn_saved, mean_rest, 32),
    };
    check_pins(pins, LENGTH(pins));
}

static void forward_training_layout(void **state)
{
    (void)state;
    const pin pins[] = {
        SIZE(bn_forward_training_args, 336),
        AT(bn_forward_training_args, struct_size, 0),
        AT(bn_forward_training_args, averaging, 4),
        AT(bn_forward_training_args, running_variance, 8),
        AT(bn_forward_training_args, one_value, 12),
        AT(bn_forward_training_args, nonfinite, 16),
        AT(bn_forward_training_args, reserved, 20),
        AT(bn_forward_training_args, epsilon, 24),
        AT(bn_forward_training_args, momentum, 32),
        AT(bn_forward_training_args, input, 40),
        AT(bn_forward_training_args, output, 56),
        AT(bn_forward_training_args, weight, 72),
        AT(bn_forward_training_args, bias, 88),
        AT(bn_forward_training_args, running_mean, 104),
        AT(bn_forward_training_args, running_var, 120),
        AT(bn_forward_training_args, num_batches_tracked, 136),
        AT(bn_forward_training_args, skipped_batches, 144),
        AT(bn_forward_training_args, saved, 160),
        AT(bn_forward_training_args, activation, 208),
        AT(bn_forward_training_args, residual, 232),
        AT(bn_forward_training_args, activation_mask, 248),
        AT(bn_forward_training_args, positions, 264),
        AT(bn_forward_training_args, nonfinite_channels, 304),
        AT(bn_forward_training_args, nonfinite_running_channels, 312),
        AT(bn_forward_training_args, values_per_channel, 320),
        AT(bn_forward_training_args, statistics_used, 328),
        AT(bn_forward_training_args, reserved_end, 332),
    };
    check_pins(pins, LENGTH(pins));
}

static void forward_inference_layout(void **state)
{
    (void)state;
    const pin pins[] = {
        SIZE(bn_forward_inference_args, 208),
        AT(bn_forward_inference_args, struct_size, 0),
        AT(bn_forward_inference_args, reserved, 4),
        AT(bn_forward_inference_args, epsilon, 8),
        AT(bn_forward_inference_args, input, 16),
        AT(bn_forward_inference_args, output, 32),
        AT(bn_forward_inference_args, weight, 48),
        AT(bn_forward_inference_args, bias, 64),
        AT(bn_forward_inference_args, running_mean, 80),
        AT(bn_forward_inference_args, running_var, 96),
        AT(bn_forward_inference_args, activation, 112),
        AT(bn_forward_inference_args, residual, 136),
        AT(bn_forward_inference_args, activation_mask, 152),
        AT(bn_forward_inference_args, positions, 168),
    };
    check_pins(pins, LENGTH(pins));
}

static void backward_layout(void **state)
{
    (void)state;
    const pin pins[] = {
        SIZE(bn_backward_args, 304),
        AT(bn_backward_args, struct_size, 0),
        AT(bn_backward_args, statistics, 4),
        AT(bn_backward_args, epsilon, 8),
        AT(bn_backward_args, input, 16),
        AT(bn_backward_args, grad_output, 32),
        AT(bn_backward_args, grad_input, 48),
        AT(bn_backward_args, grad_weight, 64),
        AT(bn_backward_args, grad_bias, 80),
        AT(bn_backward_args, weight, 96),
        AT(bn_backward_args, saved, 112),
        AT(bn_backward_args, running_mean, 160),
        AT(bn_backward_args, running_var, 176),
        AT(bn_backward_args, activation, 192),
        AT(bn_backward_args, activation_mask, 216),
        AT(bn_backward_args, output, 232),
        AT(bn_backward_args, grad_residual, 248),
        AT(bn_backward_args, positions, 264),
    };
    check_pins(pins, LENGTH(pins));
}

static void layer_options_layout(void **state)
{
    (void)state;
    const pin pins[] = {
        SIZE(bn_layer_options, 64),
        AT(bn_layer_options, struct_size, 0),
        AT(bn_layer_options, dtype, 4),
        AT(bn_layer_options, num_features, 8),
        AT(bn_layer_options, epsilon, 16),
        AT(bn_layer_options, momentum, 24),
        AT(bn_layer_options, averaging, 32),
        AT(bn_layer_options, running_variance, 36),
        AT(bn_layer_options, one_value, 40),
        AT(bn_layer_options, nonfinite, 44),
        AT(bn_layer_options, has_weight, 48),
        AT(bn_layer_options, has_bias, 52),
        AT(bn_layer_options, track_running_stats, 56),
        AT(bn_layer_options, reserved, 60),
    };
    check_pins(pins, LENGTH(pins));
}

static void plan_info_layout(void **state)
{
    (void)state;
    const pin pins[] = {
        SIZE(bn_plan_info, 128),
        AT(bn_plan_info, struct_size, 0),
        AT(bn_plan_info, isa, 4),
        AT(bn_plan_info, threads, 8),
        AT(bn_plan_info, by_columns, 12),
        AT(bn_plan_info, steps, 16),
        AT(bn_plan_info, nontemporal, 20),
        AT(bn_plan_info, run_channels, 24),
        AT(bn_plan_info, rows_per_line, 32),
        AT(bn_plan_info, piece_rows, 40),
        AT(bn_plan_info, piece_values, 48),
        AT(bn_plan_info, pieces, 56),
        AT(bn_plan_info, workspace_bytes, 64),
        AT(bn_plan_info, tensor_bytes, 72),
        AT(bn_plan_info, bytes_read, 80),
        AT(bn_plan_info, bytes_written, 88),
        AT(bn_plan_info, limit_bytes_read, 96),
        AT(bn_plan_info, limit_bytes_written, 104),
        AT(bn_plan_info, l2_bytes, 112),
        AT(bn_plan_info, l3_bytes, 120),
    };
    check_pins(pins, LENGTH(pins));
}

static void explain_args_layout(void **state)
{
    (void)state;
    const pin pins[] = {
        SIZE(bn_explain_args, 64),           AT(bn_explain_args, struct_size, 0),
        AT(bn_explain_args, operation, 4),   AT(bn_explain_args, activation, 8),
        AT(bn_explain_args, residual, 32),   AT(bn_explain_args, activation_mask, 36),
        AT(bn_explain_args, mask, 40),       AT(bn_explain_args, lengths, 44),
        AT(bn_explain_args, grad_input, 48), AT(bn_explain_args, grad_weight, 52),
        AT(bn_explain_args, grad_bias, 56),  AT(bn_explain_args, reserved, 60),
    };
    check_pins(pins, LENGTH(pins));
}

static void weight_shape_layout(void **state)
{
    (void)state;
    const pin pins[] = {
        SIZE(bn_weight_shape, 40),      AT(bn_weight_shape, struct_size, 0),
        AT(bn_weight_shape, dtype, 4),  AT(bn_weight_shape, groups, 8),
        AT(bn_weight_shape, outer, 16), AT(bn_weight_shape, channels, 24),
        AT(bn_weight_shape, inner, 32),
    };
    check_pins(pins, LENGTH(pins));
}

static void fold_args_layout(void **state)
{
    (void)state;
    const pin pins[] = {
        SIZE(bn_fold_args, 160),
        AT(bn_fold_args, struct_size, 0),
        AT(bn_fold_args, reserved, 4),
        AT(bn_fold_args, epsilon, 8),
        AT(bn_fold_args, running_mean, 16),
        AT(bn_fold_args, running_var, 32),
        AT(bn_fold_args, weight, 48),
        AT(bn_fold_args, bias, 64),
        AT(bn_fold_args, conv_weight, 80),
        AT(bn_fold_args, conv_bias, 96),
        AT(bn_fold_args, folded_weight, 112),
        AT(bn_fold_args, folded_bias, 128),
        AT(bn_fold_args, weight_error, 144),
        AT(bn_fold_args, bias_error, 152),
    };
    check_pins(pins, LENGTH(pins));
}

static void moments_layout(void **state)
{
    (void)state;
    const pin pins[] = {
        SIZE(bn_moments, 48),
        AT(bn_moments, struct_size, 0),
        AT(bn_moments, reserved, 4),
        AT(bn_moments, channels, 8),
        AT(bn_moments, count, 16),
        AT(bn_moments, mean, 24),
        AT(bn_moments, mean_rest, 32),
        AT(bn_moments, m2, 40),
        SIZE(bn_gradient_sums, 40),
        AT(bn_gradient_sums, struct_size, 0),
        AT(bn_gradient_sums, reserved, 4),
        AT(bn_gradient_sums, channels, 8),
        AT(bn_gradient_sums, count, 16),
        AT(bn_gradient_sums, sum_dy, 24),
        AT(bn_gradient_sums, sum_dy_xmu, 32),
    };
    check_pins(pins, LENGTH(pins));
}

static void layer_args_layout(void **state)
{
    (void)state;
    const pin pins[] = {
        SIZE(bn_layer_forward_args, 120),
        AT(bn_layer_forward_args, struct_size, 0),
        AT(bn_layer_forward_args, pass, 4),
        AT(bn_layer_forward_args, input, 8),
        AT(bn_layer_forward_args, output, 24),
        AT(bn_layer_forward_args, activation, 40),
        AT(bn_layer_forward_args, residual, 64),
        AT(bn_layer_forward_args, positions, 80),
        SIZE(bn_layer_backward_args, 104),
        AT(bn_layer_backward_args, struct_size, 0),
        AT(bn_layer_backward_args, reserved, 4),
        AT(bn_layer_backward_args, input, 8),
        AT(bn_layer_backward_args, grad_output, 24),
        AT(bn_layer_backward_args, grad_input, 40),
        AT(bn_layer_backward_args, grad_weight, 56),
        AT(bn_layer_backward_args, grad_bias, 72),
        AT(bn_layer_backward_args, grad_residual, 88),
    };
    check_pins(pins, LENGTH(pins));
}

static const struct {
    bn_status value;
    int32_t published;
    const char *name;
} statuses[] = {
#define STATUS(name, value) { BN_STATUS_##name, value, "BN_STATUS_" #name }
    STATUS(OK, 0),
    STATUS(NULL_POINTER, 100),
    STATUS(STRUCT_SIZE, 101),
    STATUS(INVALID_OPTION, 102),
    STATUS(EXCLUSIVE, 103),
    STATUS(RANK, 200),
    STATUS(NEGATIVE_SIZE, 201),
    STATUS(NO_CHANNELS, 202),
    STATUS(SIZE_OVERFLOW, 203),
    STATUS(COUNT_MISMATCH, 204),
    STATUS(LENGTH, 205),
    STATUS(MISALIGNED, 300),
    STATUS(OVERLAP, 301),
    STATUS(OUT_OF_MEMORY, 302),
    STATUS(EPSILON, 400),
    STATUS(MOMENTUM, 401),
    STATUS(ONE_VALUE, 402),
    STATUS(NONFINITE, 403),
    STATUS(BATCH_COUNTER, 404),
    STATUS(NEGATIVE_SLOPE, 405),
    STATUS(MOMENTS, 406),
    STATUS(NUMBER, 410),
    STATUS(NO_RUNNING_STATISTICS, 500),
    STATUS(NO_PARAMETER, 501),
    STATUS(NO_FORWARD, 502),
    STATUS(LAYER_MISMATCH, 503),
    STATUS(STATE_TRUNCATED, 600),
    STATUS(STATE_FOREIGN, 601),
    STATUS(STATE_VERSION, 602),
    STATUS(STATE_CHECKSUM, 603),
    STATUS(STATE_INVALID, 604),
    STATUS(BUFFER_TOO_SMALL, 605),
    STATUS(NO_SHARED_RUNTIME, 700),
    STATUS(INTERNAL, 900),
#undef STATUS
};

static void statuses_and_their_names(void **state)
{
    (void)state;
    for (size_t i = 0; i < LENGTH(statuses); i++) {
        check(statuses[i].value == statuses[i].published, "%s is %d, was published as %d",
              statuses[i].name, statuses[i].value, statuses[i].published);
        check(strcmp(bn_status_name(statuses[i].value), statuses[i].name) == 0,
              "status %d is called %s, expected %s", statuses[i].value,
              bn_status_name(statuses[i].value), statuses[i].name);
    }
    /* Every other number in reach has no name. */
    for (int32_t value = -1000; value < 2000; value++) {
        const char *expected = "BN_STATUS_UNKNOWN";
        for (size_t i = 0; i < LENGTH(statuses); i++)
            if (statuses[i].value == value) expected = statuses[i].name;
        check(strcmp(bn_status_name(value), expected) == 0, "status %d is called %s", value,
              bn_status_name(value));
    }
    check(strcmp(bn_status_name(INT32_MIN), "BN_STATUS_UNKNOWN") == 0, "INT32_MIN");
    check(strcmp(bn_status_name(INT32_MAX), "BN_STATUS_UNKNOWN") == 0, "INT32_MAX");
}

static void other_constants(void **state)
{
    (void)state;
    const pin pins[] = {
#define CONSTANT(name, value) { #name, (size_t)(name), value }
        CONSTANT(BN_DTYPE_FLOAT32, 1),
        CONSTANT(BN_DTYPE_FLOAT64, 2),
        CONSTANT(BN_LAYOUT_NCHW, 1),
        CONSTANT(BN_LAYOUT_NHWC, 2),
        CONSTANT(BN_AVERAGING_EXPONENTIAL, 0),
        CONSTANT(BN_AVERAGING_CUMULATIVE, 1),
        CONSTANT(BN_VARIANCE_UNBIASED, 0),
        CONSTANT(BN_VARIANCE_BIASED, 1),
        CONSTANT(BN_ONE_VALUE_ERROR, 0),
        CONSTANT(BN_ONE_VALUE_USE_RUNNING, 1),
        CONSTANT(BN_ONE_VALUE_ALLOW, 2),
        CONSTANT(BN_NONFINITE_REPORT, 0),
        CONSTANT(BN_NONFINITE_ERROR, 1),
        CONSTANT(BN_STATISTICS_BATCH, 0),
        CONSTANT(BN_STATISTICS_RUNNING, 1),
        CONSTANT(BN_ACTIVATION_NONE, 0),
        CONSTANT(BN_ACTIVATION_RELU, 1),
        CONSTANT(BN_ACTIVATION_LEAKY_RELU, 2),
        CONSTANT(BN_MASKED_ZERO, 0),
        CONSTANT(BN_MASKED_PASS, 1),
        CONSTANT(BN_PASS_NORMAL, 0),
        CONSTANT(BN_PASS_KEEP_RUNNING, 1),
        CONSTANT(BN_PASS_RECOMPUTE, 2),
        CONSTANT(BN_THREADING_AUTO, 0),
        CONSTANT(BN_THREADING_OWN, 1),
        CONSTANT(BN_THREADING_SHARED, 2),
        CONSTANT(BN_THREADING_POOL, 3),
        CONSTANT(BN_ISA_GENERIC, 0),
        CONSTANT(BN_ISA_AVX2, 1),
        CONSTANT(BN_ISA_AVX512, 2),
        CONSTANT(BN_OPERATION_FORWARD_TRAINING, 1),
        CONSTANT(BN_OPERATION_FORWARD_INFERENCE, 2),
        CONSTANT(BN_OPERATION_BACKWARD, 3),
        CONSTANT(BN_OPERATION_BACKWARD_FROZEN, 4),
        CONSTANT(BN_EXPLAIN_TEXT_SIZE, 2048),
#undef CONSTANT
    };
    check_pins(pins, LENGTH(pins));
}

/* The initializers name every member in order; a member added in the middle would shift them. */
static void initializers(void **state)
{
    (void)state;
    const bn_problem problem = BN_PROBLEM_2D(BN_DTYPE_FLOAT64, BN_LAYOUT_NHWC, 2, 3, 4, 5);
    check(problem.struct_size == sizeof problem && problem.dtype == BN_DTYPE_FLOAT64 &&
              problem.layout == BN_LAYOUT_NHWC && problem.rank == 4,
          "BN_PROBLEM_2D");
    for (int i = 0; i < 4; i++) check(problem.sizes[i] == 2 + i, "BN_PROBLEM_2D sizes[%d]", i);

    const bn_forward_training_args training = BN_FORWARD_TRAINING_ARGS_INIT;
    bn_forward_training_args expected_training = { .struct_size = sizeof training,
                                                   .epsilon = 1e-5,
                                                   .momentum = 0.1 };
    check(memcmp(&training, &expected_training, sizeof training) == 0,
          "BN_FORWARD_TRAINING_ARGS_INIT is not PyTorch's defaults");
    const bn_forward_inference_args inference = BN_FORWARD_INFERENCE_ARGS_INIT;
    check(inference.struct_size == sizeof inference && inference.epsilon == 1e-5 &&
              inference.reserved == 0 && inference.running_var.data == NULL &&
              inference.activation.slope == 0 && inference.positions.lengths.count == 0,
          "BN_FORWARD_INFERENCE_ARGS_INIT");
    const bn_backward_args backward = BN_BACKWARD_ARGS_INIT;
    check(backward.struct_size == sizeof backward && backward.epsilon == 1e-5 &&
              backward.statistics == BN_STATISTICS_BATCH && backward.running_var.data == NULL &&
              backward.activation.slope == 0 && backward.positions.lengths.count == 0,
          "BN_BACKWARD_ARGS_INIT");
    const bn_layer_options options = BN_LAYER_OPTIONS_INIT;
    check(options.struct_size == sizeof options && options.dtype == BN_DTYPE_FLOAT32 &&
              options.num_features == 0 && options.epsilon == 1e-5 && options.momentum == 0.1 &&
              options.has_weight == 1 && options.has_bias == 1 &&
              options.track_running_stats == 1 && options.reserved == 0,
          "BN_LAYER_OPTIONS_INIT");
    const bn_moments moments = BN_MOMENTS_INIT,
                     expected_moments = { .struct_size = sizeof moments };
    check(memcmp(&moments, &expected_moments, sizeof moments) == 0, "BN_MOMENTS_INIT");
    const bn_gradient_sums sums = BN_GRADIENT_SUMS_INIT,
                           expected_sums = { .struct_size = sizeof sums };
    check(memcmp(&sums, &expected_sums, sizeof sums) == 0, "BN_GRADIENT_SUMS_INIT");
    const bn_plan_info info = BN_PLAN_INFO_INIT, expected_info = { .struct_size = sizeof info };
    check(memcmp(&info, &expected_info, sizeof info) == 0, "BN_PLAN_INFO_INIT");
    const bn_explain_args asked = BN_EXPLAIN_ARGS_INIT,
                          expected_asked = { BN_EXPLAIN_ARGS_DEFAULTS };
    check(memcmp(&asked, &expected_asked, sizeof asked) == 0, "BN_EXPLAIN_ARGS_INIT");
    const bn_fold_args fold = BN_FOLD_ARGS_INIT,
                       expected_fold = { .struct_size = sizeof fold, .epsilon = 1e-5 };
    check(memcmp(&fold, &expected_fold, sizeof fold) == 0, "BN_FOLD_ARGS_INIT");
    const bn_layer_forward_args forward = BN_LAYER_FORWARD_ARGS_INIT,
                                expected_forward = { .struct_size = sizeof forward };
    check(memcmp(&forward, &expected_forward, sizeof forward) == 0, "BN_LAYER_FORWARD_ARGS_INIT");
    const bn_layer_backward_args back = BN_LAYER_BACKWARD_ARGS_INIT,
                                 expected_back = { .struct_size = sizeof back };
    check(memcmp(&back, &expected_back, sizeof back) == 0, "BN_LAYER_BACKWARD_ARGS_INIT");
    const bn_weight_shape shape = BN_WEIGHT_TRANSPOSED(BN_DTYPE_FLOAT32, 2, 3, 4, 9),
                          expected_shape = { sizeof shape, BN_DTYPE_FLOAT32, 2, 3, 4, 9 };
    check(memcmp(&shape, &expected_shape, sizeof shape) == 0, "BN_WEIGHT_TRANSPOSED");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(least_sizes),
        cmocka_unit_test(problem_layout),
        cmocka_unit_test(nouns_layout),
        cmocka_unit_test(forward_training_layout),
        cmocka_unit_test(forward_inference_layout),
        cmocka_unit_test(backward_layout),
        cmocka_unit_test(layer_options_layout),
        cmocka_unit_test(plan_info_layout),
        cmocka_unit_test(explain_args_layout),
        cmocka_unit_test(weight_shape_layout),
        cmocka_unit_test(fold_args_layout),
        cmocka_unit_test(moments_layout),
        cmocka_unit_test(layer_args_layout),
        cmocka_unit_test(statuses_and_their_names),
        cmocka_unit_test(other_constants),
        cmocka_unit_test(initializers),
    };
    return cmocka_run_group_tests_name("abi: layout", tests, NULL, NULL);
}
