/*
 * bn_explain: numbers that fit each other and the settings, for every operation; words that hold the numbers; and
 * the errors of the operations themselves.
 */
#include "check.h"

#include <batchnorm.h>
#include <stdio.h>
#include <string.h>

#include "fixture.h"

static const bn_operation operations[] = { BN_OPERATION_FORWARD_TRAINING,
                                           BN_OPERATION_FORWARD_INFERENCE, BN_OPERATION_BACKWARD,
                                           BN_OPERATION_BACKWARD_FROZEN };

static const int64_t shapes[][5] = {
    { 32, 64, 56, 56, 1 },   { 32, 64, 112, 112, 1 }, { 32, 2048, 7, 7, 1 },
    { 32, 1024, 14, 14, 1 }, { 1, 64, 112, 112, 1 },  { 8, 3, 32, 32, 1 },
    { 128, 32, 1, 1, 1 },    { 1, 1, 1 << 24, 1, 1 }, { 300, 3, 100, 100, 1 },
    { 5, 17, 3, 5, 7 },      { 2, 5000, 1, 1, 1 },    { 3, 1025, 13, 1, 1 },
    { 1, 1, 1, 1, 1 },
};

static bn_plan_info plan_of(const bn_problem *problem, bn_operation operation)
{
    bn_plan_info info = BN_PLAN_INFO_INIT;
    const bn_status status = bn_explain(problem, operation, &info);
    check(status == BN_STATUS_OK, "%s: %s", problem_text(problem), bn_last_error_message());
    return info;
}

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static void check_numbers(const bn_problem *problem, bn_operation operation)
{
    const bn_plan_info p = plan_of(problem, operation);
    int64_t spatial = 1;
    for (int i = 2; i < problem->rank; i++) spatial *= problem->sizes[i];
    const int nhwc = problem->layout == BN_LAYOUT_NHWC;
    const int64_t channels = problem->sizes[1], rows = problem->sizes[0] * (nhwc ? spatial : 1),
                  inner = nhwc ? 1 : spatial;
    const int64_t bytes = rows * channels * inner * (problem->dtype == BN_DTYPE_FLOAT64 ? 8 : 4);
    const int backward = operation >= BN_OPERATION_BACKWARD;
    const char *text = problem_text(problem);

    check(p.isa == bn_get_isa(), "%s: isa %d, expected %d", text, p.isa, bn_get_isa());
    /* Of channels 64 are merged together: few pieces may be of many channels. */
    const int64_t tasks =
        p.steps == 3 && p.pieces < ceil_div(channels, 64) ? ceil_div(channels, 64) : p.pieces;
    check(1 <= p.threads && p.threads <= bn_get_num_threads() && p.threads <= tasks,
          "%s: %d threads for %lld tasks", text, p.threads, (long long)tasks);
    check(p.pieces == ceil_div(channels, p.run_channels) * ceil_div(rows, p.piece_rows) *
                          ceil_div(inner, p.piece_values),
          "%s: %lld pieces of %lld x %lld x %lld do not cover the tensor", text,
          (long long)p.pieces, (long long)p.piece_rows, (long long)p.run_channels,
          (long long)p.piece_values);
    check(p.run_channels <= channels && p.piece_rows <= rows && p.piece_values <= inner,
          "%s: a piece is larger than the tensor", text);
    check(p.by_columns ? p.piece_values == inner : p.run_channels == 1 && p.rows_per_line == 1,
          "%s: pieces do not fit how it is walked", text);
    check(1 <= p.rows_per_line && p.rows_per_line <= p.piece_rows, "%s: %lld rows folded", text,
          (long long)p.rows_per_line);
    check(p.steps == 1 || (p.steps == 3 && operation != BN_OPERATION_FORWARD_INFERENCE),
          "%s: %d steps", text, p.steps);
    check((p.workspace_bytes > 0) == (p.steps == 3), "%s: %d steps, %lld bytes of workspace", text,
          p.steps, (long long)p.workspace_bytes);
    check(p.tensor_bytes == bytes && p.bytes_written == bytes && p.limit_bytes_written == bytes,
          "%s: a tensor has %lld bytes, %lld are written", text, (long long)p.tensor_bytes,
          (long long)p.bytes_written);
    check(p.limit_bytes_read == (backward ? 2 : 1) * bytes, "%s: the limit reads %lld bytes", text,
          (long long)p.limit_bytes_read);
    check(p.bytes_read >= p.limit_bytes_read && p.bytes_read <= 2 * p.limit_bytes_read,
          "%s: reads %lld bytes, at least %lld", text, (long long)p.bytes_read,
          (long long)p.limit_bytes_read);
    if (operation == BN_OPERATION_FORWARD_INFERENCE || p.limit_bytes_read <= p.l2_bytes)
        check(p.bytes_read == p.limit_bytes_read, "%s: a second read from memory", text);
    check(p.l2_bytes > 0 && p.l3_bytes > 0, "%s: caches of %lld and %lld bytes", text,
          (long long)p.l2_bytes, (long long)p.l3_bytes);
}

static void numbers_fit_each_other(void **state)
{
    (void)state;
    for (int32_t threads = 1; threads <= 64; threads *= 4)
        for (bn_isa isa = BN_ISA_GENERIC; isa <= BN_ISA_AVX512; isa++)
            for (size_t s = 0; s < LENGTH(shapes); s++)
                for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++)
                    for (int dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT64; dtype++) {
                        bn_set_num_threads(threads);
                        bn_set_max_isa(isa);
                        const bn_problem problem = problem_of(dtype, layout, 5, shapes[s]);
                        for (size_t op = 0; op < LENGTH(operations); op++)
                            check_numbers(&problem, operations[op]);
                    }
}

static void check_enormous(const bn_problem *problem, bn_operation operation)
{
    const bn_plan_info p = plan_of(problem, operation);
    check(p.pieces > 0 && p.workspace_bytes >= 0 && p.limit_bytes_read >= p.tensor_bytes &&
              p.bytes_read >= p.limit_bytes_read,
          "%s: a number overflows", problem_text(problem));
    char text[BN_EXPLAIN_TEXT_SIZE];
    check(bn_explain_text(problem, operation, text, sizeof text) == BN_STATUS_OK, "%s: %s",
          problem_text(problem), bn_last_error_message());
    check(strlen(text) < sizeof text / 2 && strstr(text, "times the limit"),
          "%s: the text is nearly too long, or cut off: %s", problem_text(problem), text);
}

/* Shapes at the end of what a call accepts: no number overflows, no text is too long. */
static void enormous_shapes(void **state)
{
    (void)state;
    for (int dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT64; dtype++)
        for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++)
            for (int n = 0; n < 60; n += 3)
                for (int c = 0; n + c < 60; c += 3) {
                    const int64_t one = 1;
                    const int64_t sizes[] = { one << n, one << c, one << (59 - n - c), 1, 1 };
                    const bn_problem problem = problem_of(dtype, layout, 5, sizes);
                    for (size_t op = 0; op < LENGTH(operations); op++)
                        check_enormous(&problem, operations[op]);
                }
}

static void an_empty_batch_needs_nothing(void **state)
{
    (void)state;
    const bn_problem problem = BN_PROBLEM_2D(BN_DTYPE_FLOAT32, BN_LAYOUT_NHWC, 0, 3, 4, 4);
    for (size_t op = 0; op < LENGTH(operations); op++) {
        const bn_plan_info p = plan_of(&problem, operations[op]);
        bn_plan_info expected = BN_PLAN_INFO_INIT;
        expected.isa = bn_get_isa();
        expected.threads = 1;
        expected.l2_bytes = p.l2_bytes;
        expected.l3_bytes = p.l3_bytes;
        check(memcmp(&p, &expected, sizeof p) == 0, "operation %d has something to do",
              operations[op]);
    }
}

/* "25690112" bytes as the text has them: "25.7 MB". */
static const char *megabytes(int64_t bytes)
{
    static char text[32];
    const double number = (double)bytes / 1e6;
    snprintf(text, sizeof text, number < 99.95 ? "%.1f MB" : "%.0f MB", number);
    return text;
}

static void the_words_hold_the_numbers(void **state)
{
    (void)state;
    bn_set_num_threads(2);
    for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++)
        for (size_t op = 0; op < LENGTH(operations); op++) {
            const bn_problem problem = BN_PROBLEM_2D(BN_DTYPE_FLOAT32, layout, 32, 64, 56, 56);
            const bn_plan_info p = plan_of(&problem, operations[op]);
            char text[BN_EXPLAIN_TEXT_SIZE], words[128];
            check(bn_explain_text(&problem, operations[op], text, sizeof text) == BN_STATUS_OK,
                  "%s", bn_last_error_message());
            snprintf(words, sizeof words, "\n%s, %d threads,", bn_isa_name(p.isa), p.threads);
            check(strstr(text, words) != NULL, "expected %s in: %s", words, text);
            snprintf(words, sizeof words, "\n%lld pieces of up to %lld rows x %lld channel",
                     (long long)p.pieces, (long long)p.piece_rows, (long long)p.run_channels);
            check(strstr(text, words) != NULL, "expected %s in: %s", words, text);
            snprintf(words, sizeof words, "reads %s and", megabytes(p.limit_bytes_read));
            check(strstr(text, words) != NULL, "expected %s in: %s", words, text);
            snprintf(words, sizeof words, "this plan reads %s and", megabytes(p.bytes_read));
            check(strstr(text, words) != NULL, "expected %s in: %s", words, text);
            check(strstr(text, p.steps == 1 ? "one step" : "three steps") != NULL, "%d steps: %s",
                  p.steps, text);
            check(strstr(text, p.nontemporal ? "non-temporal" : "ordinary") != NULL, "stores: %s",
                  text);
            int lines = 1;
            for (const char *at = text; *at; at++) lines += *at == '\n';
            check(6 <= lines && lines <= 12, "%d lines: %s", lines, text);
        }
}

static void a_text_needs_room(void **state)
{
    (void)state;
    const bn_problem problem = BN_PROBLEM_2D(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 8, 3, 32, 32);
    char whole[BN_EXPLAIN_TEXT_SIZE], out[BN_EXPLAIN_TEXT_SIZE];
    const bn_operation op = BN_OPERATION_BACKWARD;
    check(bn_explain_text(&problem, op, whole, sizeof whole) == BN_STATUS_OK, "%s",
          bn_last_error_message());
    const int64_t size = (int64_t)strlen(whole) + 1;
    for (int64_t less = 0; less < size; less++) {
        char words[64];
        memset(out, '#', sizeof out);
        snprintf(words, sizeof words, "size|%lld|%lld", (long long)less, (long long)size);
        check_refused(bn_explain_text(&problem, op, out, less), BN_STATUS_BUFFER_TOO_SMALL, words);
        check(memchr(out, '#', sizeof out) == out && out[sizeof out - 1] == '#', "it wrote");
    }
    check(bn_explain_text(&problem, op, out, size) == BN_STATUS_OK, "%s", bn_last_error_message());
    check(strcmp(out, whole) == 0, "another text: %s", out);
    check(out[size] == '#', "it wrote beyond its end");
    check_refused(bn_explain_text(&problem, op, out, -1), BN_STATUS_NEGATIVE_SIZE, "size|-1");
    check_refused(bn_explain_text(&problem, op, NULL, sizeof out), BN_STATUS_NULL_POINTER, "out");
}

/* What the operation refuses of a problem, explaining it refuses too, with the same words; and writes nothing. */
static void errors_are_the_operations(void **state)
{
    (void)state;
    bn_problem bad[7];
    for (size_t i = 0; i < LENGTH(bad); i++)
        bad[i] = (bn_problem)BN_PROBLEM_2D(BN_DTYPE_FLOAT64, BN_LAYOUT_NCHW, 2, 3, 4, 5);
    bad[0].struct_size--;
    bad[1].dtype = 5;
    bad[2].layout = 0;
    bad[3].rank = 6;
    bad[4].sizes[2] = -1;
    bad[5].sizes[1] = 0;
    bad[6].sizes[0] = INT64_MAX / 60; /* elements fit in 63 bits, bytes do not */
    for (size_t i = 0; i <= LENGTH(bad); i++) {
        const bn_problem *problem = i < LENGTH(bad) ? &bad[i] : NULL;
        bn_forward_inference_args args = BN_FORWARD_INFERENCE_ARGS_INIT;
        const bn_status expected = bn_forward_inference(problem, &args);
        char message[512], out[] = "as it is";
        snprintf(message, sizeof message, "%s", bn_last_error_message());
        bn_plan_info info = BN_PLAN_INFO_INIT;
        const bn_plan_info before = info;
        for (size_t op = 0; op < LENGTH(operations); op++) {
            check_refused(bn_explain(problem, operations[op], &info), expected, message);
            check_refused(bn_explain_text(problem, operations[op], out, sizeof out), expected,
                          message);
        }
        check(memcmp(&info, &before, sizeof info) == 0 && memcmp(out, "as it is", 8) == 0,
              "%s: it wrote", message);
    }

    const bn_problem problem = BN_PROBLEM_2D(BN_DTYPE_FLOAT64, BN_LAYOUT_NCHW, 2, 3, 4, 5);
    bn_plan_info info = BN_PLAN_INFO_INIT;
    check_refused(bn_explain(&problem, 0, &info), BN_STATUS_INVALID_OPTION, "operation|0|1|2|3|4");
    check_refused(bn_explain(&problem, 5, &info), BN_STATUS_INVALID_OPTION, "operation|5");
    check_refused(bn_explain(&problem, operations[0], NULL), BN_STATUS_NULL_POINTER, "info");
    info.struct_size = 4;
    check_refused(bn_explain(&problem, operations[0], &info), BN_STATUS_STRUCT_SIZE,
                  "info|4|8 to 4096");
}

/* The operation's own answer depends on its policy; the plan does not. */
static void one_value_per_channel_is_explained(void **state)
{
    (void)state;
    const bn_problem problem = BN_PROBLEM_2D(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 1, 3, 1, 1);
    char text[BN_EXPLAIN_TEXT_SIZE];
    check(bn_explain_text(&problem, BN_OPERATION_FORWARD_TRAINING, text, sizeof text) ==
              BN_STATUS_OK,
          "%s", bn_last_error_message());
    check(strstr(text, "one_value") != NULL, "it does not tell: %s", text);
    check(bn_explain_text(&problem, BN_OPERATION_BACKWARD, text, sizeof text) == BN_STATUS_OK, "%s",
          bn_last_error_message());
    check(strstr(text, "one_value") == NULL, "backward has no such policy: %s", text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(numbers_fit_each_other, fixture_teardown),
        cmocka_unit_test_teardown(enormous_shapes, fixture_teardown),
        cmocka_unit_test_teardown(an_empty_batch_needs_nothing, fixture_teardown),
        cmocka_unit_test_teardown(the_words_hold_the_numbers, fixture_teardown),
        cmocka_unit_test_teardown(a_text_needs_room, fixture_teardown),
        cmocka_unit_test_teardown(errors_are_the_operations, fixture_teardown),
        cmocka_unit_test_teardown(one_value_per_channel_is_explained, fixture_teardown),
    };
    return cmocka_run_group_tests_name("abi: explain", tests, NULL, NULL);
}
