/*
 * The accuracy table of the design (what every peer gets wrong), row by row, in both layouts: output and all
 * gradients against the long double reference. Prints how much of the allowed error was used.
 */
#include "check.h"

#include <math.h>

#include "fixture.h"

typedef struct row {
    const char *name;
    double mean, deviation;
    double constant; /* of channel 1, unless NAN */
    double first;    /* value of each channel, unless NAN */
    int distinct;    /* so many different values, in input and grad_output; 0: any */
    enum { AS_THEY_COME, RAMP, ALTERNATING, STEP, RECTIFIED, LOG_NORMAL, ONE_HUGE, PARTED } order;
} row;

static const row rows[] = {
    { "N(0,1)", 0, 1, NAN, NAN, 0, AS_THEY_COME },
    { "mean 1e2, std 1", 1e2, 1, NAN, NAN, 0, AS_THEY_COME },
    { "mean 1e4, std 1e-2", 1e4, 1e-2, NAN, NAN, 0, AS_THEY_COME },
    { "one channel constant 1e4", 0, 1, 1e4, NAN, 0, AS_THEY_COME },
    { "one channel constant 3.7", 0, 1, 3.7, NAN, 0, AS_THEY_COME },
    { "values of 3e19", 0, 3e19, NAN, NAN, 0, AS_THEY_COME },
    { "a first value of 50", 0, 1, NAN, 50, 0, AS_THEY_COME },
    { "two values", 0, 1, NAN, NAN, 2, AS_THEY_COME },
    { "three values, mean 1", 1, 1, NAN, NAN, 3, AS_THEY_COME },
    { "a ramp", 0, 1, NAN, NAN, 0, RAMP },
    { "a ramp far from 0", 1e5, 1e-1, NAN, NAN, 0, RAMP },
    { "signs alternate, 1e30", 0, 1e30, NAN, NAN, 0, ALTERNATING },
    { "the first fiftieth elsewhere", 0, 1, NAN, NAN, 0, STEP },
    { "rectified", 0, 1, NAN, NAN, 0, RECTIFIED },
    { "rectified, mean -3", -3, 1, NAN, NAN, 0, RECTIFIED },
    { "log-normal", 0, 2, NAN, NAN, 0, LOG_NORMAL },
    { "one 3e38 among small ones", 0, 1, NAN, NAN, 0, ONE_HUGE },
    { "two values, one before the other", 0, 1, NAN, NAN, 0, PARTED },
};

/* The nearest of some values around the mean, which no binary fraction is near to. */
static void make_few(elements values, int distinct, double mean)
{
    for (int64_t i = 0; i < values.count; i++) {
        const double v = elements_get(values, i) - mean;
        const double kept = distinct == 2 ? (v < 0 ? 0.1 : 0.7) : v < -1 ? 0.1 : v < 1 ? 0.3 : 0.9;
        elements_set(values, i, mean + kept);
    }
}

/* Value `i` of `count` of a channel, made of a normal one. */
static double in_order(const row *r, int64_t i, int64_t count, double normal)
{
    switch (r->order) {
    case RAMP:
        return r->mean + r->deviation * (double)i / (double)count;
    case ALTERNATING:
        return r->mean + (i % 2 ? 1 : -1) * r->deviation;
    case STEP: /* further than any pivot reaches that is found at the beginning */
        return normal + (i < count / 50 ? 1000 : 0);
    case RECTIFIED:
        return normal > 0 ? normal : 0;
    case LOG_NORMAL:
        return exp(normal);
    case ONE_HUGE:
        return i == count / 2 ? 3e38 : normal;
    case PARTED: /* a pivot at the first is two deviations off, and all are rounded alike */
        return i * 100 < count * 21 ? -0x1.dc01bap-2 : 0x1.d8739cp+0;
    default:
        return normal;
    }
}

static void put_in_order(const fixture *f, const row *r)
{
    const int64_t count = f->grid.rows * f->grid.inner;
    for (int64_t c = 0; c < f->grid.channels; c++)
        for (int64_t i = 0; i < count; i++) {
            const int64_t at = ref_index(f->grid, c, i);
            elements_set(f->input, at, in_order(r, i, count, elements_get(f->input, at)));
        }
}

static void fill(const fixture *f, const row *r)
{
    elements_fill_normal(f->input, 31, r->mean, r->deviation);
    if (r->order != AS_THEY_COME) put_in_order(f, r);
    for (int64_t c = 0; !isnan(r->first) && c < f->grid.channels; c++)
        elements_set(f->input, ref_index(f->grid, c, 0), r->first);
    if (r->distinct > 0) {
        make_few(f->input, r->distinct, r->mean);
        make_few(f->grad_output, r->distinct, 0);
    }
    if (isnan(r->constant)) return;
    for (int64_t i = 0; i < f->grid.rows * f->grid.inner; i++)
        elements_set(f->input, ref_index(f->grid, 1, i), r->constant);
}

static void check_saved(const fixture *f, const row *r, const ref_statistics *statistics)
{
    for (int64_t c = 0; c < f->grid.channels; c++) {
        const ref_statistics s = statistics[c];
        const double mean = elements_get(f->saved_mean, c);
        const double invstd = elements_get(f->saved_invstd, c);
        check(ref_saved_mean_error(s, mean, f->input.is_double) <= 1,
              "%s: saved_mean[%lld] is %.17g, expected %.17Lg", r->name, (long long)c, mean,
              ref_mean(s));
        check(ref_saved_invstd_error(s, invstd, f->input.is_double) <= 1,
              "%s: saved_invstd[%lld] is %.17g, expected %.17Lg", r->name, (long long)c, invstd,
              s.invstd);
    }
}

static void check_row(bn_problem problem, const row *r)
{
    fixture f = fixture_make(problem, PLACE_END);
    fill(&f, r);
    run_training(&f);
    run_backward(&f);
    const ref_statistics *statistics = batch_statistics(&f, 1e-5);
    check_saved(&f, r, statistics);
    const double y = ref_forward_error(f.grid, statistics, f.input, f.weight, f.bias, f.output);
    const ref_gradient_errors d =
        ref_backward_error(f.grid, statistics, false, f.input, f.grad_output, f.weight,
                           (ref_gradients){ f.grad_input, f.grad_weight, f.grad_bias });
    print_message("%-26s %-34s y %.2f  dx %.2f  dweight %.2f  dbias %.2f\n", r->name,
                  problem_text(&f.problem), y, d.input, d.weight, d.bias);
    check(y <= 1 && d.input <= 1 && d.weight <= 1 && d.bias <= 1,
          "%s, %s: of what is allowed output is off by %.3g, grad_input %.3g, grad_weight %.3g, "
          "grad_bias %.3g",
          r->name, problem_text(&f.problem), y, d.input, d.weight, d.bias);

    if (!isnan(r->constant))
        for (int64_t i = 0; i < f.grid.rows * f.grid.inner; i++) {
            const double got = elements_get(f.output, ref_index(f.grid, 1, i));
            check(got == elements_get(f.bias, 1), "%s, %s: %.9g instead of exactly the bias %.9g",
                  r->name, problem_text(&f.problem), got, elements_get(f.bias, 1));
        }
    guarded_free_all();
}

static void check_rows(bn_dtype dtype, bn_layout layout)
{
    /* N*S = 12544 in shapes that are cut in different ways. */
    static const int64_t shapes[][4] = { { 16, 5, 28, 28 }, { 256, 5, 7, 7 }, { 1, 3, 112, 112 } };
    for (size_t s = 0; s < LENGTH(shapes); s++)
        for (size_t i = 0; i < LENGTH(rows); i++)
            check_row(problem_of(dtype, layout, 4, shapes[s]), &rows[i]);
}

static void float32_nchw(void **state)
{
    (void)state;
    check_rows(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW);
}

static void float32_nhwc(void **state)
{
    (void)state;
    check_rows(BN_DTYPE_FLOAT32, BN_LAYOUT_NHWC);
}

static void float64_nchw(void **state)
{
    (void)state;
    check_rows(BN_DTYPE_FLOAT64, BN_LAYOUT_NCHW);
}

static void float64_nhwc(void **state)
{
    (void)state;
    check_rows(BN_DTYPE_FLOAT64, BN_LAYOUT_NHWC);
}

static void a_matrix(void **state)
{
    (void)state;
    const int64_t sizes[] = { 12544, 5 };
    for (size_t i = 0; i < LENGTH(rows); i++)
        check_row(problem_of(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 2, sizes), &rows[i]);
}

/* A million float64 values per channel of few distinct ones, which chains of additions round alike; and a mean of
 * a million deviations, whose rest no float64 mean can hold. Both in every way of cutting a tensor. */
static void float64_without_drift(void **state)
{
    (void)state;
    static const row hard[] = { { "two values", 0, 1, NAN, NAN, 2, AS_THEY_COME },
                                { "three values, mean 1", 1, 1, NAN, NAN, 3, AS_THEY_COME },
                                { "mean 1e6, std 1", 1e6, 1, NAN, NAN, 0, AS_THEY_COME } };
    static const struct {
        bn_layout layout;
        int64_t sizes[4];
    } shapes[] = {
        { BN_LAYOUT_NCHW, { 1, 2, 1000, 1000 } }, { BN_LAYOUT_NCHW, { 64, 2, 125, 125 } },
        { BN_LAYOUT_NCHW, { 5000, 1, 14, 14 } },  { BN_LAYOUT_NHWC, { 1, 1, 1000, 1000 } },
        { BN_LAYOUT_NHWC, { 60, 3, 64, 64 } },    { BN_LAYOUT_NHWC, { 20, 600, 8, 125 } },
    };
    for (size_t s = 0; s < LENGTH(shapes); s++)
        for (size_t i = 0; i < LENGTH(hard); i++)
            check_row(problem_of(BN_DTYPE_FLOAT64, shapes[s].layout, 4, shapes[s].sizes), &hard[i]);
}

/* 1.76e7 values per channel, nearly constant: where sums in float32 stop counting. */
static void many_near_constant_values(void **state)
{
    (void)state;
    static const row near_constant = {
        "1.76e7 near-constant", 1000, 1e-3, NAN, NAN, 0, AS_THEY_COME
    };
    for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++) {
        const bn_problem problem = BN_PROBLEM_2D(BN_DTYPE_FLOAT32, layout, 22, 2, 800, 1000);
        check_row(problem, &near_constant);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(float32_nchw, fixture_teardown),
        cmocka_unit_test_teardown(float32_nhwc, fixture_teardown),
        cmocka_unit_test_teardown(float64_nchw, fixture_teardown),
        cmocka_unit_test_teardown(float64_nhwc, fixture_teardown),
        cmocka_unit_test_teardown(a_matrix, fixture_teardown),
        cmocka_unit_test_teardown(float64_without_drift, fixture_teardown),
        cmocka_unit_test_teardown(many_near_constant_values, fixture_teardown),
    };
    return cmocka_run_group_tests_name("abi: accuracy", tests, NULL, NULL);
}
