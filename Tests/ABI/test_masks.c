/*
 * Masked positions: what takes part is normalized as if nothing else were there, and what does not has no
 * influence on anything, whatever it is.
 */
#include "check.h"

#include <math.h>
#include <string.h>

#include "fixture.h"

/* Odd sizes; stretches of masked positions that are longer than a tile's rows; columns, folds and rows. */
static const struct {
    int rank;
    int64_t sizes[5];
} shapes[] = {
    { 2, { 7, 5 } },          { 2, { 300, 33 } },      { 2, { 90, 2100 } },
    { 2, { 5, 1500 } },       { 3, { 7, 5, 301 } },    { 3, { 2, 3, 5000 } },
    { 3, { 40, 130, 6 } },    { 4, { 7, 5, 11, 3 } },  { 4, { 16, 19, 7, 7 } },
    { 5, { 3, 5, 4, 3, 2 } }, { 4, { 3, 2, 60, 61 } },
};

static const extras plain = { .activation = BN_ACTIVATION_NONE };
static const extras masked = { .mask = true };

static fixture fixture_with_extras(bn_problem problem, placement where)
{
    fixture f = fixture_make(problem, where);
    fixture_add_extras(&f);
    fixture_remember(&f);
    return f;
}

/* Runs a test for both types, both layouts and all shapes, on changing numbers of threads and with changing
 * instruction sets. */
static void for_every_problem_like(bool extreme, void (*test)(fixture *f))
{
    int turn = 0;
    for (int dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT64; dtype++)
        for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++)
            for (size_t s = 0; s < LENGTH(shapes); s++) {
                fixture f =
                    fixture_with_extras(problem_of(dtype, layout, shapes[s].rank, shapes[s].sizes),
                                        (placement)(turn % 3));
                if (extreme) fixture_make_extreme(&f);
                fixture_remember(&f);
                bn_set_num_threads(1 + turn % 4);
                bn_set_max_isa(turn % 3 == 0 ? BN_ISA_GENERIC : BN_ISA_AVX512);
                test(&f);
                guarded_free_all();
                turn++;
            }
}

static void for_every_problem(void (*test)(fixture *f))
{
    for_every_problem_like(false, test);
}

static bool takes_part(const fixture *f, int64_t index)
{
    return f->mask[fixture_position(f, index)] != 0;
}

static int64_t kept_positions(const fixture *f)
{
    int64_t kept = 0;
    for (int64_t i = 0; i < f->positions; i++) kept += f->mask[i] != 0;
    return kept;
}

/* All that operations write, to be compared. */
typedef struct results {
    elements arrays[9];
} results;

static const char *const result_names[] = { "output",       "saved_mean",  "saved_invstd",
                                            "running_mean", "running_var", "grad_input",
                                            "grad_weight",  "grad_bias",   "grad_residual" };

static results training_and_backward(fixture *f, extras e)
{
    fixture_recall(f);
    fixture_use(f, e);
    run_training(f);
    run_backward(f);
    return (results){
        { guarded_copy(f->output), guarded_copy(f->saved_mean), guarded_copy(f->saved_invstd),
          guarded_copy(f->running_mean), guarded_copy(f->running_var), guarded_copy(f->grad_input),
          guarded_copy(f->grad_weight), guarded_copy(f->grad_bias), guarded_copy(f->grad_residual) }
    };
}

static void check_results(const fixture *f, results got, results expected)
{
    for (size_t i = 0; i < LENGTH(result_names); i++)
        check_bits(f, result_names[i], got.arrays[i], expected.arrays[i]);
}

/* ---- what takes part ---- */

/* The values of a tensor that take part, as a grid [1][channels][kept]. */
static elements compact(const fixture *f, elements tensor)
{
    const int64_t kept = kept_positions(f), values = f->positions;
    const elements dense = guarded_elements(kept * f->grid.channels, tensor.is_double, PLACE_END);
    int64_t to = 0;
    for (int64_t c = 0; c < f->grid.channels; c++)
        for (int64_t i = 0; i < values; i++) {
            const int64_t at = ref_index(f->grid, c, i);
            if (takes_part(f, at)) elements_set(dense, to++, elements_get(tensor, at));
        }
    check(to == dense.count, "%lld of %lld values", (long long)to, (long long)dense.count);
    return dense;
}

static void check_running(const fixture *f, const ref_statistics *batch, int64_t kept,
                          elements old_mean, elements old_var)
{
    for (int64_t c = 0; c < f->grid.channels; c++) {
        const double m = elements_get(old_mean, c), v = elements_get(old_var, c);
        const long double unbiased = batch[c].variance * kept / (long double)(kept - 1);
        const double mean_error =
            ref_error(elements_get(f->running_mean, c), 0.9L * m + 0.1L * ref_mean(batch[c]), 4,
                      fabs(m) + 0.1L * fabsl(ref_mean(batch[c])) + 1, f->input.is_double);
        const double var_error =
            ref_error(elements_get(f->running_var, c), 0.9L * v + 0.1L * unbiased, 16,
                      v + 0.1L * unbiased, f->input.is_double);
        check(
            mean_error <= 1 && var_error <= 1,
            "%s: channel %lld: running_mean is off by %.3g, running_var by %.3g of what is allowed",
            problem_text(&f->problem), (long long)c, mean_error, var_error);
    }
}

static void matches_the_reference(fixture *f)
{
    fixture_use(f, masked);
    const elements old_mean = guarded_copy(f->running_mean), old_var = guarded_copy(f->running_var);
    run_training(f);
    const int64_t kept = kept_positions(f);
    check(f->training.values_per_channel == kept, "values_per_channel is %lld, expected %lld",
          (long long)f->training.values_per_channel, (long long)kept);

    const ref_grid grid = { 1, f->grid.channels, kept };
    const elements x = compact(f, f->input), dy = compact(f, f->grad_output);
    ref_statistics statistics[2100];
    check(f->grid.channels <= (int64_t)LENGTH(statistics), "no room");
    for (int64_t c = 0; c < f->grid.channels; c++) statistics[c] = ref_of_batch(grid, x, c, 1e-5);
    double error =
        ref_forward_error(grid, statistics, x, f->weight, f->bias, compact(f, f->output));
    check(error <= 1, "%s: output is off by %.3g of what is allowed", problem_text(&f->problem),
          error);
    check_running(f, statistics, kept, old_mean, old_var);

    for (int frozen = 0; frozen < 2; frozen++) {
        f->backward.statistics = frozen ? BN_STATISTICS_RUNNING : BN_STATISTICS_BATCH;
        run_backward(f);
        for (int64_t c = 0; c < f->grid.channels; c++)
            statistics[c] = frozen ? ref_of_running(elements_get(f->running_mean, c),
                                                    elements_get(f->running_var, c), 1e-5)
                                   : ref_of_saved(elements_get(f->saved_mean, c),
                                                  elements_get(f->saved_mean_rest, c),
                                                  elements_get(f->saved_invstd, c));
        const ref_gradients gradients = { compact(f, f->grad_input), f->grad_weight, f->grad_bias };
        const ref_gradient_errors errors =
            ref_backward_error(grid, statistics, frozen, x, dy, f->weight, gradients);
        check(errors.input <= 1 && errors.weight <= 1 && errors.bias <= 1,
              "%s: of what is allowed grad_input is off by %.3g, grad_weight %.3g, grad_bias %.3g",
              problem_text(&f->problem), errors.input, errors.weight, errors.bias);
    }

    run_inference(f);
    for (int64_t c = 0; c < f->grid.channels; c++)
        statistics[c] =
            ref_of_running(elements_get(f->running_mean, c), elements_get(f->running_var, c), 1e-5);
    error = ref_forward_error(grid, statistics, x, f->weight, f->bias, compact(f, f->output));
    check(error <= 1, "%s: inference is off by %.3g of what is allowed", problem_text(&f->problem),
          error);
}

static void normalized_as_if_nothing_else_were_there(void **state)
{
    (void)state;
    for_every_problem(matches_the_reference);
}

/* ---- what does not ---- */

static const extras all_extras[] = {
    { .mask = true },
    { .mask = true, .masked = BN_MASKED_PASS },
    { .activation = BN_ACTIVATION_RELU, .mask = true, .residual = true },
    { .activation = BN_ACTIVATION_LEAKY_RELU,
      .slope = 2,
      .mask = true,
      .residual = true,
      .masked = BN_MASKED_PASS },
};

/* 0, or what stands there in `passed`. */
static void check_masked(const fixture *f, extras e, const char *what, elements tensor,
                         elements passed)
{
    for (int64_t i = 0; i < tensor.count; i++) {
        if (takes_part(f, i)) continue;
        const double got = elements_get(tensor, i);
        const double expected = passed.data ? elements_get(passed, i) : 0;
        check(got == expected || (isnan(got) && isnan(expected)),
              "%s, %s: %s[%lld] is %g, expected %g", problem_text(&f->problem), extras_text(e),
              what, (long long)i, got, expected);
    }
}

/* Whatever stands at masked positions, results have the same bits elsewhere, and what they should there. */
static void garbage_has_no_influence(fixture *f)
{
    static const double garbage[] = { NAN, INFINITY, -INFINITY, 3e38, -1e-40 };
    for (size_t k = 0; k < LENGTH(all_extras); k++) {
        const extras e = all_extras[k];
        const elements pass_x = e.masked == BN_MASKED_PASS ? f->input : absent_like(f->input);
        const elements pass_dy =
            e.masked == BN_MASKED_PASS ? f->grad_output : absent_like(f->input);
        const results clean = training_and_backward(f, e);
        check_masked(f, e, "output", f->output, pass_x);
        check_masked(f, e, "grad_input", f->grad_input, pass_dy);
        if (e.residual)
            check_masked(f, e, "grad_residual", f->grad_residual, absent_like(f->input));
        for (int64_t i = 0; e.activation != BN_ACTIVATION_NONE && i < f->input.count; i++)
            check(takes_part(f, i) || !(f->bits[i / 8] >> i % 8 & 1),
                  "%s, %s: the bit of masked value %lld is set", problem_text(&f->problem),
                  extras_text(e), (long long)i);

        for (int64_t i = 0; i < f->input.count; i++) {
            if (takes_part(f, i)) continue;
            elements_set(f->input, i, garbage[i % 5]);
            elements_set(f->grad_output, i, garbage[(i + 1) % 5]);
            elements_set(f->residual, i, garbage[(i + 2) % 5]);
        }
        const elements dirty_x = guarded_copy(f->input), dirty_dy = guarded_copy(f->grad_output);
        fixture_use(f, e);
        elements_fill_junk(f->output);
        elements_fill_junk(f->grad_input);
        /* Running statistics have moved on since; they are compared below. */
        run_training(f);
        run_backward(f);
        check_masked(f, e, "output", f->output,
                     e.masked == BN_MASKED_PASS ? dirty_x : absent_like(f->input));
        check_masked(f, e, "grad_input", f->grad_input,
                     e.masked == BN_MASKED_PASS ? dirty_dy : absent_like(f->input));
        check(f->training.nonfinite_channels == 0, "nonfinite_channels is %lld",
              (long long)f->training.nonfinite_channels);
        check_bits(f, "saved_mean", f->saved_mean, clean.arrays[1]);
        check_bits(f, "saved_invstd", f->saved_invstd, clean.arrays[2]);
        check_bits(f, "output", compact(f, f->output), compact(f, clean.arrays[0]));
        check_bits(f, "grad_input", compact(f, f->grad_input), compact(f, clean.arrays[5]));
        check_bits(f, "grad_weight", f->grad_weight, clean.arrays[6]);
        check_bits(f, "grad_bias", f->grad_bias, clean.arrays[7]);
        if (e.residual) check_bits(f, "grad_residual", f->grad_residual, clean.arrays[8]);
        for (int64_t c = 0; c < f->grid.channels; c++)
            check(isfinite(elements_get(f->running_mean, c)) &&
                      isfinite(elements_get(f->running_var, c)),
                  "running statistics of channel %lld", (long long)c);

        run_inference(f);
        check_masked(f, e, "inference", f->output,
                     e.masked == BN_MASKED_PASS ? dirty_x : absent_like(f->input));
        fixture_recall(f);
    }
}

static void what_is_masked_has_no_influence(void **state)
{
    (void)state;
    for_every_problem(garbage_has_no_influence);
}

/* In place, masked positions are the input's (or grad_output's) own, or 0. */
static void in_place_is_the_same(fixture *f)
{
    for (size_t k = 0; k < LENGTH(all_extras); k++) {
        const extras e = all_extras[k];
        const results apart = training_and_backward(f, e);
        fixture_recall(f);
        fixture_use(f, e);
        f->training.output.data = f->input.data;
        run_training(f);
        check_bits(f, "output in place", f->input, apart.arrays[0]);
        fixture_recall(f);
        fixture_use(f, e);
        run_training(f);
        f->backward.grad_input.data = f->grad_output.data;
        run_backward(f);
        check_bits(f, "grad_input in place", f->grad_output, apart.arrays[5]);
        fixture_recall(f);
        fixture_use(f, e);
        run_training(f);
        f->backward.grad_input.data = f->input.data;
        if (e.residual) f->backward.grad_residual.data = f->grad_output.data;
        run_backward(f);
        check_bits(f, "grad_input in place of input", f->input, apart.arrays[5]);
        if (e.residual) check_bits(f, "grad_residual in place", f->grad_output, apart.arrays[8]);
        fixture_recall(f);
    }
}

static void in_place(void **state)
{
    (void)state;
    for_every_problem(in_place_is_the_same);
}

/* ---- other ways to say it ---- */

static void ones_are_no_mask(fixture *f)
{
    memset(f->mask, 1, (size_t)f->positions);
    fixture_remember(f);
    extras e = { .activation = BN_ACTIVATION_LEAKY_RELU, .slope = 0.5, .residual = true };
    for (int fused = 0; fused < 2; fused++) {
        if (!fused) e = plain;
        e.mask = false;
        const results without = training_and_backward(f, e);
        run_inference(f);
        const elements inferred = guarded_copy(f->output);
        e.mask = true;
        check_results(f, training_and_backward(f, e), without);
        run_inference(f);
        check_bits(f, "inference", f->output, inferred);
    }
}

static void a_mask_of_ones_changes_no_bit(void **state)
{
    (void)state;
    for_every_problem(ones_are_no_mask);
}

/* Channels that are applied value by value, among others that are not. */
static void extreme_channels(void **state)
{
    (void)state;
    for_every_problem_like(true, garbage_has_no_influence);
    for_every_problem_like(true, in_place_is_the_same);
    for_every_problem_like(true, ones_are_no_mask);
}

static void lengths_are_a_mask(void **state)
{
    (void)state;
    const int64_t all_sizes[][3] = {
        { 9, 5, 70 }, { 40, 130, 6 }, { 3, 64, 1000 }, { 7, 3, 1 }, { 5, 600, 37 }
    };
    for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++)
        for (size_t s = 0; s < LENGTH(all_sizes); s++) {
            fixture f = fixture_with_extras(problem_of(BN_DTYPE_FLOAT32, layout, 3, all_sizes[s]),
                                            PLACE_END);
            const int64_t steps = all_sizes[s][2];
            for (int64_t i = 0; i < f.positions; i++) f.mask[i] = i % steps < f.lengths[i / steps];
            fixture_remember(&f);
            for (size_t k = 0; k < LENGTH(all_extras); k++) {
                extras e = all_extras[k];
                const results by_mask = training_and_backward(&f, e);
                run_inference(&f);
                const elements inferred = guarded_copy(f.output);
                e.mask = false, e.lengths = true;
                check_results(&f, training_and_backward(&f, e), by_mask);
                run_inference(&f);
                check_bits(&f, "inference", f.output, inferred);
                check(f.training.values_per_channel == kept_positions(&f),
                      "values_per_channel is %lld", (long long)f.training.values_per_channel);
            }
            guarded_free_all();
        }
}

/* Threads and instruction sets change no bit, nor does which other samples a thread has. */
static void any_threads_any_instructions(void **state)
{
    (void)state;
    const int64_t all_sizes[][5] = { { 32, 17, 14, 14 }, { 8, 3, 64, 64 }, { 3, 130, 1, 611 } };
    for (int dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT64; dtype++)
        for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++)
            for (size_t s = 0; s < LENGTH(all_sizes); s++) {
                fixture f =
                    fixture_with_extras(problem_of(dtype, layout, 4, all_sizes[s]), PLACE_SHIFTED);
                bn_set_num_threads(1);
                bn_set_max_isa(BN_ISA_GENERIC);
                const results alone = training_and_backward(&f, all_extras[3]);
                for (int isa = BN_ISA_GENERIC; isa <= BN_ISA_AVX512; isa++)
                    for (int threads = 1; threads <= 4; threads++) {
                        bn_set_num_threads(threads);
                        bn_set_max_isa(isa);
                        check_results(&f, training_and_backward(&f, all_extras[3]), alone);
                    }
                guarded_free_all();
            }
}

/* ---- few values ---- */

static void nothing_takes_part(fixture *f)
{
    memset(f->mask, 0, (size_t)f->positions);
    elements_set(f->input, 0, NAN);
    fixture_remember(f);
    for (size_t k = 0; k < LENGTH(all_extras); k++) {
        const extras e = all_extras[k];
        const bool pass = e.masked == BN_MASKED_PASS;
        fixture_use(f, e);
        run_training(f);
        check(f->training.values_per_channel == 0 && f->training.nonfinite_channels == 0,
              "values_per_channel is %lld, nonfinite_channels %lld",
              (long long)f->training.values_per_channel, (long long)f->training.nonfinite_channels);
        check_masked(f, e, "output", f->output, pass ? f->input : absent_like(f->input));
        for (int64_t i = 0; e.activation != BN_ACTIVATION_NONE && i < f->bits_count; i++)
            check(f->bits[i] == 0, "byte %lld of activation_mask is %d", (long long)i, f->bits[i]);
        elements_fill_junk(f->output);
        run_inference(f);
        check_masked(f, e, "inference", f->output, pass ? f->input : absent_like(f->input));
        run_backward(f);
        check_masked(f, e, "grad_input", f->grad_input,
                     pass ? f->grad_output : absent_like(f->input));
        if (e.residual)
            check_masked(f, e, "grad_residual", f->grad_residual, absent_like(f->input));
        for (int64_t c = 0; c < f->grid.channels; c++)
            check(elements_get(f->grad_weight, c) == 0 && elements_get(f->grad_bias, c) == 0,
                  "gradients of nothing are %g and %g", elements_get(f->grad_weight, c),
                  elements_get(f->grad_bias, c));
        /* All else is as it was. */
        elements_fill_junk(f->output);
        elements_fill_junk(f->grad_input);
        elements_fill_junk(f->grad_weight);
        elements_fill_junk(f->grad_bias);
        elements_fill_junk(f->grad_residual);
        memset(f->bits, 0x5B, (size_t)f->bits_count);
        const char *changed = fixture_changed(f);
        check(changed == NULL, "%s, %s: changed %s", problem_text(&f->problem), extras_text(e),
              changed);
    }
}

static void all_masked_updates_nothing(void **state)
{
    (void)state;
    for_every_problem(nothing_takes_part);
}

static void one_takes_part(fixture *f)
{
    const int64_t only = f->positions * 2 / 3;
    memset(f->mask, 0, (size_t)f->positions);
    f->mask[only] = 1;
    fixture_remember(f);

    fixture_use(f, masked);
    check_refused(bn_forward_training(&f->problem, &f->training), BN_STATUS_ONE_VALUE, "");
    const char *changed = fixture_changed(f);
    check(changed == NULL, "BN_ONE_VALUE_ERROR changed %s", changed);

    f->training.one_value = BN_ONE_VALUE_USE_RUNNING;
    run_training(f);
    check(f->training.statistics_used == BN_STATISTICS_RUNNING &&
              f->training.values_per_channel == 1,
          "statistics_used is %d, values_per_channel %lld", f->training.statistics_used,
          (long long)f->training.values_per_channel);
    const elements by_running = guarded_copy(f->output);
    check_masked(f, masked, "output", f->output, absent_like(f->input));
    run_inference(f);
    check_bits(f, "output by running statistics", by_running, f->output);
    elements_fill_junk(f->output);

    f->training.one_value = BN_ONE_VALUE_ALLOW;
    run_training(f);
    check(f->training.statistics_used == BN_STATISTICS_BATCH, "statistics_used is %d",
          f->training.statistics_used);
    for (int64_t i = 0; i < f->output.count; i++) {
        if (!takes_part(f, i)) continue;
        const int64_t channel = i / f->grid.inner % f->grid.channels;
        check(elements_get(f->output, i) == elements_get(f->bias, channel),
              "%s: output[%lld] is %g, expected the bias, %g", problem_text(&f->problem),
              (long long)i, elements_get(f->output, i), elements_get(f->bias, channel));
        check(elements_get(f->saved_mean, channel) == elements_get(f->input, i),
              "saved_mean[%lld] is %g", (long long)channel, elements_get(f->saved_mean, channel));
    }
    check_masked(f, masked, "output", f->output, absent_like(f->input));
    run_backward(f);
    /* The direct term and that of the mean are the same but for rounding. */
    for (int64_t i = 0; i < f->grad_input.count; i++) {
        const int64_t channel = i / f->grid.inner % f->grid.channels;
        const double largest = takes_part(f, i) ? elements_get(f->weight, channel) *
                                                      elements_get(f->saved_invstd, channel) *
                                                      elements_get(f->grad_output, i)
                                                : 0;
        const double error =
            ref_error(elements_get(f->grad_input, i), 0, 4, largest, f->input.is_double);
        check(largest == 0 ? elements_get(f->grad_input, i) == 0 : error <= 1,
              "%s: grad_input[%lld] is %g", problem_text(&f->problem), (long long)i,
              elements_get(f->grad_input, i));
    }
}

static void one_value_per_channel(void **state)
{
    (void)state;
    for_every_problem(one_takes_part);
}

/* ---- refusals ---- */

typedef enum operation { TRAINING, INFERENCE, BACKWARD } operation;

static void refuses(fixture *f, extras good, operation op, bn_status expected, const char *words)
{
    fixture_remember(f);
    check_refused(op == TRAINING    ? bn_forward_training(&f->problem, &f->training)
                  : op == INFERENCE ? bn_forward_inference(&f->problem, &f->inference)
                                    : bn_backward(&f->problem, &f->backward),
                  expected, words);
    const char *changed = fixture_changed(f);
    check(changed == NULL, "%s (%s): changed %s", bn_status_name(expected), words, changed);
    fixture_use(f, good);
}

#define IN_ALL(change, status, words)                                    \
    do {                                                                 \
        f.training change, refuses(&f, good, TRAINING, status, words);   \
        f.inference change, refuses(&f, good, INFERENCE, status, words); \
        f.backward change, refuses(&f, good, BACKWARD, status, words);   \
    } while (0)

static void bad_masks_are_refused(void **state)
{
    (void)state;
    const int64_t sizes[] = { 4, 3, 10 };
    fixture f =
        fixture_with_extras(problem_of(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 3, sizes), PLACE_START);
    const extras good = masked;
    fixture_use(&f, good);
    IN_ALL(.positions.masked = 2, BN_STATUS_INVALID_OPTION, "masked is 2|pass");
    IN_ALL(.positions.mask.count = 39, BN_STATUS_COUNT_MISMATCH, "mask.count|39|40");
    IN_ALL(.positions.mask.count = 120, BN_STATUS_COUNT_MISMATCH, "mask.count|120|40");
    IN_ALL(.positions.mask.count = -40, BN_STATUS_NEGATIVE_SIZE, "mask.count|-40");
    IN_ALL(.positions.mask.data = NULL, BN_STATUS_NULL_POINTER, "mask");
    f.training.positions.mask.data = f.output.data;
    refuses(&f, good, TRAINING, BN_STATUS_OVERLAP, "output|mask");
    f.inference.positions.mask.data = f.output.data;
    refuses(&f, good, INFERENCE, BN_STATUS_OVERLAP, "output|mask");
    f.backward.positions.mask.data = f.grad_input.data;
    refuses(&f, good, BACKWARD, BN_STATUS_OVERLAP, "grad_input|mask");
#define BOTH(args) f.args.positions = positions_of(&f, (extras){ .mask = true, .lengths = true })
    BOTH(training);
    refuses(&f, good, TRAINING, BN_STATUS_EXCLUSIVE, "mask|lengths");
    BOTH(inference);
    refuses(&f, good, INFERENCE, BN_STATUS_EXCLUSIVE, "mask|lengths");
    BOTH(backward);
    refuses(&f, good, BACKWARD, BN_STATUS_EXCLUSIVE, "mask|lengths");
#undef BOTH
}

static void bad_lengths_are_refused(void **state)
{
    (void)state;
    const int64_t sizes[] = { 4, 3, 10, 1 };
    fixture f =
        fixture_with_extras(problem_of(BN_DTYPE_FLOAT32, BN_LAYOUT_NHWC, 3, sizes), PLACE_START);
    const extras good = { .lengths = true };
    fixture_use(&f, good);
    IN_ALL(.positions.lengths.count = 3, BN_STATUS_COUNT_MISMATCH, "lengths.count|3|4");
    IN_ALL(.positions.lengths.count = 40, BN_STATUS_COUNT_MISMATCH, "lengths.count|40|4");
    IN_ALL(.positions.lengths.data = NULL, BN_STATUS_NULL_POINTER, "lengths");
    f.lengths[2] = 11;
    IN_ALL(.epsilon = 1e-5, BN_STATUS_LENGTH, "lengths[2]|11|10");
    f.lengths[2] = 5, f.lengths[0] = -1;
    IN_ALL(.epsilon = 1e-5, BN_STATUS_LENGTH, "lengths[0]|-1|10");
    f.lengths[0] = INT64_MAX;
    IN_ALL(.epsilon = 1e-5, BN_STATUS_LENGTH, "lengths[0]|9223372036854775807|10");

    fixture g =
        fixture_with_extras(problem_of(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 4, sizes), PLACE_START);
    fixture_use(&g, good);
    fixture_remember(&g);
    check_refused(bn_forward_training(&g.problem, &g.training), BN_STATUS_RANK, "rank|4|3");
    check_refused(bn_forward_inference(&g.problem, &g.inference), BN_STATUS_RANK, "rank|4|3");
    check_refused(bn_backward(&g.problem, &g.backward), BN_STATUS_RANK, "rank|4|3");
    check(fixture_changed(&g) == NULL, "changed %s", fixture_changed(&g));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(normalized_as_if_nothing_else_were_there, fixture_teardown),
        cmocka_unit_test_teardown(what_is_masked_has_no_influence, fixture_teardown),
        cmocka_unit_test_teardown(in_place, fixture_teardown),
        cmocka_unit_test_teardown(a_mask_of_ones_changes_no_bit, fixture_teardown),
        cmocka_unit_test_teardown(extreme_channels, fixture_teardown),
        cmocka_unit_test_teardown(lengths_are_a_mask, fixture_teardown),
        cmocka_unit_test_teardown(any_threads_any_instructions, fixture_teardown),
        cmocka_unit_test_teardown(all_masked_updates_nothing, fixture_teardown),
        cmocka_unit_test_teardown(one_value_per_channel, fixture_teardown),
        cmocka_unit_test_teardown(bad_masks_are_refused, fixture_teardown),
        cmocka_unit_test_teardown(bad_lengths_are_refused, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
