#include "check.h"

#include "fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct named_buffer {
    const char *name;
    void *data;
    size_t bytes;
} named_buffer;

static void list_buffers(const fixture *f, named_buffer list[FIXTURE_BUFFERS])
{
#define ELEMENTS(member)                                   \
    {                                                      \
        #member, f->member.data, elements_bytes(f->member) \
    }
    const size_t counters = 2 * (size_t)f->grid.channels;
    const size_t samples = f->lengths ? (size_t)f->original.sizes[0] : 0;
    const named_buffer all[FIXTURE_BUFFERS] = {
        ELEMENTS(input),
        ELEMENTS(grad_output),
        ELEMENTS(weight),
        ELEMENTS(bias),
        ELEMENTS(running_mean),
        ELEMENTS(running_var),
        { "skipped_batches", f->skipped_batches, counters * sizeof(int64_t) },
        ELEMENTS(saved_mean),
        ELEMENTS(saved_invstd),
        ELEMENTS(saved_mean_rest),
        ELEMENTS(output),
        ELEMENTS(grad_input),
        ELEMENTS(grad_weight),
        ELEMENTS(grad_bias),
        ELEMENTS(residual),
        ELEMENTS(grad_residual),
        { "activation_mask", f->bits, (size_t)f->bits_count },
        { "mask", f->mask, (size_t)f->positions },
        { "lengths", f->lengths, samples * sizeof(int64_t) },
    };
#undef ELEMENTS
    memcpy(list, all, sizeof all);
}

static ref_grid grid_of(const bn_problem *problem)
{
    const int64_t batch = problem->sizes[0], channels = problem->sizes[1];
    int64_t spatial = 1;
    for (int i = 2; i < problem->rank; i++) spatial *= problem->sizes[i];
    return problem->layout == BN_LAYOUT_NCHW ? (ref_grid){ batch, channels, spatial }
                                             : (ref_grid){ batch * spatial, channels, 1 };
}

fixture fixture_make(bn_problem problem, placement where)
{
    const bool is_double = problem.dtype == BN_DTYPE_FLOAT64;
    int turn = (int)where;
    fixture f = { .problem = problem, .original = problem, .grid = grid_of(&problem) };
    const int64_t count = ref_count(f.grid), channels = f.grid.channels;
#define NEXT (placement)(turn++ % 3)
    f.input = guarded_elements(count, is_double, NEXT);
    f.output = guarded_elements(count, is_double, NEXT);
    f.grad_output = guarded_elements(count, is_double, NEXT);
    f.grad_input = guarded_elements(count, is_double, NEXT);
    f.weight = guarded_elements(channels, is_double, NEXT);
    f.bias = guarded_elements(channels, is_double, NEXT);
    f.running_mean = guarded_elements(channels, is_double, NEXT);
    f.running_var = guarded_elements(channels, is_double, NEXT);
    f.saved_mean = guarded_elements(channels, true, NEXT);
    f.saved_invstd = guarded_elements(channels, true, NEXT);
    f.saved_mean_rest = guarded_elements(channels, true, NEXT);
    f.grad_weight = guarded_elements(channels, is_double, NEXT);
    f.grad_bias = guarded_elements(channels, is_double, NEXT);
    f.num_batches_tracked = guarded(sizeof(int64_t), sizeof(int64_t), NEXT);
    const size_t counters = 2 * (size_t)channels * sizeof(int64_t);
    f.skipped_batches = guarded(counters, sizeof(int64_t), NEXT);
    memset(f.skipped_batches, 0, counters);
#undef NEXT
    elements_fill_normal(f.input, 21, 0.5, 2);
    elements_fill_normal(f.grad_output, 22, 0.1, 1);
    elements_fill_normal(f.weight, 23, 1, 0.5);
    elements_fill_normal(f.bias, 24, 0, 1);
    elements_fill_normal(f.running_mean, 25, 0, 1);
    elements_fill_normal(f.saved_mean, 26, 0, 1);
    for (int64_t c = 0; c < channels; c++) {
        elements_set(f.running_var, c, 0.5 + 0.25 * (double)(c % 9));
        elements_set(f.saved_invstd, c, 0.25 + 0.125 * (double)(c % 7));
        elements_set(f.saved_mean_rest, c, 0);
    }
    elements_fill_junk(f.output);
    elements_fill_junk(f.grad_input);
    elements_fill_junk(f.grad_weight);
    elements_fill_junk(f.grad_bias);
    *f.num_batches_tracked = 3;
    fixture_restore_args(&f);
    return f;
}

/* ---- arguments ---- */

bn_view view_of(elements array)
{
    return (bn_view){ array.data, array.count };
}

bn_mutable_view mutable_view_of(elements array)
{
    return (bn_mutable_view){ array.data, array.count };
}

bn_saved saved_of(const fixture *f)
{
    return (bn_saved){ .mean = { f->saved_mean.data, f->saved_mean.count },
                       .invstd = { f->saved_invstd.data, f->saved_invstd.count },
                       .mean_rest = { f->saved_mean_rest.data, f->saved_mean_rest.count } };
}

void fixture_restore_args(fixture *f)
{
    f->problem = f->original;
    f->training = (bn_forward_training_args){
        BN_FORWARD_TRAINING_ARGS_DEFAULTS,
        .input = view_of(f->input),
        .output = mutable_view_of(f->output),
        .weight = view_of(f->weight),
        .bias = view_of(f->bias),
        .running_mean = mutable_view_of(f->running_mean),
        .running_var = mutable_view_of(f->running_var),
        .num_batches_tracked = f->num_batches_tracked,
        .skipped_batches = { f->skipped_batches, 2 * f->grid.channels },
        .saved = saved_of(f),
    };
    f->inference = (bn_forward_inference_args){
        BN_FORWARD_INFERENCE_ARGS_DEFAULTS,
        .input = view_of(f->input),
        .output = mutable_view_of(f->output),
        .weight = view_of(f->weight),
        .bias = view_of(f->bias),
        .running_mean = view_of(f->running_mean),
        .running_var = view_of(f->running_var),
    };
    f->backward = (bn_backward_args){
        BN_BACKWARD_ARGS_DEFAULTS,
        .input = view_of(f->input),
        .grad_output = view_of(f->grad_output),
        .grad_input = mutable_view_of(f->grad_input),
        .grad_weight = mutable_view_of(f->grad_weight),
        .grad_bias = mutable_view_of(f->grad_bias),
        .weight = view_of(f->weight),
        .saved = saved_of(f),
        .running_mean = view_of(f->running_mean),
        .running_var = view_of(f->running_var),
    };
}

void fixture_add_extras(fixture *f)
{
    const int64_t count = f->input.count, samples = f->original.sizes[0];
    const int64_t steps = f->original.rank == 3 ? f->original.sizes[2] : 1;
    f->positions = f->grid.rows * f->grid.inner;
    f->bits_count = (count + 7) / 8;
    f->residual = guarded_elements(count, f->input.is_double, PLACE_SHIFTED);
    f->grad_residual = guarded_elements(count, f->input.is_double, PLACE_END);
    f->bits = guarded((size_t)f->bits_count, 1, PLACE_SHIFTED);
    f->mask = guarded((size_t)f->positions, 1, PLACE_END);
    f->lengths = guarded((size_t)samples * sizeof(int64_t), sizeof(int64_t), PLACE_END);
    elements_fill_normal(f->residual, 27, 0.25, 1);
    elements_fill_junk(f->grad_residual);
    memset(f->bits, 0x5B, (size_t)f->bits_count);
    uint32_t random = 28;
#define NEXT (random = random * 1664525u + 1013904223u, random >> 16)
    /* Long stretches of either kind as well as single positions. */
    for (int64_t i = 0; i < f->positions; i++) {
        const uint32_t share = i / 97 % 3 == 0 ? 0 : i / 97 % 3 == 1 ? 60000 : 20000;
        f->mask[i] = NEXT < share ? 0 : i % 2 == 0 ? 1 : 255;
    }
    for (int64_t i = 0; i < 2 && i < f->positions; i++) f->mask[f->positions - 1 - i] = 1;
    for (int64_t n = 0; n < samples; n++) f->lengths[n] = (int64_t)NEXT % (steps + 1);
    if (samples > 0) f->lengths[samples - 1] = steps;
#undef NEXT
}

bn_activation activation_of(extras e)
{
    return (bn_activation){ .kind = e.activation, .slope = e.slope };
}

bn_positions positions_of(const fixture *f, extras e)
{
    bn_positions positions = { .masked = e.masked };
    if (e.mask) positions.mask = (bn_byte_view){ f->mask, f->positions };
    if (e.lengths) positions.lengths = (bn_int64_view){ f->lengths, f->original.sizes[0] };
    return positions;
}

void fixture_use(fixture *f, extras e)
{
    fixture_restore_args(f);
    f->training.activation = f->inference.activation = f->backward.activation = activation_of(e);
    f->training.positions = f->inference.positions = f->backward.positions = positions_of(f, e);
    if (e.activation != BN_ACTIVATION_NONE) {
        const bn_mutable_byte_view mask = { f->bits, f->bits_count };
        f->training.activation_mask = f->inference.activation_mask = mask;
        f->backward.activation_mask = (bn_byte_view){ f->bits, f->bits_count };
    }
    if (e.residual) {
        f->training.residual = f->inference.residual = view_of(f->residual);
        f->backward.grad_residual = mutable_view_of(f->grad_residual);
    }
}

void fixture_make_extreme(fixture *f)
{
    const bool is_double = f->input.is_double;
    const double largest = is_double ? 8e305 : 1.4e36, smallest = is_double ? 1e-310 : 1e-41;
    for (int64_t c = 0; c < f->grid.channels; c++) {
        const int kind = (int)(c % 7); /* 0 and 6: ordinary */
        if (kind == 1) elements_set(f->weight, c, smallest);
        if (kind == 2) elements_set(f->weight, c, -largest);
        if (kind == 4) elements_set(f->weight, c, 1 / smallest / 64);
        if (kind == 3) elements_set(f->running_mean, c, largest);
        if (kind == 4) elements_set(f->running_var, c, smallest);
        if (kind == 5) elements_set(f->running_mean, c, -largest);
        for (int64_t i = 0; i < f->grid.rows * f->grid.inner; i++) {
            const int64_t at = ref_index(f->grid, c, i);
            if (kind == 3) elements_set(f->input, at, largest);
            if (kind == 4) elements_set(f->input, at, elements_get(f->input, at) * smallest);
        }
    }
}

int64_t fixture_position(const fixture *f, int64_t index)
{
    const int64_t inner = f->grid.inner;
    return index / (f->grid.channels * inner) * inner + index % inner;
}

void fixture_remember(fixture *f)
{
    named_buffer list[FIXTURE_BUFFERS];
    list_buffers(f, list);
    for (int i = 0; i < FIXTURE_BUFFERS; i++) {
        if (list[i].data == NULL) continue;
        if (f->copies[i] == NULL) f->copies[i] = guarded(list[i].bytes, 1, PLACE_START);
        memcpy(f->copies[i], list[i].data, list[i].bytes);
    }
    f->copied_counter = *f->num_batches_tracked;
}

const char *fixture_changed(const fixture *f)
{
    named_buffer list[FIXTURE_BUFFERS];
    list_buffers(f, list);
    for (int i = 0; i < FIXTURE_BUFFERS; i++)
        if (list[i].data && memcmp(f->copies[i], list[i].data, list[i].bytes) != 0)
            return list[i].name;
    return *f->num_batches_tracked == f->copied_counter ? NULL : "num_batches_tracked";
}

void fixture_recall(fixture *f)
{
    named_buffer list[FIXTURE_BUFFERS];
    list_buffers(f, list);
    for (int i = 0; i < FIXTURE_BUFFERS; i++)
        if (list[i].data) memcpy(list[i].data, f->copies[i], list[i].bytes);
    *f->num_batches_tracked = f->copied_counter;
}

bn_problem problem_of(bn_dtype dtype, bn_layout layout, int rank, const int64_t *sizes)
{
    bn_problem problem = BN_PROBLEM_INIT;
    problem.dtype = dtype;
    problem.layout = layout;
    problem.rank = rank;
    for (int i = 0; i < rank; i++) problem.sizes[i] = sizes[i];
    return problem;
}

static void check_done(const fixture *f, const char *call, bn_status status)
{
    check(status == BN_STATUS_OK, "%s of %s: %s: %s", call, problem_text(&f->problem),
          bn_status_name(status), bn_last_error_message());
    check(guarded_intact(), "%s of %s wrote beside a buffer", call, problem_text(&f->problem));
}

void run_training(fixture *f)
{
    check_done(f, "training forward", bn_forward_training(&f->problem, &f->training));
}

void run_inference(fixture *f)
{
    check_done(f, "inference forward", bn_forward_inference(&f->problem, &f->inference));
}

void run_backward(fixture *f)
{
    check_done(f, "backward", bn_backward(&f->problem, &f->backward));
}

void check_refused(bn_status actual, bn_status expected, const char *words)
{
    const char *message = bn_last_error_message();
    check(actual == expected, "status %s, expected %s (%s): \"%s\"", bn_status_name(actual),
          bn_status_name(expected), words, message);
    while (*words != 0) {
        char word[64];
        const size_t length = strcspn(words, "|");
        snprintf(word, sizeof word, "%.*s", (int)length, words);
        check(strstr(message, word) != NULL, "%s: no \"%s\" in \"%s\"", bn_status_name(expected),
              word, message);
        words += length;
        if (*words == '|') words++;
    }
}

void check_bits(const fixture *f, const char *what, elements got, elements expected)
{
    const int64_t at = elements_first_difference(got, expected);
    check(at < 0, "%s: %s[%lld] is %.17g, expected %.17g", problem_text(&f->problem), what,
          (long long)at, elements_get(got, at), elements_get(expected, at));
}

static ref_statistics *room_for(int64_t channels)
{
    static ref_statistics *room;
    static int64_t size;
    if (channels > size) {
        room = realloc(room, (size_t)channels * sizeof *room);
        if (room == NULL) abort();
        size = channels;
    }
    return room;
}

const ref_statistics *batch_statistics(const fixture *f, double epsilon)
{
    ref_statistics *statistics = room_for(f->grid.channels);
    for (int64_t c = 0; c < f->grid.channels; c++)
        statistics[c] = ref_of_batch(f->grid, f->input, c, epsilon);
    return statistics;
}

const ref_statistics *running_statistics(const fixture *f, double epsilon)
{
    ref_statistics *statistics = room_for(f->grid.channels);
    for (int64_t c = 0; c < f->grid.channels; c++)
        statistics[c] = ref_of_running(elements_get(f->running_mean, c),
                                       elements_get(f->running_var, c), epsilon);
    return statistics;
}

const ref_statistics *saved_statistics(const fixture *f)
{
    ref_statistics *statistics = room_for(f->grid.channels);
    for (int64_t c = 0; c < f->grid.channels; c++)
        statistics[c] =
            ref_of_saved(elements_get(f->saved_mean, c), elements_get(f->saved_mean_rest, c),
                         elements_get(f->saved_invstd, c));
    return statistics;
}

const char *problem_text(const bn_problem *problem)
{
    static char text[160];
    int at = snprintf(text, sizeof text, "%s %s (",
                      problem->dtype == BN_DTYPE_FLOAT64 ? "float64" : "float32",
                      problem->layout == BN_LAYOUT_NHWC ? "NHWC" : "NCHW");
    for (int i = 0; i < problem->rank && i < 5; i++)
        at += snprintf(text + at, sizeof text - (size_t)at, "%s%lld", i > 0 ? ", " : "",
                       (long long)problem->sizes[i]);
    snprintf(text + at, sizeof text - (size_t)at, ")");
    return text;
}

const char *extras_text(extras e)
{
    static char text[160];
    const char *const activations[] = { "", "ReLU", "leaky ReLU" };
    snprintf(text, sizeof text, "%s by %g%s%s%s%s", activations[e.activation], e.slope,
             e.residual ? ", residual" : "", e.mask ? ", mask" : "", e.lengths ? ", lengths" : "",
             e.masked == BN_MASKED_PASS ? ", pass" : "");
    return text;
}

int fixture_teardown(void **state)
{
    (void)state;
    guarded_free_all();
    bn_set_num_threads(0);
    bn_set_max_isa(BN_ISA_AVX512);
    bn_set_threading(BN_THREADING_AUTO);
    return 0;
}
