/*
 * Each channel by itself: its results have the same bits whatever its neighbours hold, and are right whatever it holds
 * itself. Sums are formed of many channels at once and in more than one way, and which way does is decided by what the
 * values are: dead, constant, tiny, far from where they begin.
 */
#include "check.h"

#include <math.h>

#include "fixture.h"

/* In every way of cutting a tensor: by rows, by columns with several rows a line, with many inner values, in runs. */
static const struct {
    bn_layout layout;
    int rank;
    int64_t sizes[4];
} shapes[] = {
    { BN_LAYOUT_NCHW, 4, { 18, 6, 28, 28 } }, { BN_LAYOUT_NCHW, 4, { 1, 5, 70, 70 } },
    { BN_LAYOUT_NCHW, 4, { 300, 6, 7, 7 } },  { BN_LAYOUT_NHWC, 4, { 18, 6, 28, 28 } },
    { BN_LAYOUT_NHWC, 4, { 8, 600, 6, 7 } },  { BN_LAYOUT_NCHW, 2, { 700, 50 } },
};

/* What every other channel is made of. */
typedef enum contents {
    ORDINARY,
    DEAD,         /* no gradient comes back */
    CONSTANT,     /* of input */
    TINY,         /* input and gradient: squares and products vanish in float32 */
    TINY_IN_TURN, /* the same, and sums are 0 */
    ELSEWHERE,    /* the first values are far from the others */
    HUGE,         /* sums overflow float32 */
    HUGE_DEAD,    /* no gradient comes back, and differences are infinite in float32 */
    NOT_A_NUMBER,
    CONTENTS
} contents;

static const char *const names[CONTENTS] = { "ordinary", "dead",          "constant",
                                             "tiny",     "tiny in turn",  "elsewhere",
                                             "huge",     "huge and dead", "not a number" };

static double input_of(contents of, int64_t i, int64_t count, double ordinary)
{
    switch (of) {
    case CONSTANT:
        return 3.7;
    case TINY:
        return ordinary * 1e-25;
    case TINY_IN_TURN:
        return i % 2 ? 1e-25 : -1e-25;
    case ELSEWHERE:
        return ordinary + (i < count / 20 ? 1e4 : 0);
    case HUGE:
        return ordinary * 5e37;
    case HUGE_DEAD:
        return i % 50 ? 3e38 : -3e38;
    case NOT_A_NUMBER:
        return i == count / 3 ? NAN : ordinary;
    default:
        return ordinary;
    }
}

static double gradient_of(contents of, int64_t i, double ordinary)
{
    switch (of) {
    case DEAD:
    case HUGE_DEAD:
        return i % 2 ? 0.0 : -0.0;
    case TINY:
        return ordinary * 1e-25;
    case TINY_IN_TURN:
        return i % 4 < 2 ? 1e-25 : -1e-25;
    default:
        return ordinary;
    }
}

static void fill(const fixture *f, contents of)
{
    const int64_t count = f->grid.rows * f->grid.inner;
    elements_fill_normal(f->input, 5, 0.3, 1);
    elements_fill_normal(f->grad_output, 6, 0.1, 1);
    for (int64_t c = 1; c < f->grid.channels; c += 2) {
        for (int64_t i = 0; i < count; i++) {
            const int64_t at = ref_index(f->grid, c, i);
            elements_set(f->input, at, input_of(of, i, count, elements_get(f->input, at)));
            elements_set(f->grad_output, at, gradient_of(of, i, elements_get(f->grad_output, at)));
        }
    }
}

/* Puts zeros where the odd channels are. */
static void forget_odd_channels(const fixture *f, elements tensor)
{
    for (int64_t i = 0; i < tensor.count; i++) {
        const int64_t c =
            tensor.count == f->grid.channels ? i : i / f->grid.inner % f->grid.channels;
        if (c % 2) elements_set(tensor, i, 0);
    }
}

enum { RESULTS = 6 };
typedef struct results {
    elements all[RESULTS];
} results;

static results of_even_channels(const fixture *f)
{
    const elements from[RESULTS] = { f->output,     f->saved_mean,  f->saved_invstd,
                                     f->grad_input, f->grad_weight, f->grad_bias };
    results r;
    for (int i = 0; i < RESULTS; i++) {
        r.all[i] = guarded_copy(from[i]);
        forget_odd_channels(f, r.all[i]);
    }
    return r;
}

static void run(fixture *f, contents of, bool relu)
{
    fill(f, of);
    fixture_use(f, (extras){ .activation = relu ? BN_ACTIVATION_RELU : BN_ACTIVATION_NONE });
    f->training.epsilon = 0;
    f->training.nonfinite = BN_NONFINITE_REPORT;
    run_training(f);
    run_backward(f);
}

static void check_right(const fixture *f, contents of, const char *where)
{
    const ref_statistics *statistics = batch_statistics(f, 0);
    const double y =
        ref_forward_error(f->grid, statistics, f->input, f->weight, f->bias, f->output);
    const ref_gradient_errors d =
        ref_backward_error(f->grid, statistics, false, f->input, f->grad_output, f->weight,
                           (ref_gradients){ f->grad_input, f->grad_weight, f->grad_bias });
    check(y <= 1 && d.input <= 1 && d.weight <= 1 && d.bias <= 1,
          "%s, %s: of what is allowed output is off by %.3g, grad_input %.3g, grad_weight %.3g, "
          "grad_bias %.3g",
          where, names[of], y, d.input, d.weight, d.bias);
}

static void check_shape(bn_problem problem, bool relu)
{
    fixture f = fixture_make(problem, PLACE_END);
    fixture_add_extras(&f);
    run(&f, ORDINARY, relu);
    const results alone = of_even_channels(&f);
    for (contents of = ORDINARY; of < CONTENTS; of++) {
        run(&f, of, relu);
        const char *where = problem_text(&f.problem);
        /* Nothing normalizes a constant without an epsilon. */
        if (!relu && of != NOT_A_NUMBER && of != CONSTANT) check_right(&f, of, where);
        const bool dead = of == DEAD || of == HUGE_DEAD;
        for (int64_t c = 1; dead && c < f.grid.channels; c += 2)
            check(elements_get(f.grad_weight, c) == 0 && elements_get(f.grad_bias, c) == 0,
                  "%s: gradients %g and %g of a dead channel", where,
                  elements_get(f.grad_weight, c), elements_get(f.grad_bias, c));
        const results beside = of_even_channels(&f);
        for (int i = 0; i < RESULTS; i++) check_bits(&f, names[of], beside.all[i], alone.all[i]);
    }
    guarded_free_all();
}

static void neighbours_do_not_matter(void **state)
{
    const bool relu = *(const bool *)*state;
    for (size_t i = 0; i < LENGTH(shapes); i++)
        for (int dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT64; dtype++)
            check_shape(problem_of(dtype, shapes[i].layout, shapes[i].rank, shapes[i].sizes), relu);
}

int main(void)
{
    static bool plain = false, relu = true;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate_setup_teardown(neighbours_do_not_matter, NULL, fixture_teardown,
                                                 &plain),
        cmocka_unit_test_prestate_setup_teardown(neighbours_do_not_matter, NULL, fixture_teardown,
                                                 &relu),
    };
    return cmocka_run_group_tests_name("abi: channels", tests, NULL, NULL);
}
