/*
 * The stateless functions on good input: every rank and layout, every choice of optional buffers, in place, frozen,
 * running statistics, and the edge cases that succeed.
 */
#include "check.h"

#include <math.h>
#include <unistd.h>

#include "layers.h"

static const int64_t sizes_of_rank[6][5] = {
    { 0 }, { 0 }, { 7, 5 }, { 7, 5, 301 }, { 7, 5, 11, 3 }, { 3, 5, 4, 3, 2 },
};

static void check_output(const fixture *f, const ref_statistics *statistics, elements weight,
                         elements bias, const char *what)
{
    const double error = ref_forward_error(f->grid, statistics, f->input, weight, bias, f->output);
    check(error <= 1, "%s: %s is off by %.3g of what is allowed", problem_text(&f->problem), what,
          error);
}

static void check_gradients(const fixture *f, const ref_statistics *statistics, bool frozen,
                            elements weight, const char *what)
{
    const ref_gradients all = { f->grad_input, f->grad_weight, f->grad_bias };
    const ref_gradient_errors error =
        ref_backward_error(f->grid, statistics, frozen, f->input, f->grad_output, weight, all);
    check(error.input <= 1 && error.weight <= 1 && error.bias <= 1,
          "%s: %s: of what is allowed grad_input is off by %.3g, grad_weight %.3g, grad_bias %.3g",
          problem_text(&f->problem), what, error.input, error.weight, error.bias);
}

/* Runs a test for both types, both layouts and all ranks. */
static void for_every_problem(void (*test)(fixture *f))
{
    int turn = 0;
    for (int dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT64; dtype++)
        for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++)
            for (int rank = 2; rank <= 5; rank++) {
                fixture f = fixture_make(problem_of(dtype, layout, rank, sizes_of_rank[rank]),
                                         (placement)(turn++ % 3));
                test(&f);
                guarded_free_all();
            }
}

static void skip_running(fixture *f)
{
    f->training.running_mean.data = f->training.running_var.data = NULL;
    f->training.running_mean.count = f->training.running_var.count = 0;
}

/* ---- all three operations ---- */

static void operations_are_right(fixture *f)
{
    run_training(f);
    check_output(f, batch_statistics(f, 1e-5), f->weight, f->bias, "training");
    check(f->training.statistics_used == BN_STATISTICS_BATCH, "statistics_used is %d",
          f->training.statistics_used);
    check(f->training.nonfinite_channels == 0, "nonfinite_channels is %lld",
          (long long)f->training.nonfinite_channels);
    run_backward(f);
    check_gradients(f, saved_statistics(f), false, f->weight, "backward");

    elements_fill_junk(f->output);
    run_inference(f);
    check_output(f, running_statistics(f, 1e-5), f->weight, f->bias, "inference");

    elements_fill_junk(f->grad_input);
    elements_fill_junk(f->grad_weight);
    elements_fill_junk(f->grad_bias);
    f->backward.statistics = BN_STATISTICS_RUNNING;
    run_backward(f);
    check_gradients(f, running_statistics(f, 1e-5), true, f->weight, "frozen backward");
}

static void every_rank_and_layout(void **state)
{
    (void)state;
    for_every_problem(operations_are_right);
}

static void only_outputs_are_written(fixture *f)
{
    const elements input = guarded_copy(f->input), grad_output = guarded_copy(f->grad_output),
                   weight = guarded_copy(f->weight), bias = guarded_copy(f->bias);
    run_training(f);
    const elements mean = guarded_copy(f->running_mean), var = guarded_copy(f->running_var),
                   saved_mean = guarded_copy(f->saved_mean),
                   saved_invstd = guarded_copy(f->saved_invstd);
    run_inference(f);
    run_backward(f);
    f->backward.statistics = BN_STATISTICS_RUNNING;
    run_backward(f);
    check_bits(f, "input", f->input, input);
    check_bits(f, "grad_output", f->grad_output, grad_output);
    check_bits(f, "weight", f->weight, weight);
    check_bits(f, "bias", f->bias, bias);
    check_bits(f, "running_mean", f->running_mean, mean);
    check_bits(f, "running_var", f->running_var, var);
    check_bits(f, "saved_mean", f->saved_mean, saved_mean);
    check_bits(f, "saved_invstd", f->saved_invstd, saved_invstd);
}

static void inputs_stay_as_they_are(void **state)
{
    (void)state;
    for_every_problem(only_outputs_are_written);
}

/* For a matrix the layouts are the same. */
static void layouts_of_a_matrix_agree(void **state)
{
    (void)state;
    const int64_t sizes[] = { 37, 19 };
    fixture nchw = fixture_make(problem_of(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 2, sizes), 0);
    fixture nhwc = fixture_make(problem_of(BN_DTYPE_FLOAT32, BN_LAYOUT_NHWC, 2, sizes), 0);
    run_training(&nchw);
    run_training(&nhwc);
    run_backward(&nchw);
    run_backward(&nhwc);
    check_bits(&nchw, "output", nhwc.output, nchw.output);
    check_bits(&nchw, "grad_input", nhwc.grad_input, nchw.grad_input);
}

/* ---- optional buffers ---- */

static void any_parameters(fixture *f)
{
    for (int present = 0; present < 4; present++) {
        const elements weight = present & 1 ? f->weight : absent_like(f->weight);
        const elements bias = present & 2 ? f->bias : absent_like(f->bias);
        fixture_restore_args(f);
        f->training.weight.data = f->inference.weight.data = f->backward.weight.data = weight.data;
        f->training.weight.count = f->inference.weight.count = f->backward.weight.count =
            weight.count;
        f->training.bias.data = f->inference.bias.data = bias.data;
        f->training.bias.count = f->inference.bias.count = bias.count;
        run_training(f);
        check_output(f, batch_statistics(f, 1e-5), weight, bias, "training");
        run_backward(f);
        check_gradients(f, saved_statistics(f), false, weight, "backward");
        run_inference(f);
        check_output(f, running_statistics(f, 1e-5), weight, bias, "inference");
        f->backward.statistics = BN_STATISTICS_RUNNING;
        run_backward(f);
        check_gradients(f, running_statistics(f, 1e-5), true, weight, "frozen backward");
    }
}

static void weight_and_bias_are_optional(void **state)
{
    (void)state;
    for_every_problem(any_parameters);
}

/* What is left out changes nothing else, to the bit. */
static void optional_outputs(fixture *f)
{
    fixture_remember(f);
    run_training(f);
    const elements output = guarded_copy(f->output), saved_mean = guarded_copy(f->saved_mean),
                   saved_invstd = guarded_copy(f->saved_invstd),
                   mean = guarded_copy(f->running_mean), var = guarded_copy(f->running_var);
    for (int absent = 1; absent < 16; absent++) {
        fixture_recall(f);
        fixture_restore_args(f);
        const elements old_mean = guarded_copy(f->running_mean),
                       old_var = guarded_copy(f->running_var);
        const elements old_saved_mean = guarded_copy(f->saved_mean);
        const elements old_saved_invstd = guarded_copy(f->saved_invstd);
        if (absent & 1) skip_running(f);
        if (absent & 2) f->training.saved.mean.data = NULL, f->training.saved.mean.count = 0;
        if (absent & 4) f->training.saved.invstd.data = NULL, f->training.saved.invstd.count = 0;
        if (absent & 8) {
            f->training.num_batches_tracked = f->training.skipped_batches.data = NULL;
            f->training.skipped_batches.count = 0;
        }
        run_training(f);
        check_bits(f, "output", f->output, output);
        check_bits(f, "running_mean", f->running_mean, absent & 1 ? old_mean : mean);
        check_bits(f, "running_var", f->running_var, absent & 1 ? old_var : var);
        check_bits(f, "saved_mean", f->saved_mean, absent & 2 ? old_saved_mean : saved_mean);
        check_bits(f, "saved_invstd", f->saved_invstd,
                   absent & 4 ? old_saved_invstd : saved_invstd);
        /* The counter counts what the running statistics took in. */
        check(*f->num_batches_tracked == (absent & 9 ? 3 : 4), "absent %x: the counter is %lld",
              (unsigned)absent, (long long)*f->num_batches_tracked);
    }
}

static void training_outputs_are_optional(void **state)
{
    (void)state;
    for_every_problem(optional_outputs);
}

static void optional_gradients(fixture *f)
{
    run_training(f);
    for (int statistics = BN_STATISTICS_BATCH; statistics <= BN_STATISTICS_RUNNING; statistics++) {
        fixture_restore_args(f);
        f->backward.statistics = statistics;
        run_backward(f);
        const elements dx = guarded_copy(f->grad_input), dgamma = guarded_copy(f->grad_weight),
                       dbeta = guarded_copy(f->grad_bias);
        for (int wanted = 0; wanted < 8; wanted++) {
            fixture_restore_args(f);
            f->backward.statistics = statistics;
            elements_fill_junk(f->grad_input);
            elements_fill_junk(f->grad_weight);
            elements_fill_junk(f->grad_bias);
            const elements junk = guarded_copy(f->grad_input), few = guarded_copy(f->grad_weight);
            if (!(wanted & 1)) f->backward.grad_input.data = NULL, f->backward.grad_input.count = 0;
            if (!(wanted & 2))
                f->backward.grad_weight.data = NULL, f->backward.grad_weight.count = 0;
            if (!(wanted & 4)) f->backward.grad_bias.data = NULL, f->backward.grad_bias.count = 0;
            run_backward(f);
            check_bits(f, "grad_input", f->grad_input, wanted & 1 ? dx : junk);
            check_bits(f, "grad_weight", f->grad_weight, wanted & 2 ? dgamma : few);
            check_bits(f, "grad_bias", f->grad_bias, wanted & 4 ? dbeta : few);
        }
    }
}

static void each_gradient_can_be_skipped(void **state)
{
    (void)state;
    for_every_problem(optional_gradients);
}

/* ---- in place ---- */

static void in_place(fixture *f)
{
    fixture_remember(f);
    run_training(f);
    const elements trained = guarded_copy(f->output);
    const elements saved_mean = guarded_copy(f->saved_mean),
                   saved_invstd = guarded_copy(f->saved_invstd);
    run_inference(f);
    const elements inferred = guarded_copy(f->output);
    run_backward(f);
    const elements dx = guarded_copy(f->grad_input), dgamma = guarded_copy(f->grad_weight);
    const elements running_mean = guarded_copy(f->running_mean),
                   running_var = guarded_copy(f->running_var);

    fixture_recall(f);
    elements_copy(f->output, f->input);
    f->training.input.data = f->output.data;
    run_training(f);
    check_bits(f, "output in place", f->output, trained);
    check_bits(f, "running_mean", f->running_mean, running_mean);
    check_bits(f, "running_var", f->running_var, running_var);

    elements_copy(f->output, f->input);
    f->inference.input.data = f->output.data;
    run_inference(f);
    check_bits(f, "inference in place", f->output, inferred);

    for (int over_input = 0; over_input < 2; over_input++) {
        fixture_restore_args(f);
        elements_copy(f->saved_mean, saved_mean);
        elements_copy(f->saved_invstd, saved_invstd);
        elements_fill_junk(f->grad_weight);
        elements_copy(f->grad_input, over_input ? f->input : f->grad_output);
        if (over_input)
            f->backward.input.data = f->grad_input.data;
        else
            f->backward.grad_output.data = f->grad_input.data;
        run_backward(f);
        check_bits(f, over_input ? "grad_input over input" : "grad_input over grad_output",
                   f->grad_input, dx);
        check_bits(f, "grad_weight", f->grad_weight, dgamma);
    }
}

static void in_place_gives_the_same_bits(void **state)
{
    (void)state;
    for_every_problem(in_place);
}

/* ---- running statistics ---- */

/* `spread`: what else a float64 value is as exact as, the deviation in case of a mean; `slack`: what the batch's own
 * statistic may be off by. */
static void check_running(const fixture *f, const char *what, int64_t c, elements got,
                          long double kept, long double taken, long double spread,
                          long double slack)
{
    const bool is_double = got.is_double;
    const double value = elements_get(got, c);
    const long double size = fabsl(kept) + fabsl(taken) + (is_double ? spread : 0);
    const long double rounding = (is_double ? 64 : 1) * ref_ulp(size, is_double);
    check(ref_ratio(value, kept + taken, rounding + slack) <= 1,
          "%s: %s[%lld] is %.9g, expected %.9Lg", problem_text(&f->problem), what, (long long)c,
          value, kept + taken);
}

static void exponential_average(fixture *f)
{
    const double values = (double)(f->grid.rows * f->grid.inner);
    static const double momenta[] = { 0.1, 0, 1, 0.7 };
    fixture_remember(f);
    for (int biased = 0; biased < 2; biased++)
        for (size_t m = 0; m < LENGTH(momenta); m++) {
            fixture_recall(f);
            fixture_restore_args(f);
            f->training.running_variance = biased;
            f->training.momentum = momenta[m];
            const elements mean = guarded_copy(f->running_mean), var = guarded_copy(f->running_var);
            run_training(f);
            for (int64_t c = 0; c < f->grid.channels; c++) {
                const ref_statistics s = ref_of_batch(f->grid, f->input, c, 1e-5);
                const long double batch_var = s.variance * (biased ? 1 : values / (values - 1));
                const long double keep = 1 - momenta[m];
                check_running(f, "running_mean", c, f->running_mean, keep * elements_get(mean, c),
                              momenta[m] * ref_mean(s), momenta[m] * sqrtl(s.variance),
                              ref_running_mean_slack(s, momenta[m], f->input.is_double));
                check_running(f, "running_var", c, f->running_var, keep * elements_get(var, c),
                              momenta[m] * batch_var, 0,
                              ref_running_var_slack(s, momenta[m] * batch_var / s.variance,
                                                    f->input.is_double));
            }
            check(*f->num_batches_tracked == 4, "the counter is %lld",
                  (long long)*f->num_batches_tracked);
        }
}

static void running_statistics_exponential(void **state)
{
    (void)state;
    for_every_problem(exponential_average);
}

/* After k batches from a fresh start: the plain mean over them, whatever was there before. */
static void cumulative_average(fixture *f)
{
    enum { BATCHES = 5 };
    const double values = (double)(f->grid.rows * f->grid.inner);
    const int64_t channels = f->grid.channels;
    const elements mean_sum = guarded_elements(channels, true, PLACE_START);
    const elements var_sum = guarded_elements(channels, true, PLACE_START);
    elements_fill_constant(mean_sum, 0);
    elements_fill_constant(var_sum, 0);
    *f->num_batches_tracked = 0;
    for (int k = 1; k <= BATCHES; k++) {
        elements_fill_normal(f->input, 100 + (uint64_t)k, 1.5 * k, 1 + 0.5 * k);
        f->training.averaging = BN_AVERAGING_CUMULATIVE;
        run_training(f);
        check(*f->num_batches_tracked == k, "the counter is %lld after %d batches",
              (long long)*f->num_batches_tracked, k);
        for (int64_t c = 0; c < channels; c++) {
            const ref_statistics s = ref_of_batch(f->grid, f->input, c, 1e-5);
            elements_set(mean_sum, c, elements_get(mean_sum, c) + (double)ref_mean(s));
            elements_set(var_sum, c,
                         elements_get(var_sum, c) + (double)s.variance * values / (values - 1));
            /* Each step rounds to the element type. */
            const double mean = elements_get(mean_sum, c) / k, var = elements_get(var_sum, c) / k;
            check(ref_error(elements_get(f->running_mean, c), mean, 2 * k, fabs(mean) + sqrt(var),
                            f->input.is_double) <= (f->input.is_double ? 16 : 1),
                  "%s: after %d batches running_mean[%lld] is %.9g, expected %.9g",
                  problem_text(&f->problem), k, (long long)c, elements_get(f->running_mean, c),
                  mean);
            check(ref_error(elements_get(f->running_var, c), var, 2 * k, var, f->input.is_double) <=
                      (f->input.is_double ? 16 : 1),
                  "%s: after %d batches running_var[%lld] is %.9g, expected %.9g",
                  problem_text(&f->problem), k, (long long)c, elements_get(f->running_var, c), var);
        }
    }
}

static void running_statistics_cumulative(void **state)
{
    (void)state;
    for_every_problem(cumulative_average);
}

/* ---- edge cases that succeed ---- */

static void nothing_to_do(fixture *f)
{
    fixture_remember(f);
    for (int averaging = 0; averaging < 2; averaging++)
        for (int one_value = 0; one_value < 3; one_value++) {
            fixture_restore_args(f);
            f->training.averaging = averaging;
            f->training.one_value = one_value;
            f->training.nonfinite_channels = 77;
            run_training(f);
            check(f->training.nonfinite_channels == 0, "nonfinite_channels is %lld",
                  (long long)f->training.nonfinite_channels);
            check(f->training.statistics_used == BN_STATISTICS_BATCH, "statistics_used is %d",
                  f->training.statistics_used);
        }
    run_inference(f);
    check(fixture_changed(f) == NULL, "%s: forward changed %s", problem_text(&f->problem),
          fixture_changed(f));
    for (int statistics = 0; statistics < 2; statistics++) {
        fixture_recall(f);
        f->backward.statistics = statistics;
        run_backward(f);
        for (int64_t c = 0; c < f->grid.channels; c++)
            check(elements_get(f->grad_weight, c) == 0 && elements_get(f->grad_bias, c) == 0,
                  "%s: the gradients of nothing are %g and %g", problem_text(&f->problem),
                  elements_get(f->grad_weight, c), elements_get(f->grad_bias, c));
    }
    /* Empty tensors often have no memory. */
    f->training.input.data = NULL, f->training.output.data = NULL;
    run_training(f);
    f->inference.input.data = NULL, f->inference.output.data = NULL;
    run_inference(f);
    f->backward.input.data = f->backward.grad_output.data = NULL;
    run_backward(f);
}

static void an_empty_batch_changes_nothing(void **state)
{
    (void)state;
    static const int64_t sizes[][5] = {
        { 0, 3, 0, 0, 0 }, { 0, 3, 4, 5, 6 }, { 2, 3, 0, 5, 6 },
        { 2, 3, 4, 0, 6 }, { 2, 3, 4, 5, 0 }, { 0, 3, INT64_MAX, INT64_MAX, 2 },
    };
    for (size_t i = 0; i < LENGTH(sizes); i++)
        for (int dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT64; dtype++)
            for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++) {
                /* The last sizes are too large for the fixture, which multiplies them. */
                const bool huge = sizes[i][2] == INT64_MAX;
                fixture f = fixture_make(
                    problem_of(dtype, layout, i == 0 ? 2 : 5, huge ? sizes[1] : sizes[i]),
                    PLACE_END);
                if (huge) f.original = problem_of(dtype, layout, 5, sizes[i]);
                fixture_restore_args(&f);
                nothing_to_do(&f);
                guarded_free_all();
            }
}

static fixture one_value_fixture(int dtype)
{
    const int64_t sizes[] = { 1, 5, 1, 1 };
    return fixture_make(problem_of(dtype, BN_LAYOUT_NCHW, 4, sizes), PLACE_END);
}

static void one_value_by_running_statistics(void **state)
{
    (void)state;
    for (int dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT64; dtype++) {
        fixture f = one_value_fixture(dtype);
        const elements mean = guarded_copy(f.running_mean), var = guarded_copy(f.running_var);
        f.training.one_value = BN_ONE_VALUE_USE_RUNNING;
        run_training(&f);
        check(f.training.statistics_used == BN_STATISTICS_RUNNING, "statistics_used is %d",
              f.training.statistics_used);
        const elements output = guarded_copy(f.output);
        run_inference(&f);
        check_bits(&f, "output, as in inference", output, f.output);
        check_output(&f, running_statistics(&f, 1e-5), f.weight, f.bias, "output");
        check_bits(&f, "running_mean", f.running_mean, mean);
        check_bits(&f, "running_var", f.running_var, var);
        check(*f.num_batches_tracked == 3, "the counter is %lld",
              (long long)*f.num_batches_tracked);
        /* What is saved serves the frozen backward. */
        for (int64_t c = 0; c < 5; c++) {
            const ref_statistics s = running_statistics(&f, 1e-5)[c];
            check(elements_get(f.saved_mean, c) == elements_get(mean, c), "saved_mean[%d] is %g",
                  (int)c, elements_get(f.saved_mean, c));
            check(ref_error(elements_get(f.saved_invstd, c), s.invstd, 2, s.invstd, true) <= 1,
                  "saved_invstd[%d] is %g", (int)c, elements_get(f.saved_invstd, c));
        }
    }
}

static void one_value_allowed(void **state)
{
    (void)state;
    for (int dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT64; dtype++)
        for (int biased = 0; biased < 2; biased++) {
            fixture f = one_value_fixture(dtype);
            const elements mean = guarded_copy(f.running_mean), var = guarded_copy(f.running_var);
            f.training.one_value = BN_ONE_VALUE_ALLOW;
            f.training.running_variance = biased;
            run_training(&f);
            check(f.training.statistics_used == BN_STATISTICS_BATCH, "statistics_used is %d",
                  f.training.statistics_used);
            check_bits(&f, "output, the bias", f.output, f.bias);
            check_bits(&f, "running_var", f.running_var, var);
            for (int64_t c = 0; c < 5; c++) {
                check_running(&f, "running_mean", c, f.running_mean,
                              (1 - 0.1L) * elements_get(mean, c), 0.1L * elements_get(f.input, c),
                              0, 0);
                check(elements_get(f.saved_mean, c) == elements_get(f.input, c),
                      "saved_mean[%d] is %g", (int)c, elements_get(f.saved_mean, c));
            }
            check(*f.num_batches_tracked == 4, "the counter is %lld",
                  (long long)*f.num_batches_tracked);
        }
}

/* With more than one value the policies make no difference. */
static void one_value_policies_are_for_one_value_only(void **state)
{
    (void)state;
    const bn_problem problem = BN_PROBLEM_2D(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 2, 5, 1, 1);
    fixture f = fixture_make(problem, PLACE_END);
    fixture_remember(&f);
    run_training(&f);
    const elements output = guarded_copy(f.output), var = guarded_copy(f.running_var);
    for (int policy = 1; policy < 3; policy++) {
        fixture_recall(&f);
        f.training.one_value = policy;
        run_training(&f);
        check_bits(&f, "output", f.output, output);
        check_bits(&f, "running_var", f.running_var, var);
        check(f.training.statistics_used == BN_STATISTICS_BATCH, "statistics_used is %d",
              f.training.statistics_used);
    }
}

/* NaN and infinity stay in their channel, and their statistics out of the running ones. */
static void nonfinite(fixture *f)
{
    static const double poisons[] = { NAN, INFINITY, -INFINITY };
    const int64_t count = f->grid.rows * f->grid.inner;
    fixture_remember(f);
    run_training(f);
    run_backward(f);
    const elements output = guarded_copy(f->output), mean = guarded_copy(f->running_mean),
                   var = guarded_copy(f->running_var), saved_mean = guarded_copy(f->saved_mean),
                   dx = guarded_copy(f->grad_input);
    for (int policy = 0; policy < 2; policy++)
        for (size_t p = 0; p < LENGTH(poisons); p++) {
            fixture_recall(f);
            fixture_restore_args(f);
            const elements old_mean = guarded_copy(f->running_mean),
                           old_var = guarded_copy(f->running_var);
            elements_set(f->input, ref_index(f->grid, 1, count / 2), poisons[p]);
            elements_set(f->input, ref_index(f->grid, 4, count - 1), poisons[p]);
            f->training.nonfinite = policy;
            const bn_status status = bn_forward_training(&f->problem, &f->training);
            if (policy == BN_NONFINITE_ERROR)
                check_refused(status, BN_STATUS_NONFINITE, "2|5|NaN|infinity");
            else
                check(status == BN_STATUS_OK, "%s: %s", bn_status_name(status),
                      bn_last_error_message());
            check(f->training.nonfinite_channels == 2, "nonfinite_channels is %lld",
                  (long long)f->training.nonfinite_channels);
            check(f->training.statistics_used == BN_STATISTICS_BATCH, "statistics_used is %d",
                  f->training.statistics_used);
            check(*f->num_batches_tracked == 4, "the counter is %lld",
                  (long long)*f->num_batches_tracked);
            run_backward(f);
            for (int64_t c = 0; c < 5; c++) {
                const bool bad = c == 1 || c == 4;
                for (int64_t i = 0; i < count; i++) {
                    const int64_t at = ref_index(f->grid, c, i);
                    const double y = elements_get(f->output, at);
                    const double g = elements_get(f->grad_input, at);
                    check(bad ? isnan(y) && isnan(g)
                              : y == elements_get(output, at) && g == elements_get(dx, at),
                          "%s: with %g in channels 1 and 4 an output of channel %d is %g",
                          problem_text(&f->problem), poisons[p], (int)c, y);
                }
                check(elements_get(f->running_mean, c) == elements_get(bad ? old_mean : mean, c) &&
                          elements_get(f->running_var, c) == elements_get(bad ? old_var : var, c),
                      "%s: with %g in channels 1 and 4 running statistics of %d are %g and %g",
                      problem_text(&f->problem), poisons[p], (int)c,
                      elements_get(f->running_mean, c), elements_get(f->running_var, c));
                if (!bad)
                    check(elements_get(f->saved_mean, c) == elements_get(saved_mean, c),
                          "saved_mean[%d]", (int)c);
            }
        }
}

static void nonfinite_values_stay_in_their_channel(void **state)
{
    (void)state;
    for_every_problem(nonfinite);
}

/* A variance that float64 holds and float32 does not: the output is right, the running statistics keep what they
 * had, and the call says so. */
static void a_variance_too_large_for_float32(void **state)
{
    (void)state;
    for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++) {
        const bn_problem problem = BN_PROBLEM_2D(BN_DTYPE_FLOAT32, layout, 7, 5, 11, 3);
        fixture f = fixture_make(problem, PLACE_END);
        for (int64_t i = 0; i < f.grid.rows * f.grid.inner; i++) {
            const int64_t at = ref_index(f.grid, 3, i);
            elements_set(f.input, at, elements_get(f.input, at) * 1e30);
        }
        const elements mean = guarded_copy(f.running_mean), var = guarded_copy(f.running_var);
        run_training(&f);
        check_output(&f, batch_statistics(&f, 1e-5), f.weight, f.bias, "output");
        check(f.training.nonfinite_channels == 1, "nonfinite_channels is %lld",
              (long long)f.training.nonfinite_channels);
        for (int64_t c = 0; c < 5; c++)
            check((elements_get(f.running_mean, c) == elements_get(mean, c) &&
                   elements_get(f.running_var, c) == elements_get(var, c)) == (c == 3),
                  "running statistics of %d are %g and %g", (int)c, elements_get(f.running_mean, c),
                  elements_get(f.running_var, c));
    }
}

/* Variance 0 and epsilon 0: invstd is 0, so the output is the bias and no gradient passes. */
static void constant_without_epsilon(fixture *f)
{
    elements_fill_constant(f->input, 3.7);
    f->training.epsilon = 0;
    run_training(f);
    run_backward(f);
    for (int64_t c = 0; c < f->grid.channels; c++) {
        check(elements_get(f->saved_invstd, c) == 0, "saved_invstd[%lld] is %g", (long long)c,
              elements_get(f->saved_invstd, c));
        check(elements_get(f->grad_weight, c) == 0, "grad_weight[%lld] is %g", (long long)c,
              elements_get(f->grad_weight, c));
        for (int64_t i = 0; i < f->grid.rows * f->grid.inner; i++) {
            const int64_t at = ref_index(f->grid, c, i);
            check(elements_get(f->output, at) == elements_get(f->bias, c), "output is %g, not %g",
                  elements_get(f->output, at), elements_get(f->bias, c));
            check(elements_get(f->grad_input, at) == 0, "grad_input is %g",
                  elements_get(f->grad_input, at));
        }
    }
}

static void no_variance_and_no_epsilon(void **state)
{
    (void)state;
    for_every_problem(constant_without_epsilon);
}

/* Backward ignores what its statistics do not need, however wrong it is. */
static void unneeded_members_are_ignored(void **state)
{
    (void)state;
    const bn_problem problem = BN_PROBLEM_2D(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 2, 3, 4, 5);
    fixture f = fixture_make(problem, PLACE_END);
    f.backward.running_mean.data = NULL, f.backward.running_var.data = (void *)1;
    f.backward.running_mean.count = -9, f.backward.running_var.count = 1;
    run_backward(&f);
    fixture_restore_args(&f);
    f.backward.statistics = BN_STATISTICS_RUNNING;
    f.backward.saved.mean.data = NULL, f.backward.saved.invstd.data = (void *)3;
    f.backward.saved.mean.count = -9, f.backward.saved.invstd.count = 1;
    run_backward(&f);
}

static void epsilon_enters_the_frozen_backward(void **state)
{
    (void)state;
    const bn_problem problem = BN_PROBLEM_2D(BN_DTYPE_FLOAT64, BN_LAYOUT_NHWC, 2, 3, 4, 5);
    fixture f = fixture_make(problem, PLACE_END);
    f.backward.statistics = BN_STATISTICS_RUNNING;
    f.backward.epsilon = 0.5;
    run_backward(&f);
    check_gradients(&f, running_statistics(&f, 0.5), true, f.weight, "epsilon 0.5");
}

/* Sizes beside a 0 are numbers, and no work: each call returns at once. */
static void empty_batches_of_any_size(void **state)
{
    (void)state;
    static const int64_t most = (int64_t)1 << 62;
    const int64_t sizes[][5] = { { most, 2, 0, 0, 0 },
                                 { 0, 2, most, 0, 0 },
                                 { most, 2, 0, most, 0 },
                                 { 0, 2, most, most, 0 },
                                 { most, 2, most, 0, most },
                                 { most, 2, most, most, 0 },
                                 { INT64_MAX, 2, INT64_MAX, 0, INT64_MAX } };
    static const int ranks[] = { 3, 3, 4, 4, 5, 5, 5 };
    double mean[2] = { 1, 2 }, invstd[2] = { 3, 4 };
    const float running[2] = { 1, 2 };
    double arrays[3][2];
    const uint8_t mask = 0;
    alarm(60);
    for (size_t i = 0; i < LENGTH(sizes); i++)
        for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++) {
            const bn_problem problem = problem_of(BN_DTYPE_FLOAT32, layout, ranks[i], sizes[i]);
            bn_forward_training_args training = BN_FORWARD_TRAINING_ARGS_INIT;
            training.positions.mask.data = &mask;
            check_ok(bn_forward_training(&problem, &training), "bn_forward_training");
            bn_forward_inference_args inference = BN_FORWARD_INFERENCE_ARGS_INIT;
            inference.running_mean.data = inference.running_var.data = running;
            inference.running_mean.count = inference.running_var.count = 2;
            inference.positions.mask.data = &mask;
            check_ok(bn_forward_inference(&problem, &inference), "bn_forward_inference");
            bn_backward_args backward = BN_BACKWARD_ARGS_INIT;
            float grad_weight[2] = { 7, 7 };
            backward.saved.mean.data = mean, backward.saved.mean.count = 2;
            backward.saved.invstd.data = invstd, backward.saved.invstd.count = 2;
            backward.grad_weight.data = grad_weight, backward.grad_weight.count = 2;
            backward.positions.mask.data = &mask;
            check_ok(bn_backward(&problem, &backward), "bn_backward");
            check(grad_weight[0] == 0 && grad_weight[1] == 0, "grad_weight is not 0");
            bn_moments moments = BN_MOMENTS_INIT;
            moments.channels = 2;
            moments.mean = arrays[0], moments.mean_rest = arrays[1], moments.m2 = arrays[2];
            check_ok(bn_moments_compute(&problem, NULL, 0, &training.positions, &moments),
                     "moments");
            bn_gradient_sums sums = BN_GRADIENT_SUMS_INIT;
            sums.channels = 2, sums.sum_dy = arrays[0], sums.sum_dy_xmu = arrays[1];
            check_ok(bn_backward_reduce(&problem, &backward, &sums), "bn_backward_reduce");
            for (bn_operation op = BN_OPERATION_FORWARD_TRAINING;
                 op <= BN_OPERATION_BACKWARD_FROZEN; op++) {
                const bn_explain_args asked = asking(op);
                bn_plan_info plan = BN_PLAN_INFO_INIT;
                char text[BN_EXPLAIN_TEXT_SIZE];
                check_ok(bn_explain(&problem, &asked, &plan), "bn_explain");
                check_ok(bn_explain_text(&problem, &asked, text, sizeof text), "bn_explain_text");
            }
            bn_layer_options options = BN_LAYER_OPTIONS_INIT;
            options.num_features = 2;
            bn_layer *layer = layer_of(&options);
            bn_layer_forward_args forward = BN_LAYER_FORWARD_ARGS_INIT;
            forward.activation.kind = BN_ACTIVATION_RELU;
            forward.positions.mask.data = &mask;
            for (bn_pass pass = BN_PASS_NORMAL; pass <= BN_PASS_RECOMPUTE; pass++) {
                forward.pass = pass;
                check_ok(bn_layer_forward_with(layer, &problem, &forward), "forward_with");
            }
            bn_layer_backward_args back = BN_LAYER_BACKWARD_ARGS_INIT;
            check_ok(bn_layer_backward_with(layer, &problem, &back), "backward_with");
            bn_layer_destroy(layer);
        }
    alarm(0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(every_rank_and_layout, fixture_teardown),
        cmocka_unit_test_teardown(inputs_stay_as_they_are, fixture_teardown),
        cmocka_unit_test_teardown(layouts_of_a_matrix_agree, fixture_teardown),
        cmocka_unit_test_teardown(weight_and_bias_are_optional, fixture_teardown),
        cmocka_unit_test_teardown(training_outputs_are_optional, fixture_teardown),
        cmocka_unit_test_teardown(each_gradient_can_be_skipped, fixture_teardown),
        cmocka_unit_test_teardown(in_place_gives_the_same_bits, fixture_teardown),
        cmocka_unit_test_teardown(running_statistics_exponential, fixture_teardown),
        cmocka_unit_test_teardown(running_statistics_cumulative, fixture_teardown),
        cmocka_unit_test_teardown(an_empty_batch_changes_nothing, fixture_teardown),
        cmocka_unit_test_teardown(one_value_by_running_statistics, fixture_teardown),
        cmocka_unit_test_teardown(one_value_allowed, fixture_teardown),
        cmocka_unit_test_teardown(one_value_policies_are_for_one_value_only, fixture_teardown),
        cmocka_unit_test_teardown(nonfinite_values_stay_in_their_channel, fixture_teardown),
        cmocka_unit_test_teardown(a_variance_too_large_for_float32, fixture_teardown),
        cmocka_unit_test_teardown(no_variance_and_no_epsilon, fixture_teardown),
        cmocka_unit_test_teardown(unneeded_members_are_ignored, fixture_teardown),
        cmocka_unit_test_teardown(epsilon_enters_the_frozen_backward, fixture_teardown),
        cmocka_unit_test_teardown(empty_batches_of_any_size, fixture_teardown),
    };
    return cmocka_run_group_tests_name("abi: operations", tests, NULL, NULL);
}
