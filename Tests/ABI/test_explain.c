/*
 * bn_explain: numbers that fit each other and the settings, for every operation and what can be fused into it; that calls
 * do what they say; words that hold the numbers; and the errors of the operations themselves.
 */
#include "check.h"

#include <batchnorm.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "layers.h"
#include "pools.h"
#include "zero_call.h"

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

static bn_plan_info plan_of(const bn_problem *problem, const bn_explain_args *args)
{
    bn_plan_info info = BN_PLAN_INFO_INIT;
    const bn_status status = bn_explain(problem, args, &info);
    check(status == BN_STATUS_OK, "%s: %s", asked_text(problem, args), bn_last_error_message());
    return info;
}

static int64_t size_of(bn_dtype dtype)
{
    return dtype == BN_DTYPE_FLOAT64 ? 8 : dtype == BN_DTYPE_FLOAT32 ? 4 : 2;
}

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static void check_numbers(const bn_problem *problem, bn_operation operation)
{
    const bn_explain_args args = asking(operation);
    const bn_plan_info p = plan_of(problem, &args);
    int64_t spatial = 1;
    for (int i = 2; i < problem->rank; i++) spatial *= problem->sizes[i];
    const int nhwc = problem->layout == BN_LAYOUT_NHWC;
    const int64_t channels = problem->sizes[1], rows = problem->sizes[0] * (nhwc ? spatial : 1),
                  inner = nhwc ? 1 : spatial;
    const int64_t bytes = rows * channels * inner * size_of(problem->dtype);
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
                    for (int dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT16; dtype++) {
                        bn_set_num_threads(threads);
                        bn_set_max_isa(isa);
                        const bn_problem problem = problem_of(dtype, layout, 5, shapes[s]);
                        for (size_t op = 0; op < LENGTH(operations); op++)
                            check_numbers(&problem, operations[op]);
                    }
}

/* ---- what is fused, masked and left out ---- */

/* What a call may have: every combination. */
enum { KINDS = 3 << 7 };

/* The index-th of them; false if there is none, as a mask and lengths exclude each other. */
static bool make_kind(int index, bn_operation operation, bn_explain_args *args)
{
    *args = (bn_explain_args){
        .struct_size = sizeof *args,
        .operation = operation,
        .activation.kind = index >> 7,
        .residual = index & 1,
        .activation_mask = index >> 1 & 1,
        .mask = index >> 2 & 1,
        .lengths = index >> 3 & 1,
        .grad_input = index >> 4 & 1,
        .grad_weight = index >> 5 & 1,
        .grad_bias = index >> 6 & 1,
    };
    return !(args->mask && args->lengths);
}

/* A sequence of 3 x 5 x 7 values is far from any cache's end: what is moved is what the call has to. */
static void bytes_are_those_of_the_arguments(void **state)
{
    (void)state;
    int kinds = 0;
    for (int dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT16; dtype++)
        for (size_t op = 0; op < LENGTH(operations); op++) {
            const bn_problem problem = BN_PROBLEM_1D(dtype, BN_LAYOUT_NCHW, 3, 5, 7);
            const int64_t tensor = 105 * size_of(dtype), bits = 14, positions = 21, lengths = 24;
            for (int kind = 0; kind < KINDS; kind++) {
                bn_explain_args a;
                if (!make_kind(kind, operations[op], &a)) continue;
                const bool forward = a.operation <= BN_OPERATION_FORWARD_INFERENCE;
                const bool frozen = a.operation == BN_OPERATION_BACKWARD_FROZEN;
                const bool parameters = a.grad_weight || a.grad_bias;
                const bool works = forward || parameters || a.grad_input || a.residual;
                const int64_t masks = a.mask ? positions : a.lengths ? lengths : 0;
                int64_t reads = 0, needs = 0, writes = 0;
                if (forward) {
                    reads = needs = (1 + a.residual) * tensor + masks;
                    writes = tensor + (a.activation_mask ? bits : 0);
                } else if (works) {
                    const int64_t gate = a.activation.kind == BN_ACTIVATION_NONE ? 0
                                         : a.activation_mask                     ? bits
                                                                                 : tensor;
                    const bool input = !frozen || parameters;
                    const bool needed = a.grad_weight || (a.grad_input && !frozen);
                    reads = (1 + input) * tensor + gate + masks;
                    needs = (1 + needed) * tensor + gate + masks;
                    writes = (a.grad_input + a.residual) * tensor;
                }
                const bn_plan_info p = plan_of(&problem, &a);
                check(p.bytes_read == reads && p.limit_bytes_read == needs &&
                          p.bytes_written == writes && p.limit_bytes_written == writes,
                      "%s: reads %lld (limit %lld), writes %lld, expected %lld (%lld), %lld",
                      asked_text(&problem, &a), (long long)p.bytes_read,
                      (long long)p.limit_bytes_read, (long long)p.bytes_written, (long long)reads,
                      (long long)needs, (long long)writes);
                check((p.steps > 0) == works && (p.pieces > 0) == works,
                      "%s: %d steps, %lld pieces", asked_text(&problem, &a), p.steps,
                      (long long)p.pieces);
                check(p.tensor_bytes == tensor, "%s: a tensor of %lld bytes",
                      asked_text(&problem, &a), (long long)p.tensor_bytes);
                kinds++;
            }
        }
    check(kinds == 4 * 4 * KINDS * 3 / 4, "%d kinds of calls", kinds);
}

/* The fewest values that several threads take; in the last shape every step has a task for a second one. */
static void calls_go_through_the_steps_that_are_explained(void **state)
{
    (void)state;
    static const int64_t sizes[][3] = { { 4, 70, 260 }, { 2000, 1, 40 }, { 2, 1100, 30 } };
    int seen[4] = { 0 }, whole = 0;
    for (size_t s = 0; s < LENGTH(sizes); s++)
        for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++)
            for (int kind = 0; kind < KINDS * (int)LENGTH(operations); kind++) {
                const bn_problem problem = problem_of(BN_DTYPE_FLOAT16, layout, 3, sizes[s]);
                bn_explain_args args;
                if (!make_kind(kind % KINDS, operations[kind / KINDS], &args)) continue;
                pool_log log = { .calls = 0 };
                bn_set_num_threads(7);
                zero_call call = zero_call_make(&problem, &args);
                bn_set_thread_pool(pool_forward, &log);
                const bn_status status = zero_call_run(&call);
                bn_set_thread_pool(NULL, NULL);
                check_ok(status, "a call");
                const bn_plan_info p = plan_of(&problem, &args);
                check(log.widest == (p.threads > 1 ? p.threads : 0) && log.calls <= p.steps,
                      "%s: %d teams of up to %d, explained %d steps on %d threads",
                      asked_text(&problem, &args), log.calls, log.widest, p.steps, p.threads);
                seen[p.steps]++;
                whole += log.calls == p.steps && p.steps > 1;
                guarded_free_all();
            }
    check(seen[1] && seen[2] && seen[3] && whole,
          "steps: %d one, %d two, %d three, %d with a team each", seen[1], seen[2], seen[3], whole);
}

/* What is not among the bytes is not read: nobody may. */
static void what_is_not_explained_is_not_read(void **state)
{
    (void)state;
    const bn_problem problem = BN_PROBLEM_2D(BN_DTYPE_FLOAT32, BN_LAYOUT_NHWC, 4, 33, 16, 16);
    bn_explain_args args = asking(BN_OPERATION_BACKWARD_FROZEN);
    args.activation = (bn_activation)BN_RELU;
    args.activation_mask = args.residual = 1;
    args.grad_weight = args.grad_bias = 0;
    const bn_plan_info p = plan_of(&problem, &args);
    check(p.bytes_read == p.tensor_bytes + p.tensor_bytes / 32, "%lld bytes are read",
          (long long)p.bytes_read);
    zero_call call = zero_call_make(&problem, &args);
    void *nobodys =
        mmap(NULL, (size_t)p.tensor_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(nobodys != MAP_FAILED, "no memory");
    call.backward.input.data = nobodys;
    check_ok(zero_call_run(&call), "bn_backward"); /* or a fault */
    munmap(nobodys, (size_t)p.tensor_bytes);
}

/* Beside a residual a tensor is past the caches that is not without; half types are so at twice the values. */
static void more_tensors_are_sooner_too_large_for_the_cache(void **state)
{
    (void)state;
    for (size_t op = 0; op < LENGTH(operations); op++) {
        bn_explain_args args = asking(operations[op]);
        const int64_t usual = op < 2 ? 2 : 3;
        const int64_t l3 =
            plan_of(&(bn_problem)BN_PROBLEM_MATRIX(BN_DTYPE_FLOAT32, 1, 1), &args).l3_bytes;
        for (int dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT16; dtype++)
            for (int64_t tensors = usual; tensors <= usual + (op < 2 ? 1 : 2); tensors++) {
                args.residual = tensors > usual;
                args.activation.kind =
                    tensors > usual + 1 ? BN_ACTIVATION_RELU : BN_ACTIVATION_NONE;
                const int64_t most = l3 / 8 * 7 / tensors / size_of(dtype);
                const bn_problem small = BN_PROBLEM_MATRIX(dtype, most, 1),
                                 large = BN_PROBLEM_MATRIX(dtype, most + 1, 1);
                check(!plan_of(&small, &args).nontemporal && plan_of(&large, &args).nontemporal,
                      "%s: not where %lld tensors fill the cache", asked_text(&large, &args),
                      (long long)tensors);
            }
    }
    bn_explain_args args = asking(BN_OPERATION_BACKWARD);
    const bn_problem huge = BN_PROBLEM_MATRIX(BN_DTYPE_FLOAT32, 1 << 30, 4);
    args.grad_input = 0, args.residual = 1;
    check(!plan_of(&huge, &args).nontemporal,
          "the residual's gradient alone is written past the caches");
}

/* What the first sweep brought is read again from memory where no cache holds it, masks included. */
static void large_tensors_are_read_twice(void **state)
{
    (void)state;
    bn_set_num_threads(1);
    const bn_problem problem = BN_PROBLEM_1D(BN_DTYPE_FLOAT16, BN_LAYOUT_NHWC, 1, 64, 1 << 30);
    const int64_t tensor = problem.sizes[1] * problem.sizes[2] * 2, bits = tensor / 16,
                  mask = tensor / 128;
    bn_explain_args args = asking(BN_OPERATION_BACKWARD);
    args.activation = (bn_activation)BN_RELU;
    args.activation_mask = args.mask = args.residual = 1;
    check(plan_of(&problem, &args).bytes_read == 2 * (2 * tensor + bits + mask), "backward");
    args.operation = BN_OPERATION_BACKWARD_FROZEN;
    check(plan_of(&problem, &args).bytes_read == 3 * tensor + 2 * (bits + mask),
          "backward, frozen");
    args.operation = BN_OPERATION_FORWARD_TRAINING;
    check(plan_of(&problem, &args).bytes_read == 3 * tensor + 2 * mask, "forward");
}

/* ---- the ends of the range ---- */

static void check_enormous(const bn_problem *problem, const bn_explain_args *args)
{
    const bn_plan_info p = plan_of(problem, args);
    check(p.pieces > 0 && p.workspace_bytes >= 0 && p.limit_bytes_read >= p.tensor_bytes &&
              p.bytes_read >= p.limit_bytes_read && p.bytes_written >= p.tensor_bytes,
          "%s: a number overflows", asked_text(problem, args));
    char text[BN_EXPLAIN_TEXT_SIZE];
    check(bn_explain_text(problem, args, text, sizeof text) == BN_STATUS_OK, "%s: %s",
          asked_text(problem, args), bn_last_error_message());
    check(strlen(text) < sizeof text * 3 / 4 && strstr(text, "times the limit"),
          "%s: the text is nearly too long, or cut off: %s", asked_text(problem, args), text);
}

/* Shapes at the end of what a call accepts: no number overflows, no text is too long. */
static void enormous_shapes(void **state)
{
    (void)state;
    for (int dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT16; dtype++)
        for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++)
            for (int n = 0; n < 60; n += 3)
                for (int c = 0; n + c < 60; c += 3) {
                    const int64_t one = 1;
                    const int64_t sizes[] = { one << n, one << c, one << (59 - n - c) };
                    const bn_problem problem = problem_of(dtype, layout, 3, sizes);
                    for (size_t op = 0; op < LENGTH(operations); op++) {
                        bn_explain_args args = asking(operations[op]);
                        check_enormous(&problem, &args);
                        args.activation = (bn_activation)BN_LEAKY_RELU(1.2345678901234567e-38);
                        args.residual = args.lengths = 1;
                        check_enormous(&problem, &args);
                    }
                }
}

static void an_empty_batch_needs_nothing(void **state)
{
    (void)state;
    const bn_problem problem = BN_PROBLEM_2D(BN_DTYPE_FLOAT32, BN_LAYOUT_NHWC, 0, 3, 4, 4);
    for (size_t op = 0; op < LENGTH(operations); op++) {
        bn_explain_args args = asking(operations[op]);
        args.residual = args.mask = 1;
        const bn_plan_info p = plan_of(&problem, &args);
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
            const bn_explain_args args = asking(operations[op]);
            const bn_plan_info p = plan_of(&problem, &args);
            char text[BN_EXPLAIN_TEXT_SIZE], words[128];
            check(bn_explain_text(&problem, &args, text, sizeof text) == BN_STATUS_OK, "%s",
                  bn_last_error_message());
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

static void check_words(bn_explain_args args, const char *expected)
{
    const bn_problem problem = BN_PROBLEM_1D(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 1000, 10, 100);
    char text[BN_EXPLAIN_TEXT_SIZE];
    check(bn_explain_text(&problem, &args, text, sizeof text) == BN_STATUS_OK, "%s",
          bn_last_error_message());
    check(strstr(text, expected) != NULL, "expected %s in: %s", expected, text);
}

static void the_words_tell_what_is_fused(void **state)
{
    (void)state;
    bn_explain_args args = asking(BN_OPERATION_FORWARD_TRAINING);
    args.activation = (bn_activation)BN_RELU;
    check_words(args, "\nfused: ReLU(batch normalization); nothing more to move\n");
    args.residual = args.activation_mask = 1;
    check_words(args,
                "\nfused: ReLU(batch normalization + residual), and one bit a value for backward; "
                "4.1 MB more to move\n");
    args.operation = BN_OPERATION_BACKWARD;
    check_words(
        args,
        "\nfused: back through ReLU, by one bit a value, and the residual's gradient; 4.1 MB more");
    args.activation = (bn_activation)BN_LEAKY_RELU(0.25);
    args.activation_mask = 0, args.lengths = 1, args.grad_weight = 0;
    check_words(args, "\nfused: back through leaky ReLU with slope 0.25, by the forward's output, "
                      "and the residual's");
    check_words(args, "\nmasked: 100 KB of workspace, one byte a position, made of the lengths;");
    check_words(args, "\ngradients: grad_input, grad_bias, grad_residual, no others\n");
    check_words(
        args, "\nlimit: one sweep over 5 tensors, with masks, which reads 12 MB and writes 8 MB\n");
    args = (bn_explain_args){ .struct_size = sizeof args, .operation = BN_OPERATION_BACKWARD };
    check_words(args, "\nno gradient is wanted: there is nothing to do");
    args.mask = args.grad_bias = 1;
    check_words(args, "\nmasked: 100 KB, one byte a position;");
    check_words(args, "sums; nothing is applied\nstores: none\n");
    args.operation = BN_OPERATION_BACKWARD_FROZEN;
    args.grad_bias = 0, args.residual = 1;
    check_words(args, "the statistics are given,");
    check_words(args, "\nstores: ordinary\n");
}

static void a_text_needs_room(void **state)
{
    (void)state;
    const bn_problem problem = BN_PROBLEM_2D(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 8, 3, 32, 32);
    char whole[BN_EXPLAIN_TEXT_SIZE], out[BN_EXPLAIN_TEXT_SIZE];
    const bn_explain_args args = asking(BN_OPERATION_BACKWARD);
    check(bn_explain_text(&problem, &args, whole, sizeof whole) == BN_STATUS_OK, "%s",
          bn_last_error_message());
    const int64_t size = (int64_t)strlen(whole) + 1;
    for (int64_t less = 0; less < size; less++) {
        char words[64];
        memset(out, '#', sizeof out);
        snprintf(words, sizeof words, "size|%lld|%lld", (long long)less, (long long)size);
        check_refused(bn_explain_text(&problem, &args, out, less), BN_STATUS_BUFFER_TOO_SMALL,
                      words);
        check(memchr(out, '#', sizeof out) == out && out[sizeof out - 1] == '#', "it wrote");
    }
    check(bn_explain_text(&problem, &args, out, size) == BN_STATUS_OK, "%s",
          bn_last_error_message());
    check(strcmp(out, whole) == 0, "another text: %s", out);
    check(out[size] == '#', "it wrote beyond its end");
    check_refused(bn_explain_text(&problem, &args, out, -1), BN_STATUS_NEGATIVE_SIZE, "size|-1");
    check_refused(bn_explain_text(&problem, &args, NULL, sizeof out), BN_STATUS_NULL_POINTER,
                  "out");
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
            const bn_explain_args asked = asking(operations[op]);
            check_refused(bn_explain(problem, &asked, &info), expected, message);
            check_refused(bn_explain_text(problem, &asked, out, sizeof out), expected, message);
        }
        check(memcmp(&info, &before, sizeof info) == 0 && memcmp(out, "as it is", 8) == 0,
              "%s: it wrote", message);
    }

    const bn_problem problem = BN_PROBLEM_2D(BN_DTYPE_FLOAT64, BN_LAYOUT_NCHW, 2, 3, 4, 5);
    bn_plan_info info = BN_PLAN_INFO_INIT;
    bn_explain_args asked = asking(BN_OPERATION_BACKWARD);
    check_refused(bn_explain(&problem, &asked, NULL), BN_STATUS_NULL_POINTER, "info");
    check_refused(bn_explain(&problem, NULL, &info), BN_STATUS_NULL_POINTER, "args");
    check_refused(bn_explain_text(&problem, NULL, (char[8]){ 0 }, 8), BN_STATUS_NULL_POINTER,
                  "args");
    info.struct_size = 4;
    check_refused(bn_explain(&problem, &asked, &info), BN_STATUS_STRUCT_SIZE, "info|4|8 to 4096");
}

/* Each member of what is asked: an error that names it, and the plan stays as it was. */
static void bad_questions_are_refused(void **state)
{
    (void)state;
    const struct {
        size_t member;
        int32_t value;
        bn_status status;
        const char *words;
    } bad[] = {
#define BAD(member, value, status, words) \
    { offsetof(bn_explain_args, member), value, BN_STATUS_##status, words }
        BAD(struct_size, 56, STRUCT_SIZE, "args|56|64 to 4096"),
        BAD(operation, 0, INVALID_OPTION, "operation|0|1|2|3|4"),
        BAD(operation, 5, INVALID_OPTION, "operation|5"),
        BAD(activation.kind, 3, INVALID_OPTION, "activation|3|0 (none), 1 (ReLU) or 2"),
        BAD(activation.reserved, 1, INVALID_OPTION, "reserved|1|0"),
        BAD(residual, 2, INVALID_OPTION, "residual|2|0 or 1"),
        BAD(activation_mask, -1, INVALID_OPTION, "activation_mask|-1|0 or 1"),
        BAD(mask, 3, INVALID_OPTION, "mask|3|0 or 1"),
        BAD(lengths, 4, INVALID_OPTION, "lengths|4|0 or 1"),
        BAD(grad_input, 5, INVALID_OPTION, "grad_input|5|0 or 1"),
        BAD(grad_weight, 6, INVALID_OPTION, "grad_weight|6|0 or 1"),
        BAD(grad_bias, 7, INVALID_OPTION, "grad_bias|7|0 or 1"),
        BAD(reserved, 8, INVALID_OPTION, "reserved|8|0"),
        BAD(lengths, 1, RANK, "lengths|4|3"),
#undef BAD
    };
    const bn_problem problem = BN_PROBLEM_2D(BN_DTYPE_FLOAT16, BN_LAYOUT_NCHW, 2, 3, 4, 5);
    bn_plan_info info = BN_PLAN_INFO_INIT;
    const bn_plan_info before = info;
    char out[] = "as it is";
    for (size_t i = 0; i < LENGTH(bad); i++) {
        bn_explain_args asked = asking(BN_OPERATION_FORWARD_INFERENCE);
        memcpy((char *)&asked + bad[i].member, &bad[i].value, sizeof bad[i].value);
        check_refused(bn_explain(&problem, &asked, &info), bad[i].status, bad[i].words);
        check_refused(bn_explain_text(&problem, &asked, out, sizeof out), bad[i].status,
                      bad[i].words);
    }
    bn_explain_args asked = asking(BN_OPERATION_BACKWARD);
    asked.mask = asked.lengths = 1;
    check_refused(bn_explain(&problem, &asked, &info), BN_STATUS_EXCLUSIVE, "mask|lengths");
    asked.mask = asked.lengths = 0;
    asked.activation = (bn_activation)BN_LEAKY_RELU(1e39);
    check_refused(bn_explain(&problem, &asked, &info), BN_STATUS_NEGATIVE_SLOPE, "slope|1e+39");
    asked.activation.kind = BN_ACTIVATION_RELU;
    check_refused(bn_explain(&problem, &asked, &info), BN_STATUS_INVALID_OPTION, "slope|1e+39|0");
    asked.activation = (bn_activation){ .limit = 6 };
    check_refused(bn_explain(&problem, &asked, &info), BN_STATUS_INVALID_OPTION, "limit|6|0");
    check(memcmp(&info, &before, sizeof info) == 0 && strcmp(out, "as it is") == 0, "it wrote");
}

/* The operation's own answer depends on its policy; the plan does not. */
static void one_value_per_channel_is_explained(void **state)
{
    (void)state;
    const bn_problem problem = BN_PROBLEM_2D(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 1, 3, 1, 1);
    char text[BN_EXPLAIN_TEXT_SIZE];
    bn_explain_args args = asking(BN_OPERATION_FORWARD_TRAINING);
    check(bn_explain_text(&problem, &args, text, sizeof text) == BN_STATUS_OK, "%s",
          bn_last_error_message());
    check(strstr(text, "one_value") != NULL, "it does not tell: %s", text);
    args.operation = BN_OPERATION_BACKWARD;
    check(bn_explain_text(&problem, &args, text, sizeof text) == BN_STATUS_OK, "%s",
          bn_last_error_message());
    check(strstr(text, "one_value") == NULL, "backward has no such policy: %s", text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(numbers_fit_each_other, fixture_teardown),
        cmocka_unit_test_teardown(bytes_are_those_of_the_arguments, fixture_teardown),
        cmocka_unit_test_teardown(calls_go_through_the_steps_that_are_explained, fixture_teardown),
        cmocka_unit_test_teardown(what_is_not_explained_is_not_read, fixture_teardown),
        cmocka_unit_test_teardown(more_tensors_are_sooner_too_large_for_the_cache,
                                  fixture_teardown),
        cmocka_unit_test_teardown(large_tensors_are_read_twice, fixture_teardown),
        cmocka_unit_test_teardown(enormous_shapes, fixture_teardown),
        cmocka_unit_test_teardown(an_empty_batch_needs_nothing, fixture_teardown),
        cmocka_unit_test_teardown(the_words_hold_the_numbers, fixture_teardown),
        cmocka_unit_test_teardown(the_words_tell_what_is_fused, fixture_teardown),
        cmocka_unit_test_teardown(a_text_needs_room, fixture_teardown),
        cmocka_unit_test_teardown(errors_are_the_operations, fixture_teardown),
        cmocka_unit_test_teardown(bad_questions_are_refused, fixture_teardown),
        cmocka_unit_test_teardown(one_value_per_channel_is_explained, fixture_teardown),
    };
    return cmocka_run_group_tests_name("abi: explain", tests, NULL, NULL);
}
