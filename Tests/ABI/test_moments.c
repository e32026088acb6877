/*
 * The operations in two halves: of one part the same bits as the whole operation, of several the same bits
 * where the header promises them and the same accuracy everywhere; policies, running statistics, and what is
 * refused.
 */
#include "check.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "fixture.h"

enum { MOST_PARTS = 64 };

/* ---- moments and sums with memory of their own ---- */

static double *doubles(int64_t count)
{
    elements array = guarded_elements(count, true, PLACE_END);
    elements_fill_junk(array);
    return array.data;
}

static bn_moments moments_for(int64_t channels)
{
    bn_moments m = BN_MOMENTS_INIT;
    m.channels = channels;
    m.mean = doubles(channels);
    m.mean_rest = doubles(channels);
    m.m2 = doubles(channels);
    return m;
}

static bn_gradient_sums sums_for(int64_t channels)
{
    bn_gradient_sums s = BN_GRADIENT_SUMS_INIT;
    s.channels = channels;
    s.sum_dy = doubles(channels);
    s.sum_dy_xmu = doubles(channels);
    return s;
}

static elements as_elements(double *values, int64_t count)
{
    return (elements){ values, count, true };
}

static void succeeds(const fixture *f, const char *what, bn_status status)
{
    check(status == BN_STATUS_OK, "%s of %s: %s: %s", what, problem_text(&f->problem),
          bn_status_name(status), bn_last_error_message());
    check(guarded_intact(), "%s of %s wrote beside a buffer", what, problem_text(&f->problem));
}

/* ---- a batch in parts ---- */

/* Samples of each part, in order. */
typedef struct parts {
    int64_t samples[MOST_PARTS];
    int count;
} parts;

/* Problem and buffers of samples from `first` on, of the batch in `f`. */
static fixture part_of(const fixture *f, int64_t first, int64_t samples)
{
    fixture part = *f;
    const int64_t sample = f->input.count / (f->problem.sizes[0] > 0 ? f->problem.sizes[0] : 1);
    const size_t skip = (size_t)(first * sample) * element_size(f->input.is_double);
    elements *tensors[] = { &part.input, &part.output, &part.grad_output, &part.grad_input };
    for (size_t i = 0; i < LENGTH(tensors); i++) {
        tensors[i]->data = (char *)tensors[i]->data + skip;
        tensors[i]->count = samples * sample;
    }
    part.original.sizes[0] = samples;
    fixture_restore_args(&part);
    return part;
}

/* Training and backward of the whole batch, each part by itself, as devices would. */
static void run_in_parts(fixture *f, const parts *cut, bn_moments *all, bn_gradient_sums *total)
{
    const int64_t channels = f->grid.channels;
    bn_moments own = moments_for(channels);
    bn_gradient_sums own_sums = sums_for(channels);
    int64_t first = 0;
    for (int i = 0; i < cut->count; first += cut->samples[i++]) {
        fixture part = part_of(f, first, cut->samples[i]);
        bn_moments *to = i == 0 ? all : &own;
        succeeds(&part, "moments",
                 bn_moments_compute(&part.problem, part.input.data, part.input.count, NULL, to));
        if (i > 0) succeeds(&part, "merge", bn_moments_merge(all, &own));
    }
    first = 0;
    for (int i = 0; i < cut->count; first += cut->samples[i++]) {
        fixture part = part_of(f, first, cut->samples[i]);
        if (i > 0) { /* the statistics are one device's */
            part.training.running_mean.data = part.training.running_var.data = NULL;
            part.training.running_mean.count = part.training.running_var.count = 0;
            part.training.num_batches_tracked = NULL;
        }
        succeeds(&part, "normalize", bn_normalize(&part.problem, all, &part.training));
    }
    first = 0;
    for (int i = 0; i < cut->count; first += cut->samples[i++]) {
        fixture part = part_of(f, first, cut->samples[i]);
        bn_gradient_sums *to = i == 0 ? total : &own_sums;
        succeeds(&part, "reduce", bn_backward_reduce(&part.problem, &part.backward, to));
        if (i == 0) continue;
        total->count += own_sums.count;
        for (int64_t c = 0; c < channels; c++) {
            total->sum_dy[c] += own_sums.sum_dy[c];
            total->sum_dy_xmu[c] += own_sums.sum_dy_xmu[c];
        }
    }
    first = 0;
    for (int i = 0; i < cut->count; first += cut->samples[i++]) {
        fixture part = part_of(f, first, cut->samples[i]);
        succeeds(&part, "apply", bn_backward_apply(&part.problem, total, &part.backward));
    }
    check(all->count == f->grid.rows * f->grid.inner, "count is %lld", (long long)all->count);
    check(total->count == all->count, "the sums' count is %lld", (long long)total->count);
}

/* Whole and in parts; all results have the same bits. */
static void same_bits(fixture *f, const parts *cut)
{
    fixture_remember(f);
    run_training(f);
    run_backward(f);
    const elements results[] = { f->output,       f->saved_mean,   f->saved_mean_rest,
                                 f->saved_invstd, f->running_mean, f->running_var,
                                 f->grad_input,   f->grad_weight,  f->grad_bias };
    static const char *const names[] = { "output",       "saved_mean",   "saved_mean_rest",
                                         "saved_invstd", "running_mean", "running_var",
                                         "grad_input",   "grad_weight",  "grad_bias" };
    elements whole[LENGTH(results)];
    for (size_t i = 0; i < LENGTH(results); i++) whole[i] = guarded_copy(results[i]);
    const int64_t counter = *f->num_batches_tracked;
    fixture_recall(f);
    bn_moments all = moments_for(f->grid.channels);
    bn_gradient_sums total = sums_for(f->grid.channels);
    run_in_parts(f, cut, &all, &total);
    for (size_t i = 0; i < LENGTH(results); i++) check_bits(f, names[i], results[i], whole[i]);
    check(*f->num_batches_tracked == counter, "the counter is %lld",
          (long long)*f->num_batches_tracked);
    double *invstd = doubles(f->grid.channels);
    succeeds(
        f, "statistics",
        bn_moments_statistics(&all, 1e-5, BN_VARIANCE_BIASED, NULL, 0, invstd, f->grid.channels));
    check_bits(f, "invstd", as_elements(invstd, f->grid.channels), whole[3]);

    /* Once more, as activation checkpointing does: the same output, and no statistics change. */
    const elements mean = guarded_copy(f->running_mean), var = guarded_copy(f->running_var);
    elements_fill_junk(f->output);
    f->training.running_mean.data = f->training.running_var.data = NULL;
    f->training.running_mean.count = f->training.running_var.count = 0;
    f->training.num_batches_tracked = NULL;
    succeeds(f, "second forward", bn_normalize(&f->problem, &all, &f->training));
    check_bits(f, "second output", f->output, whole[0]);
    check_bits(f, "running_mean after it", f->running_mean, mean);
    check_bits(f, "running_var after it", f->running_var, var);
    fixture_restore_args(f);
}

static const struct {
    int rank;
    int64_t sizes[5];
} shapes[] = {
    { 4, { 2, 3, 5, 7 } },                                   /* small */
    { 4, { 32, 2, 64, 64 } },                                /* NCHW by rows */
    { 4, { 30, 3, 61, 67 } },                                /* with a smaller last part */
    { 4, { 250, 40, 7, 7 } },                                /* NCHW by columns */
    { 4, { 60, 64, 8, 8 } },                                 /* NHWC folded */
    { 2, { 4000, 33 } },                                     /* a matrix */
    { 2, { 1000, 700 } },                                    /* in several runs */
    { 3, { 1, 16, 40000 } },                                 /* inner values cut */
    { 5, { 3, 16, 5, 20, 21 } }, { 4, { 8, 16, 170, 170 } }, /* larger than most caches */
};

static void for_every_shape(void (*test)(fixture *f))
{
    for (size_t s = 0; s < LENGTH(shapes); s++)
        for (int dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT64; dtype++)
            for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++) {
                if (shapes[s].rank == 2 && layout == BN_LAYOUT_NHWC) continue;
                fixture f = fixture_make(problem_of(dtype, layout, shapes[s].rank, shapes[s].sizes),
                                         (placement)(s % 3));
                /* A mean far from 0 gives mean_rest something to do. */
                if (s % 2 == 1) elements_fill_normal(f.input, 31, 3e4, 0.01);
                test(&f);
                guarded_free_all();
            }
}

static void one_part(fixture *f)
{
    const parts whole = { { f->problem.sizes[0] }, 1 };
    bn_set_max_isa(BN_ISA_AVX512);
    const bn_isa best = bn_get_isa();
    for (bn_isa isa = BN_ISA_GENERIC; isa <= best; isa++)
        for (int32_t threads = 1; threads <= 3; threads += 2) {
            if (isa != best && threads != 1) continue; /* the generic code is slow */
            bn_set_max_isa(isa);
            bn_set_num_threads(threads);
            same_bits(f, &whole);
        }
}

static void one_part_has_the_whole_ones_bits(void **state)
{
    (void)state;
    for_every_shape(one_part);
}

static bn_plan_info plan_of(const bn_problem *problem, bn_operation operation)
{
    const bn_explain_args args = asking(operation);
    bn_plan_info info = BN_PLAN_INFO_INIT;
    check(bn_explain(problem, &args, &info) == BN_STATUS_OK, "%s", bn_last_error_message());
    return info;
}

/* The header's condition, word by word: the parts, or none. */
static parts pieces_of(const fixture *f)
{
    const bn_plan_info whole = plan_of(&f->problem, BN_OPERATION_FORWARD_TRAINING);
    const int64_t samples = f->problem.sizes[0], rows_of_sample = f->grid.rows / samples;
    parts cut = { { 0 }, 0 };
    if (whole.piece_values != f->grid.inner || whole.piece_rows % rows_of_sample != 0) return cut;
    const int64_t step = whole.piece_rows / rows_of_sample;
    if (samples > step * MOST_PARTS) return cut;
    for (int64_t first = 0; first < samples; first += step) {
        const int64_t own = samples - first < step ? samples - first : step;
        const fixture part = part_of(f, first, own);
        const bn_plan_info info = plan_of(&part.problem, BN_OPERATION_FORWARD_TRAINING);
        if (info.piece_rows != own * rows_of_sample || info.piece_values != f->grid.inner)
            return (parts){ { 0 }, 0 };
        cut.samples[cut.count++] = own;
    }
    return cut;
}

static int cut_in_pieces[2][2]; /* [NHWC][by columns] */

static void its_pieces(fixture *f)
{
    const parts cut = pieces_of(f);
    if (cut.count < 2) return;
    const int by_columns = plan_of(&f->problem, BN_OPERATION_FORWARD_TRAINING).by_columns;
    cut_in_pieces[f->problem.layout == BN_LAYOUT_NHWC][by_columns]++;
    for (int32_t threads = 1; threads <= 3; threads += 2) {
        bn_set_num_threads(threads);
        same_bits(f, &cut);
    }
}

static void the_wholes_pieces_have_its_bits(void **state)
{
    (void)state;
    memset(cut_in_pieces, 0, sizeof cut_in_pieces);
    for_every_shape(its_pieces);
    check(cut_in_pieces[0][0] >= 4 && cut_in_pieces[0][1] >= 4 && cut_in_pieces[1][1] >= 2,
          "too few shapes have such parts: NCHW %d by rows, %d by columns, NHWC %d",
          cut_in_pieces[0][0], cut_in_pieces[0][1], cut_in_pieces[1][1]);
}

/* Parts of any size, one of them empty. */
static void any_parts(fixture *f)
{
    const int64_t samples = f->problem.sizes[0];
    parts cut = { { samples / 3, 0, samples - samples / 3 - samples / 2, samples / 2 }, 4 };
    bn_moments all = moments_for(f->grid.channels);
    bn_gradient_sums total = sums_for(f->grid.channels);
    run_in_parts(f, &cut, &all, &total);
    const ref_statistics *batch = batch_statistics(f, 1e-5);
    const double error = ref_forward_error(f->grid, batch, f->input, f->weight, f->bias, f->output);
    check(error <= 1, "%s: y is off by %g of its bound", problem_text(&f->problem), error);
    const ref_gradients gradients = { f->grad_input, f->grad_weight, f->grad_bias };
    const ref_gradient_errors errors = ref_backward_error(
        f->grid, saved_statistics(f), false, f->input, f->grad_output, f->weight, gradients);
    check(errors.input <= 1 && errors.weight <= 1 && errors.bias <= 1,
          "%s: gradients are off by %g, %g and %g of their bounds", problem_text(&f->problem),
          errors.input, errors.weight, errors.bias);
}

static void any_parts_are_within_the_bounds(void **state)
{
    (void)state;
    for_every_shape(any_parts);
}

/* ---- moments by themselves ---- */

static fixture images(bn_dtype dtype)
{
    const bn_problem problem = BN_PROBLEM_2D(dtype, BN_LAYOUT_NCHW, 4, 3, 4, 5);
    return fixture_make(problem, PLACE_START);
}

static void compute(const fixture *f, bn_moments *moments)
{
    succeeds(f, "moments",
             bn_moments_compute(&f->problem, f->input.data, f->input.count, NULL, moments));
}

static void copy_moments(bn_moments *to, const bn_moments *from)
{
    const size_t bytes = (size_t)from->channels * sizeof(double);
    to->count = from->count;
    memcpy(to->mean, from->mean, bytes);
    memcpy(to->mean_rest, from->mean_rest, bytes);
    memcpy(to->m2, from->m2, bytes);
}

static void check_moments(const fixture *f, const bn_moments *got, const bn_moments *expected)
{
    check(got->count == expected->count, "count is %lld, expected %lld", (long long)got->count,
          (long long)expected->count);
    check_bits(f, "mean", as_elements(got->mean, 3), as_elements(expected->mean, 3));
    check_bits(f, "mean_rest", as_elements(got->mean_rest, 3), as_elements(expected->mean_rest, 3));
    check_bits(f, "m2", as_elements(got->m2, 3), as_elements(expected->m2, 3));
}

static void none_is_as_if_it_were_not_there(void **state)
{
    (void)state;
    fixture f = images(BN_DTYPE_FLOAT64);
    bn_moments some = moments_for(3), none = moments_for(3), result = moments_for(3);
    compute(&f, &some);
    /* Without values the arrays say nothing: not even NaN or a negative m2 matters. */
    for (int c = 0; c < 3; c++) none.mean[c] = NAN, none.mean_rest[c] = NAN, none.m2[c] = -1;
    copy_moments(&result, &some);
    succeeds(&f, "merge", bn_moments_merge(&result, &none));
    check_moments(&f, &result, &some);
    copy_moments(&result, &none);
    succeeds(&f, "merge", bn_moments_merge(&result, &some));
    check_moments(&f, &result, &some);
    /* An empty batch has such moments. */
    bn_problem empty = f.problem;
    empty.sizes[0] = 0;
    succeeds(&f, "moments", bn_moments_compute(&empty, NULL, 0, NULL, &result));
    check(result.count == 0 && result.mean[1] == 0 && result.m2[2] == 0, "moments of nothing");
}

static void statistics_are_those_of_the_values(void **state)
{
    (void)state;
    fixture f = images(BN_DTYPE_FLOAT64);
    bn_moments m = moments_for(3);
    double *biased = doubles(3), *unbiased = doubles(3), *invstd = doubles(3);
    compute(&f, &m);
    check(m.count == 80, "count is %lld", (long long)m.count);
    succeeds(&f, "statistics",
             bn_moments_statistics(&m, 0.5, BN_VARIANCE_BIASED, biased, 3, invstd, 3));
    succeeds(&f, "statistics",
             bn_moments_statistics(&m, 0.5, BN_VARIANCE_UNBIASED, unbiased, 3, NULL, 0));
    for (int c = 0; c < 3; c++) {
        const ref_statistics s = ref_of_batch(f.grid, f.input, c, 0.5);
        check(fabsl(m.mean[c] + (long double)m.mean_rest[c] - ref_mean(s)) <= 0x1p-49L, "mean %d",
              c);
        check(fabsl(biased[c] - s.variance) <= 0x1p-48L * s.variance, "variance %d", c);
        check(fabsl(unbiased[c] - s.variance * 80 / 79) <= 0x1p-48L * s.variance, "unbiased %d", c);
        check(fabsl(invstd[c] - s.invstd) <= 0x1p-48L * s.invstd, "invstd %d", c);
    }
}

/* ---- running statistics without an output ---- */

/* Takes moments into running statistics, as the header says: a problem without samples. */
static bn_status update_running(fixture *f, const bn_moments *moments)
{
    bn_problem none = f->problem;
    none.sizes[0] = 0;
    f->training.input.data = NULL;
    f->training.output.data = NULL;
    f->training.input.count = f->training.output.count = 0;
    return bn_normalize(&none, moments, &f->training);
}

static void running_statistics_are_recalibrated(void **state)
{
    (void)state;
    enum { BATCHES = 5 };
    for (int dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT64; dtype++) {
        fixture f = images(dtype);
        /* By the plain mean of the batches: as many forwards with momentum 1/k. */
        bn_moments own = moments_for(3), all = moments_for(3);
        elements everything =
            guarded_elements(BATCHES * f.input.count, f.input.is_double, PLACE_END);
        fixture_remember(&f);
        elements mean[2], var[2];
        for (int halves = 0; halves < 2; halves++) {
            fixture_recall(&f);
            *f.num_batches_tracked = 0;
            all.count = 0;
            for (int b = 0; b < BATCHES; b++) {
                elements_fill_normal(f.input, (uint64_t)(70 + b), b, 1 + b);
                memcpy((char *)everything.data + (size_t)b * elements_bytes(f.input), f.input.data,
                       elements_bytes(f.input));
                fixture_restore_args(&f);
                f.training.averaging = BN_AVERAGING_CUMULATIVE;
                compute(&f, &own);
                succeeds(&f, "merge", bn_moments_merge(&all, &own));
                if (halves)
                    succeeds(&f, "update", update_running(&f, &own));
                else
                    run_training(&f);
            }
            mean[halves] = guarded_copy(f.running_mean);
            var[halves] = guarded_copy(f.running_var);
            check(*f.num_batches_tracked == BATCHES, "counter");
        }
        check_bits(&f, "mean of means", mean[1], mean[0]);
        check_bits(&f, "mean of variances", var[1], var[0]);

        /* Exactly: as one batch of all of them. */
        fixture_restore_args(&f);
        f.training.momentum = 1;
        f.training.running_variance = BN_VARIANCE_BIASED;
        succeeds(&f, "update", update_running(&f, &all));
        const ref_grid grid = { 4 * BATCHES, 3, 20 };
        for (int c = 0; c < 3; c++) {
            const ref_statistics s = ref_of_batch(grid, everything, c, 0);
            check(ref_error(elements_get(f.running_mean, c), ref_mean(s), 4, ref_mean(s),
                            f.input.is_double) <= 1,
                  "running_mean[%d] is %.17g", c, elements_get(f.running_mean, c));
            check(ref_error(elements_get(f.running_var, c), s.variance, 4, s.variance,
                            f.input.is_double) <= 1,
                  "running_var[%d] is %.17g", c, elements_get(f.running_var, c));
        }
        guarded_free_all();
    }
}

/* ---- policies ---- */

static void nonfinite_channels_as_in_the_whole(void **state)
{
    (void)state;
    static const double bad[] = { NAN, INFINITY, -INFINITY };
    for (int dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT64; dtype++)
        for (size_t b = 0; b < LENGTH(bad); b++) {
            fixture f = images(dtype);
            elements_set(f.input, 20 + 7, bad[b]); /* channel 1 */
            const parts whole = { { 4 }, 1 };
            same_bits(&f, &whole);
            bn_moments m = moments_for(3);
            compute(&f, &m);
            double *variance = doubles(3);
            succeeds(&f, "statistics",
                     bn_moments_statistics(&m, 0, BN_VARIANCE_BIASED, variance, 3, NULL, 0));
            check(isnan(variance[1]) && isfinite(variance[0]) && isfinite(variance[2]),
                  "variance of NaN");
            f.training.nonfinite = BN_NONFINITE_ERROR;
            check_refused(bn_normalize(&f.problem, &m, &f.training), BN_STATUS_NONFINITE,
                          "1 of 3 channels");
            check(f.training.nonfinite_channels == 1, "nonfinite_channels");
            guarded_free_all();
        }
}

static void one_value_as_in_the_whole(void **state)
{
    (void)state;
    const int64_t sizes[] = { 1, 3 };
    fixture f = fixture_make(problem_of(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 2, sizes), PLACE_END);
    bn_moments m = moments_for(3);
    compute(&f, &m);
    fixture_remember(&f);
    check_refused(bn_normalize(&f.problem, &m, &f.training), BN_STATUS_ONE_VALUE, "count is 1");
    check(fixture_changed(&f) == NULL, "changed %s", fixture_changed(&f));
    for (bn_one_value policy = BN_ONE_VALUE_USE_RUNNING; policy <= BN_ONE_VALUE_ALLOW; policy++) {
        fixture_recall(&f);
        f.training.one_value = policy;
        run_training(&f);
        const bn_statistics used = f.training.statistics_used;
        const elements output = guarded_copy(f.output), mean = guarded_copy(f.running_mean);
        const elements var = guarded_copy(f.running_var), invstd = guarded_copy(f.saved_invstd);
        fixture_recall(&f);
        succeeds(&f, "normalize", bn_normalize(&f.problem, &m, &f.training));
        check(f.training.statistics_used == used, "statistics_used");
        check_bits(&f, "output", f.output, output);
        check_bits(&f, "running_mean", f.running_mean, mean);
        check_bits(&f, "running_var", f.running_var, var);
        check_bits(&f, "saved_invstd", f.saved_invstd, invstd);
    }
    /* One sample here, and more elsewhere: no such case. */
    fixture_restore_args(&f);
    bn_moments other = moments_for(3);
    copy_moments(&other, &m);
    succeeds(&f, "merge", bn_moments_merge(&m, &other));
    succeeds(&f, "normalize", bn_normalize(&f.problem, &m, &f.training));
}

/* ---- from saved_mean and saved_invstd ---- */

static void saved_forward(fixture *f)
{
    run_training(f);
    const elements first = guarded_copy(f->output);
    fixture_remember(f);
    elements_fill_junk(f->output);
    const elements junk = guarded_copy(f->output);
    f->inference.running_mean.data = f->inference.running_var.data = NULL;
    f->inference.epsilon = NAN; /* ignored */
    bn_saved saved = saved_of(f);
    succeeds(f, "saved forward", bn_normalize_saved(&f->problem, &saved, &f->inference));
    check_bits(f, "output", f->output, first);
    elements_copy(f->output, junk);
    saved.mean_rest = (bn_mutable_float64_view)BN_ABSENT;
    succeeds(f, "saved forward without the mean's rest",
             bn_normalize_saved(&f->problem, &saved, &f->inference));
    check(elements_first_difference(f->output, junk) >= 0, "nothing was written");
    const int is_double = f->input.is_double;
    const long double epsilon = is_double ? 0x1p-53L : 0x1p-24L;
    for (int64_t c = 0; c < f->grid.channels; c++) {
        const long double mean = fabs(elements_get(f->saved_mean, c));
        const long double gain =
            (long double)elements_get(f->saved_invstd, c) * fabs(elements_get(f->weight, c));
        const long double bias = fabs(elements_get(f->bias, c));
        for (int64_t i = 0; i < f->grid.rows * f->grid.inner; i++) {
            const int64_t at = ref_index(f->grid, c, i);
            const long double y = elements_get(first, at);
            const long double off = fabsl(elements_get(f->output, at) - y);
            /* The header's: mean_rest's share, and in either forward one rounding of y and one of the
             * offset, which is bias and what rounding the mean left. */
            const long double rest = mean * 0x1p-53L * gain, left = mean * epsilon * gain;
            const long double allowed = rest + 2 * epsilon * (bias + left + rest + fabsl(y));
            check(off <= allowed, "%s: y[%lld] is off by %Lg, allowed %Lg",
                  problem_text(&f->problem), (long long)at, off, allowed);
        }
    }
    elements_copy(f->output, first);
    fixture_restore_args(f);
    /* fixture_changed would find the output if it had not been put back: nothing else is written. */
    check(fixture_changed(f) == NULL, "changed %s", fixture_changed(f));
}

static void once_more_from_what_was_saved(void **state)
{
    (void)state;
    for_every_shape(saved_forward);
}

/* ---- backward of frozen statistics, and of what others have ---- */

static void frozen_halves_have_the_whole_ones_bits(void **state)
{
    (void)state;
    fixture f = images(BN_DTYPE_FLOAT32);
    f.backward.statistics = BN_STATISTICS_RUNNING;
    run_backward(&f);
    const elements dx = guarded_copy(f.grad_input), dw = guarded_copy(f.grad_weight);
    const elements db = guarded_copy(f.grad_bias);
    bn_gradient_sums sums = sums_for(3);
    succeeds(&f, "reduce", bn_backward_reduce(&f.problem, &f.backward, &sums));
    succeeds(&f, "apply", bn_backward_apply(&f.problem, &sums, &f.backward));
    check_bits(&f, "grad_input", f.grad_input, dx);
    check_bits(&f, "grad_weight", f.grad_weight, dw);
    check_bits(&f, "grad_bias", f.grad_bias, db);
}

static void an_empty_part_gets_the_others_gradients(void **state)
{
    (void)state;
    fixture f = images(BN_DTYPE_FLOAT64);
    run_training(&f);
    run_backward(&f);
    const elements dw = guarded_copy(f.grad_weight), db = guarded_copy(f.grad_bias);
    bn_gradient_sums sums = sums_for(3);
    succeeds(&f, "reduce", bn_backward_reduce(&f.problem, &f.backward, &sums));
    elements_fill_junk(f.grad_weight);
    elements_fill_junk(f.grad_bias);
    fixture none = part_of(&f, 0, 0);
    succeeds(&none, "apply", bn_backward_apply(&none.problem, &sums, &none.backward));
    check_bits(&f, "grad_weight", f.grad_weight, dw);
    check_bits(&f, "grad_bias", f.grad_bias, db);
    /* Where all parts are empty, the gradients are 0. */
    succeeds(&none, "reduce", bn_backward_reduce(&none.problem, &none.backward, &sums));
    check(sums.count == 0 && sums.sum_dy[0] == 0 && sums.sum_dy_xmu[2] == 0, "sums of nothing");
    succeeds(&none, "apply", bn_backward_apply(&none.problem, &sums, &none.backward));
    check(elements_get(f.grad_weight, 1) == 0 && elements_get(f.grad_bias, 2) == 0, "no gradient");
}

/* A batch of which no value takes part, whole and as its only part. */
static void all_masked_as_in_the_whole(void **state)
{
    (void)state;
    fixture f = images(BN_DTYPE_FLOAT32);
    fixture_add_extras(&f);
    memset(f.mask, 0, (size_t)f.positions);
    const extras masked = { .mask = true };
    fixture_use(&f, masked);
    fixture_remember(&f);
    run_training(&f);
    run_backward(&f);
    const elements output = guarded_copy(f.output), dx = guarded_copy(f.grad_input);
    const elements dw = guarded_copy(f.grad_weight), mean = guarded_copy(f.running_mean);
    fixture_recall(&f);
    bn_moments m = moments_for(3);
    bn_gradient_sums sums = sums_for(3);
    succeeds(
        &f, "compute",
        bn_moments_compute(&f.problem, f.input.data, f.input.count, &f.training.positions, &m));
    succeeds(&f, "normalize", bn_normalize(&f.problem, &m, &f.training));
    succeeds(&f, "reduce", bn_backward_reduce(&f.problem, &f.backward, &sums));
    succeeds(&f, "apply", bn_backward_apply(&f.problem, &sums, &f.backward));
    check_bits(&f, "output", f.output, output);
    check_bits(&f, "grad_input", f.grad_input, dx);
    check_bits(&f, "grad_weight", f.grad_weight, dw);
    check_bits(&f, "running_mean", f.running_mean, mean);
    f.mask[1] = 1; /* then moments of nothing are none of this batch */
    check_refused(bn_normalize(&f.problem, &m, &f.training), BN_STATUS_MOMENTS, "count|0|1");
    check_refused(bn_backward_apply(&f.problem, &sums, &f.backward), BN_STATUS_MOMENTS,
                  "count|0|1");
}

/* ---- bad input ---- */

/* The call was refused as it must be and has changed nothing. */
#define REFUSED(call, status, words)                                                      \
    do {                                                                                  \
        fixture_remember(&f);                                                             \
        copy_moments(&before, &m);                                                        \
        check_refused(call, status, words);                                               \
        check(fixture_changed(&f) == NULL, "%s: changed %s", words, fixture_changed(&f)); \
        check_moments(&f, &m, &before);                                                   \
    } while (0)

static void bad_moments_are_refused(void **state)
{
    (void)state;
    fixture f = images(BN_DTYPE_FLOAT32);
    bn_moments m = moments_for(3), before = moments_for(3), other = moments_for(3), bad;
    compute(&f, &m);
    copy_moments(&other, &m);
    double *variance = doubles(3);

    REFUSED(bn_moments_compute(NULL, f.input.data, 240, NULL, &m), BN_STATUS_NULL_POINTER,
            "problem");
    REFUSED(bn_moments_compute(&f.problem, NULL, 240, NULL, &m), BN_STATUS_NULL_POINTER, "input");
    REFUSED(bn_moments_compute(&f.problem, f.input.data, 239, NULL, &m), BN_STATUS_COUNT_MISMATCH,
            "input.count|239|240");
    REFUSED(bn_moments_compute(&f.problem, f.input.data, 240, NULL, NULL), BN_STATUS_NULL_POINTER,
            "moments");
    bad = m, bad.channels = 4;
    REFUSED(bn_moments_compute(&f.problem, f.input.data, 240, NULL, &bad), BN_STATUS_COUNT_MISMATCH,
            "moments->channels|4|3");
    REFUSED(bn_normalize(&f.problem, &bad, &f.training), BN_STATUS_COUNT_MISMATCH,
            "moments->channels|4|3");
    REFUSED(bn_moments_merge(&m, &bad), BN_STATUS_COUNT_MISMATCH, "other->channels|4|3");
    bad = m, bad.channels = -1;
    REFUSED(bn_moments_merge(&bad, &other), BN_STATUS_NEGATIVE_SIZE, "moments->channels|-1");
    REFUSED(bn_moments_statistics(&bad, 0, BN_VARIANCE_BIASED, variance, 3, NULL, 0),
            BN_STATUS_NEGATIVE_SIZE, "-1");
    bad = m, bad.channels = 0;
    REFUSED(bn_moments_merge(&bad, &other), BN_STATUS_NO_CHANNELS, "0");
    bad = m, bad.channels = INT64_MAX;
    REFUSED(bn_moments_merge(&bad, &other), BN_STATUS_SIZE_OVERFLOW, "9223372036854775807");
    bad = m, bad.struct_size = 8;
    REFUSED(bn_moments_merge(&bad, &other), BN_STATUS_STRUCT_SIZE, "moments->struct_size|8");
    bad = other, bad.reserved = 1;
    REFUSED(bn_moments_merge(&m, &bad), BN_STATUS_INVALID_OPTION, "reserved|1");
    bad = other, bad.mean_rest = NULL;
    REFUSED(bn_moments_merge(&m, &bad), BN_STATUS_NULL_POINTER, "mean_rest");
    bad = other, bad.m2 = m.m2;
    REFUSED(bn_moments_merge(&m, &bad), BN_STATUS_OVERLAP, "m2");
    REFUSED(bn_moments_merge(&m, &m), BN_STATUS_OVERLAP, "mean");
    bad = other, bad.mean = (double *)((char *)other.mean_rest + 4);
    REFUSED(bn_moments_merge(&m, &bad), BN_STATUS_MISALIGNED, "mean");

    bad = other, bad.count = -2;
    REFUSED(bn_moments_merge(&m, &bad), BN_STATUS_MOMENTS, "other->count|-2|0");
    REFUSED(bn_normalize(&f.problem, &bad, &f.training), BN_STATUS_MOMENTS, "moments->count|-2|1");
    bad.count = INT64_MAX;
    REFUSED(bn_moments_merge(&m, &bad), BN_STATUS_MOMENTS,
            "other->count|9223372036854775807|9223372036854775727");
    bad.count = 0;
    REFUSED(bn_normalize(&f.problem, &bad, &f.training), BN_STATUS_MOMENTS, "moments->count|0|1");
    REFUSED(bn_moments_statistics(&bad, 0, BN_VARIANCE_BIASED, variance, 3, NULL, 0),
            BN_STATUS_MOMENTS, "0|1");
    bad.count = 1;
    REFUSED(bn_moments_statistics(&bad, 0, BN_VARIANCE_UNBIASED, variance, 3, NULL, 0),
            BN_STATUS_MOMENTS, "1|2");
    other.m2[2] = -0.5;
    bad = other;
    REFUSED(bn_moments_merge(&m, &bad), BN_STATUS_MOMENTS, "other->m2[2]|-0.5");
    REFUSED(bn_normalize(&f.problem, &bad, &f.training), BN_STATUS_MOMENTS, "moments->m2[2]|-0.5");

    REFUSED(bn_moments_statistics(&m, -1, 0, variance, 3, NULL, 0), BN_STATUS_EPSILON, "-1");
    REFUSED(bn_moments_statistics(&m, 0, 2, variance, 3, NULL, 0), BN_STATUS_INVALID_OPTION,
            "kind|2");
    REFUSED(bn_moments_statistics(&m, 0, 0, variance, 2, NULL, 0), BN_STATUS_COUNT_MISMATCH,
            "variance.count|2|3");
    REFUSED(bn_normalize(&f.problem, NULL, &f.training), BN_STATUS_NULL_POINTER, "moments");
    f.training.saved.mean.data = m.mean;
    REFUSED(bn_normalize(&f.problem, &m, &f.training), BN_STATUS_OVERLAP, "saved.mean|mean");
    fixture_restore_args(&f);
    f.training.momentum = NAN;
    REFUSED(bn_normalize(&f.problem, &m, &f.training), BN_STATUS_MOMENTUM, "momentum");
    fixture_restore_args(&f);
    REFUSED(bn_normalize_saved(&f.problem, NULL, &f.inference), BN_STATUS_NULL_POINTER, "saved");
    bn_saved saved = saved_of(&f);
    saved.mean.count = 2;
    REFUSED(bn_normalize_saved(&f.problem, &saved, &f.inference), BN_STATUS_COUNT_MISMATCH,
            "saved.mean.count|2|3");
    saved = saved_of(&f), saved.mean_rest.count = 4;
    REFUSED(bn_normalize_saved(&f.problem, &saved, &f.inference), BN_STATUS_COUNT_MISMATCH,
            "saved.mean_rest.count|4|3");
    saved = saved_of(&f), saved.invstd = (bn_mutable_float64_view)BN_ABSENT;
    REFUSED(bn_normalize_saved(&f.problem, &saved, &f.inference), BN_STATUS_NULL_POINTER,
            "saved.invstd");
}

static void bad_sums_are_refused(void **state)
{
    (void)state;
    fixture f = images(BN_DTYPE_FLOAT64);
    bn_moments m = moments_for(3), before = moments_for(3);
    compute(&f, &m);
    bn_gradient_sums sums = sums_for(3), bad;
    succeeds(&f, "reduce", bn_backward_reduce(&f.problem, &f.backward, &sums));
    bad = sums, bad.channels = 2;
    REFUSED(bn_backward_reduce(&f.problem, &f.backward, &bad), BN_STATUS_COUNT_MISMATCH,
            "sums->channels|2|3");
    REFUSED(bn_backward_apply(&f.problem, &bad, &f.backward), BN_STATUS_COUNT_MISMATCH,
            "sums->channels|2|3");
    bad = sums, bad.count = 0;
    REFUSED(bn_backward_apply(&f.problem, &bad, &f.backward), BN_STATUS_MOMENTS, "sums->count|0|1");
    bad.count = -7;
    REFUSED(bn_backward_apply(&f.problem, &bad, &f.backward), BN_STATUS_MOMENTS, "sums->count|-7");
    bad = sums, bad.sum_dy_xmu = bad.sum_dy;
    REFUSED(bn_backward_reduce(&f.problem, &f.backward, &bad), BN_STATUS_OVERLAP,
            "sum_dy|sum_dy_xmu");
    bad = sums, bad.sum_dy = NULL;
    REFUSED(bn_backward_apply(&f.problem, &bad, &f.backward), BN_STATUS_NULL_POINTER, "sum_dy");
    REFUSED(bn_backward_apply(&f.problem, NULL, &f.backward), BN_STATUS_NULL_POINTER, "sums");
    bad = sums, bad.struct_size++;
    REFUSED(bn_backward_reduce(&f.problem, &f.backward, &bad), BN_STATUS_STRUCT_SIZE,
            "sums->struct_size");
    f.backward.saved.mean.count = 2;
    REFUSED(bn_backward_reduce(&f.problem, &f.backward, &sums), BN_STATUS_COUNT_MISMATCH,
            "saved.mean.count|2|3");
    /* What the first half does not take may be anything. */
    f.backward.saved.mean.count = 3;
    f.backward.saved.invstd.count = f.backward.grad_input.count = -1;
    f.backward.grad_residual.data = &sums, f.backward.grad_residual.count = 5;
    succeeds(&f, "reduce", bn_backward_reduce(&f.problem, &f.backward, &sums));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(one_part_has_the_whole_ones_bits, fixture_teardown),
        cmocka_unit_test_teardown(the_wholes_pieces_have_its_bits, fixture_teardown),
        cmocka_unit_test_teardown(any_parts_are_within_the_bounds, fixture_teardown),
        cmocka_unit_test_teardown(none_is_as_if_it_were_not_there, fixture_teardown),
        cmocka_unit_test_teardown(statistics_are_those_of_the_values, fixture_teardown),
        cmocka_unit_test_teardown(running_statistics_are_recalibrated, fixture_teardown),
        cmocka_unit_test_teardown(nonfinite_channels_as_in_the_whole, fixture_teardown),
        cmocka_unit_test_teardown(one_value_as_in_the_whole, fixture_teardown),
        cmocka_unit_test_teardown(once_more_from_what_was_saved, fixture_teardown),
        cmocka_unit_test_teardown(frozen_halves_have_the_whole_ones_bits, fixture_teardown),
        cmocka_unit_test_teardown(an_empty_part_gets_the_others_gradients, fixture_teardown),
        cmocka_unit_test_teardown(all_masked_as_in_the_whole, fixture_teardown),
        cmocka_unit_test_teardown(bad_moments_are_refused, fixture_teardown),
        cmocka_unit_test_teardown(bad_sums_are_refused, fixture_teardown),
    };
    return cmocka_run_group_tests_name("abi: moments", tests, NULL, NULL);
}
