/*
 * Running statistics where a channel cannot take a batch in: which statistic stays, what is counted, and how much the
 * next batch weighs. A statistic of a cumulative average is the plain mean of what that one has taken in.
 */
#include "check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "layers.h"

enum { CHANNELS = 5, STATISTICS = 2 * CHANNELS };

/* By rows and by columns, whole and in pieces. */
static const int64_t shapes[][4] = { { 4, CHANNELS, 3, 3 }, { 3, CHANNELS, 40, 40 } };

static fixture images(int dtype, int layout, const int64_t *sizes)
{
    const bn_problem problem = BN_PROBLEM_2D(dtype, layout, sizes[0], CHANNELS, sizes[2], sizes[3]);
    fixture f = fixture_make(problem, PLACE_END);
    fixture_add_extras(&f);
    return f;
}

static elements doubles(int64_t count)
{
    const elements array = guarded_elements(count, true, PLACE_END);
    elements_fill_constant(array, 0);
    return array;
}

/* The ways in which a batch can get into running statistics. */
typedef enum way { WHOLE, MASKED, HALVES, NOTHING, LAYER, RELOADED, WAYS } way;
static const char *const way_names[] = { "whole",         "masked", "in halves",
                                         "moments alone", "layer",  "layer from its state" };

static void moments_of(fixture *f, bn_moments *moments)
{
    moments->channels = CHANNELS;
    moments->mean = doubles(CHANNELS).data;
    moments->mean_rest = doubles(CHANNELS).data;
    moments->m2 = doubles(CHANNELS).data;
    check_ok(bn_moments_compute(&f->problem, f->input.data, f->input.count, NULL, moments),
             "bn_moments_compute");
}

/* A forward in the statistics of the fixture, or of *layer, which takes them over at the first. */
static void take_in(fixture *f, way how, bn_layer **layer)
{
    bn_moments moments = BN_MOMENTS_INIT;
    if (how == MASKED)
        f->training.positions.mask.data = f->mask, f->training.positions.mask.count = f->positions;
    if (how == HALVES || how == NOTHING) moments_of(f, &moments);
    if (how == NOTHING) {
        f->problem.sizes[0] = 0;
        f->training.input.count = f->training.output.count = 0;
    }
    if (how == HALVES || how == NOTHING)
        check_ok(bn_normalize(&f->problem, &moments, &f->training), "bn_normalize");
    if (how == WHOLE || how == MASKED) run_training(f);
    if (how == LAYER || how == RELOADED) {
        bn_layer_options options = options_for(f);
        options.averaging = f->training.averaging;
        options.momentum = f->training.momentum;
        options.one_value = f->training.one_value;
        if (*layer == NULL) {
            *layer = layer_with_values(f, &options);
            check_ok(bn_layer_set_skipped_batches(*layer, f->skipped_batches, STATISTICS),
                     "set_skipped_batches");
        }
        check_ok(layer_forward(*layer, f), "bn_layer_forward");
        if (how == RELOADED) {
            const state_bytes state = state_of(*layer);
            bn_layer_destroy(*layer);
            check_ok(bn_layer_create_from_state(state.bytes, state.size, layer), "from_state");
            free(state.bytes);
        }
        check_ok(bn_layer_get_running_mean(*layer, f->running_mean.data, CHANNELS), "get_mean");
        check_ok(bn_layer_get_running_var(*layer, f->running_var.data, CHANNELS), "get_var");
        check_ok(bn_layer_get_num_batches_tracked(*layer, f->num_batches_tracked), "get_tracked");
        check_ok(bn_layer_get_skipped_batches(*layer, f->skipped_batches, STATISTICS),
                 "get_skipped_batches");
    }
    check(guarded_intact(), "%s: wrote beside a buffer", way_names[how]);
}

/* Statistic `i` of the batch that stands in the input: a mean, or an unbiased variance. */
static double of_batch(const fixture *f, int i, bool masked)
{
    const int64_t channel = i % CHANNELS, count = f->grid.rows * f->grid.inner;
    long double sum = 0, squares = 0, n = 0;
    for (int round = 0; round < 2; round++)
        for (int64_t k = 0; k < count; k++) {
            const int64_t at = ref_index(f->grid, channel, k);
            if (masked && !f->mask[fixture_position(f, at)]) continue;
            const long double x = elements_get(f->input, at);
            if (round == 0) sum += x, n++;
            if (round == 1) squares += (x - sum / n) * (x - sum / n);
        }
    return (double)(i < CHANNELS ? sum / n : squares / (n - 1));
}

static void check_statistic(const fixture *f, way how, int i, double expected)
{
    const elements array = i < CHANNELS ? f->running_mean : f->running_var;
    const double got = elements_get(array, i % CHANNELS);
    const double bound = f->input.is_double ? 1e-13 : 4e-7;
    check(fabs(got - expected) <= bound * (1 + fabs(expected)),
          "%s, %s: statistic %d is %.17g, expected %.17g", problem_text(&f->problem),
          way_names[how], i, got, expected);
}

/* ---- what a cumulative average weighs ---- */

static void cumulative(int dtype, int layout, const int64_t *sizes, way how)
{
    fixture f = images(dtype, layout, sizes);
    bn_layer *layer = NULL;
    f.training.averaging = BN_AVERAGING_CUMULATIVE;
    *f.num_batches_tracked = 0;
    long double sums[STATISTICS] = { 0 };
    int64_t taken[STATISTICS] = { 0 };
    /* Channel 0 takes in all, 1 all but the first, 2 all but the last, 3 every other one, 4 none. */
    for (int batch = 0; batch < 6; batch++) {
        elements_fill_normal(f.input, 100 + (uint64_t)batch, 3 * batch, 1 + batch);
        const bool skipped[CHANNELS] = { false, batch == 0, batch == 5, batch % 2 == 0, true };
        for (int c = 0; c < CHANNELS; c++) {
            /* The last position is never masked. */
            const int64_t last = ref_index(f.grid, c, f.grid.rows * f.grid.inner - 1);
            if (skipped[c]) elements_set(f.input, last, batch % 3 == 0 ? INFINITY : NAN);
        }
        for (int i = 0; i < STATISTICS; i++)
            if (!skipped[i % CHANNELS]) sums[i] += of_batch(&f, i, how == MASKED), taken[i]++;

        take_in(&f, how, &layer);
        check(*f.num_batches_tracked == batch + 1, "%s: the counter is %lld", way_names[how],
              (long long)*f.num_batches_tracked);
        for (int i = 0; i < STATISTICS; i++) {
            const int64_t expected = batch + 1 - taken[i];
            check(f.skipped_batches[i] == expected, "%s: skipped_batches[%d] is %lld, not %lld",
                  way_names[how], i, (long long)f.skipped_batches[i], (long long)expected);
            /* Nothing taken in: as the fixture made it. */
            if (taken[i] > 0) check_statistic(&f, how, i, (double)(sums[i] / taken[i]));
        }
        fixture_restore_args(&f);
        f.training.averaging = BN_AVERAGING_CUMULATIVE;
    }
    bn_layer_destroy(layer);
    guarded_free_all();
}

static void a_cumulative_average_is_of_what_was_taken_in(void **state)
{
    (void)state;
    for (int dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT64; dtype++)
        for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++)
            for (size_t s = 0; s < LENGTH(shapes); s++)
                for (way how = WHOLE; how < WAYS; how++) cumulative(dtype, layout, shapes[s], how);
}

/* The example of the documentation: after inf, 6 and 6 the mean is 6; without the counters it is 4. */
static void infinity_and_twice_six(void **state)
{
    (void)state;
    for (int counted = 0; counted < 2; counted++) {
        const int64_t sizes[] = { 2, 1 };
        fixture f = fixture_make(problem_of(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 2, sizes), PLACE_END);
        f.training.averaging = BN_AVERAGING_CUMULATIVE;
        if (!counted) f.training.skipped_batches.data = NULL, f.training.skipped_batches.count = 0;
        *f.num_batches_tracked = 0;
        elements_set(f.running_mean, 0, 0);
        elements_set(f.running_var, 0, 1);
        for (int batch = 0; batch < 3; batch++) {
            elements_set(f.input, 0, batch == 0 ? INFINITY : 5);
            elements_set(f.input, 1, 7);
            run_training(&f);
        }
        const double mean = elements_get(f.running_mean, 0), var = elements_get(f.running_var, 0);
        const double expected_mean = counted ? 6 : 4, expected_var = counted ? 2 : 5.0 / 3;
        check(fabs(mean - expected_mean) < 1e-6 && fabs(var - expected_var) < 1e-6,
              "mean %.9g, variance %.9g, expected %g and %g", mean, var, expected_mean,
              expected_var);
        check(*f.num_batches_tracked == 3, "the counter");
        guarded_free_all();
    }
}

/* One value per channel has a mean, but no variance. */
static void one_value_is_skipped_by_the_variance(void **state)
{
    (void)state;
    const int64_t one[] = { 1, CHANNELS }, three[] = { 3, CHANNELS };
    for (way how = WHOLE; how < WAYS; how++) {
        if (how == MASKED) continue; /* in test_masks.c */
        bn_layer *layer = NULL;
        fixture large =
            fixture_make(problem_of(BN_DTYPE_FLOAT64, BN_LAYOUT_NCHW, 2, three), PLACE_END);
        fixture small =
            fixture_make(problem_of(BN_DTYPE_FLOAT64, BN_LAYOUT_NCHW, 2, one), PLACE_END);
        long double sums[STATISTICS] = { 0 };
        *small.num_batches_tracked = *large.num_batches_tracked = 0;
        for (int batch = 0; batch < 4; batch++) {
            const bool is_one = batch % 2 == 0;
            fixture *f = is_one ? &small : &large, *other = is_one ? &large : &small;
            fixture_restore_args(f);
            f->training.averaging = BN_AVERAGING_CUMULATIVE;
            f->training.one_value = BN_ONE_VALUE_ALLOW;
            elements_fill_normal(f->input, 50 + (uint64_t)batch, batch, 2);
            const elements var = guarded_copy(f->running_var);
            take_in(f, how, &layer);
            for (int i = 0; i < STATISTICS; i++) {
                const bool is_var = i >= CHANNELS;
                const int64_t skipped = is_var ? (batch + 2) / 2 : 0;
                check(f->skipped_batches[i] == skipped, "skipped_batches[%d] is %lld", i,
                      (long long)f->skipped_batches[i]);
                if (is_one && is_var) {
                    check(elements_get(f->running_var, i % CHANNELS) ==
                              elements_get(var, i % CHANNELS),
                          "one value changed a variance");
                    continue;
                }
                sums[i] += of_batch(f, i, false);
                check_statistic(f, how, i, (double)(sums[i] / (batch + 1 - skipped)));
            }
            elements_copy(other->running_mean, f->running_mean);
            elements_copy(other->running_var, f->running_var);
            memcpy(other->skipped_batches, f->skipped_batches, STATISTICS * sizeof(int64_t));
            *other->num_batches_tracked = *f->num_batches_tracked;
        }
        bn_layer_destroy(layer);
        guarded_free_all();
    }
}

/* Where nothing was skipped, the counters change no bit; exponential averages never look at them. */
static void the_counters_change_no_bit(void **state)
{
    (void)state;
    for (int averaging = 0; averaging < 2; averaging++)
        for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++) {
            fixture f = images(BN_DTYPE_FLOAT32, layout, shapes[0]);
            f.training.averaging = averaging;
            fixture_remember(&f);
            run_training(&f);
            const elements mean = guarded_copy(f.running_mean), var = guarded_copy(f.running_var);
            fixture_recall(&f);
            if (averaging == BN_AVERAGING_EXPONENTIAL)
                for (int i = 0; i < STATISTICS; i++) f.skipped_batches[i] = i % 4;
            else
                f.training.skipped_batches.data = NULL, f.training.skipped_batches.count = 0;
            run_training(&f);
            check_bits(&f, "running_mean", f.running_mean, mean);
            check_bits(&f, "running_var", f.running_var, var);
            for (int i = 0; i < STATISTICS; i++)
                check(f.skipped_batches[i] == (averaging ? 0 : i % 4), "a counter changed");
        }
}

/* ---- statistics that are NaN or infinite themselves ---- */

typedef struct broken {
    double mean, var;
} broken;

static const broken breaks[] = { { NAN, 1 },       { 0.5, NAN },       { INFINITY, 2 },
                                 { 1, INFINITY },  { -INFINITY, 0.5 }, { NAN, NAN },
                                 { INFINITY, NAN } };

/* Channel 3's are broken, and channel 1's batch if `bad_input`. */
static void mend_or_stay(int dtype, way how, broken old, double momentum, int averaging,
                         bool bad_input)
{
    fixture f = images(dtype, BN_LAYOUT_NCHW, shapes[0]);
    bn_layer *layer = NULL;
    f.training.averaging = averaging;
    f.training.momentum = momentum;
    *f.num_batches_tracked = 0;
    const bool mends = averaging == BN_AVERAGING_CUMULATIVE || momentum == 1;
    if (bad_input) elements_set(f.input, ref_index(f.grid, 1, 4), NAN);
    fixture_remember(&f);
    fixture sound = f;
    take_in(&sound, how, &layer); /* the same with sound statistics */
    const elements mean = guarded_copy(f.running_mean), var = guarded_copy(f.running_var);
    bn_layer_destroy(layer);
    layer = NULL;

    fixture_recall(&f);
    elements_set(f.running_mean, 3, old.mean);
    elements_set(f.running_var, 3, old.var);
    take_in(&f, how, &layer);
    const bool mean_stays = !mends && !isfinite(old.mean), var_stays = !mends && !isfinite(old.var);
    /* What was finite itself has taken the batch in; with momentum below 1 also its old value. */
    const double keep = averaging == BN_AVERAGING_CUMULATIVE ? 0 : 1 - momentum;
    if (!mean_stays)
        check_statistic(&f, how, 3,
                        (keep > 0 ? keep * old.mean : 0) +
                            (1 - keep) * of_batch(&f, 3, how == MASKED));
    else
        check(memcmp(&old.mean, &(double){ elements_get(f.running_mean, 3) }, 8) == 0 ||
                  isnan(old.mean),
              "mean %g became %g", old.mean, elements_get(f.running_mean, 3));
    if (!var_stays)
        check_statistic(&f, how, 3 + CHANNELS,
                        (keep > 0 ? keep * old.var : 0) +
                            (1 - keep) * of_batch(&f, 3 + CHANNELS, how == MASKED));
    check(isfinite(elements_get(f.running_mean, 3)) == !mean_stays &&
              isfinite(elements_get(f.running_var, 3)) == !var_stays,
          "%s: %g and %g became %g and %g", way_names[how], old.mean, old.var,
          elements_get(f.running_mean, 3), elements_get(f.running_var, 3));
    check(f.skipped_batches[3] == mean_stays && f.skipped_batches[3 + CHANNELS] == var_stays,
          "skipped %lld and %lld", (long long)f.skipped_batches[3],
          (long long)f.skipped_batches[3 + CHANNELS]);
    /* Nobody else notices. */
    elements_set(f.running_mean, 3, elements_get(mean, 3));
    elements_set(f.running_var, 3, elements_get(var, 3));
    check_bits(&f, "running_mean", f.running_mean, mean);
    check_bits(&f, "running_var", f.running_var, var);

    int64_t input = f.training.nonfinite_channels, running = f.training.nonfinite_running_channels;
    if (layer) {
        check_ok(bn_layer_get_nonfinite_channels(layer, &input), "get_nonfinite_channels");
        check_ok(bn_layer_get_nonfinite_running_channels(layer, &running),
                 "get_nonfinite_running_channels");
    }
    check(input == bad_input && running == (mean_stays || var_stays),
          "%s: %lld channels of the input and %lld of the statistics", way_names[how],
          (long long)input, (long long)running);
    bn_layer_destroy(layer);
    guarded_free_all();
}

static void broken_statistics_are_replaced_or_told(void **state)
{
    (void)state;
    for (int dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT64; dtype++)
        for (way how = WHOLE; how <= LAYER; how++)
            for (size_t b = 0; b < LENGTH(breaks); b++)
                for (int bad = 0; bad < 2; bad++) {
                    mend_or_stay(dtype, how, breaks[b], 0.25, BN_AVERAGING_EXPONENTIAL, bad);
                    mend_or_stay(dtype, how, breaks[b], 1, BN_AVERAGING_EXPONENTIAL, bad);
                    mend_or_stay(dtype, how, breaks[b], 1, BN_AVERAGING_CUMULATIVE, bad);
                }
}

/* Whose fault it was: the message blames the input for the input's alone. */
static void the_error_tells_input_from_statistics(void **state)
{
    (void)state;
    for (int which = 1; which < 4; which++)
        for (int by_layer = 0; by_layer < 2; by_layer++) {
            fixture f = images(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, shapes[0]);
            const bool input = which & 1, running = which & 2;
            if (input) elements_set(f.input, ref_index(f.grid, 0, 3), INFINITY);
            if (running) elements_set(f.running_mean, 2, NAN), elements_set(f.running_var, 4, NAN);
            f.training.nonfinite = BN_NONFINITE_ERROR;
            bn_layer_options options = options_for(&f);
            options.nonfinite = BN_NONFINITE_ERROR;
            bn_layer *layer = by_layer ? layer_with_values(&f, &options) : NULL;
            const bn_status status =
                by_layer ? layer_forward(layer, &f) : bn_forward_training(&f.problem, &f.training);
            check_refused(status, BN_STATUS_NONFINITE,
                          which == 1   ? "input|1 of 5"
                          : which == 2 ? "running statistics|2 of 5"
                                       : "input|1 of 5|running statistics|2 of 5");
            const char *message = bn_last_error_message();
            check((strstr(message, "input") != NULL) == input &&
                      (strstr(message, "running") != NULL) == running,
                  "%s", message);
            if (!by_layer)
                check(f.training.nonfinite_channels == input &&
                          f.training.nonfinite_running_channels == 2 * running,
                      "%lld and %lld channels", (long long)f.training.nonfinite_channels,
                      (long long)f.training.nonfinite_running_channels);
            bn_layer_destroy(layer);
        }
}

/* A batch that would take a statistic out of its type's range is left out of both, and is the input's fault. */
static void an_overflow_leaves_both(void **state)
{
    (void)state;
    for (int averaging = 0; averaging < 2; averaging++) {
        fixture f = images(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, shapes[0]);
        f.training.averaging = averaging;
        for (int64_t i = 0; i < f.grid.rows * f.grid.inner; i++)
            elements_set(f.input, ref_index(f.grid, 3, i), i % 2 ? 1e21 : -1e21);
        const double mean = elements_get(f.running_mean, 3), var = elements_get(f.running_var, 3);
        run_training(&f);
        check(elements_get(f.running_mean, 3) == mean && elements_get(f.running_var, 3) == var,
              "running statistics changed");
        check(f.skipped_batches[3] == 1 && f.skipped_batches[3 + CHANNELS] == 1, "not counted");
        check(f.training.nonfinite_channels == 1 && f.training.nonfinite_running_channels == 0,
              "%lld and %lld channels", (long long)f.training.nonfinite_channels,
              (long long)f.training.nonfinite_running_channels);
        check(isfinite(elements_get(f.output, ref_index(f.grid, 3, 0))), "the output is not right");
    }
}

/* What updates nothing counts nothing. */
static void no_update_no_count(void **state)
{
    (void)state;
    fixture f = images(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, shapes[0]);
    elements_set(f.running_mean, 2, NAN);
    elements_set(f.input, ref_index(f.grid, 1, 0), NAN);
    const bn_layer_options options = options_for(&f);
    bn_layer *layer = layer_with_values(&f, &options);
    const state_bytes before = state_of(layer);
    bn_layer_forward_args args = BN_LAYER_FORWARD_ARGS_INIT;
    args.pass = BN_PASS_KEEP_RUNNING;
    args.input.data = f.input.data, args.input.count = f.input.count;
    args.output.data = f.output.data, args.output.count = f.output.count;
    check_ok(bn_layer_forward_with(layer, &f.problem, &args), "bn_layer_forward_with");
    int64_t channels = -1;
    check_ok(bn_layer_get_nonfinite_running_channels(layer, &channels), "get");
    check(channels == 0, "%lld channels", (long long)channels);
    const state_bytes after = state_of(layer);
    check(after.size == before.size && memcmp(after.bytes, before.bytes, (size_t)after.size) == 0,
          "the state changed");
    free(before.bytes);
    free(after.bytes);
    bn_layer_destroy(layer);

    /* An empty batch. */
    f.problem.sizes[0] = 0;
    f.training.input.count = f.training.output.count = 0;
    fixture_remember(&f);
    f.training.nonfinite_running_channels = 77;
    check_ok(bn_forward_training(&f.problem, &f.training), "bn_forward_training");
    check(f.training.nonfinite_running_channels == 0 && fixture_changed(&f) == NULL,
          "an empty batch changed %s", fixture_changed(&f));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_cumulative_average_is_of_what_was_taken_in, fixture_teardown),
        cmocka_unit_test_teardown(infinity_and_twice_six, fixture_teardown),
        cmocka_unit_test_teardown(one_value_is_skipped_by_the_variance, fixture_teardown),
        cmocka_unit_test_teardown(the_counters_change_no_bit, fixture_teardown),
        cmocka_unit_test_teardown(broken_statistics_are_replaced_or_told, fixture_teardown),
        cmocka_unit_test_teardown(the_error_tells_input_from_statistics, fixture_teardown),
        cmocka_unit_test_teardown(an_overflow_leaves_both, fixture_teardown),
        cmocka_unit_test_teardown(no_update_no_count, fixture_teardown),
    };
    return cmocka_run_group_tests_name("abi: running statistics", tests, NULL, NULL);
}
