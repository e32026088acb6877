/*
 * Tensors of bfloat16 and float16. What they mean is said by float: the same operation on the widened values,
 * each result rounded once. So every bit is known, in every cut, manner and instruction set, but for training's
 * own sums, which are close to float's and have the same bits in every manner; how good float is, the other
 * tests say.
 */
#include "check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "half.h"

typedef struct half_type {
    int32_t half; /* BNK_HALF_* */
    half_format format;
} half_type;

static half_type type_of(int32_t half)
{
    return (half_type){ half, half == BNK_HALF_BFLOAT16 ? half_bfloat16 : half_float16 };
}

/* ---- conversions ---- */

/* A plan for one row of `channels` single values; every instruction set's leaves in turn. */
static bnk_plan by_columns(int64_t channels, int32_t isa)
{
    const int64_t run = channels < BNK_MAX_COLUMNS ? channels : BNK_MAX_COLUMNS;
    return (bnk_plan){ .by_columns = 1,
                       .rows_per_line = 1,
                       .run_channels = run,
                       .piece_rows = 1,
                       .piece_values = 1,
                       .threads = 1,
                       .isa = isa };
}

/* The sum of one value is that value: grad_bias is grad_output widened. */
static void every_pattern_widens(void **state)
{
    (void)state;
    enum { ALL = 1 << 16 };
    uint16_t *patterns = guarded(ALL * sizeof *patterns, sizeof *patterns, PLACE_START);
    float *widened = guarded(ALL * sizeof *widened, sizeof *widened, PLACE_START);
    double *ones = guarded(ALL * sizeof *ones, sizeof *ones, PLACE_START);
    for (int i = 0; i < ALL; i++) {
        patterns[i] = (uint16_t)i;
        ones[i] = 1;
    }
    for (int32_t half = BNK_HALF_BFLOAT16; half <= BNK_HALF_FLOAT16; half++)
        for (int32_t isa = next_isa(-1); isa >= 0; isa = next_isa(isa))
            for (int rows = 0; rows < 2; rows++)
                /* An odd length, so that each pattern takes a vector's path here, a single value's there. */
                for (int skipped = 0; skipped < 16; skipped += 15) {
                    const int64_t channels = ALL - skipped;
                    const bnk_grid grid = { 1, channels, 1, 0, half };
                    bnk_plan plan = by_columns(channels, isa);
                    if (rows)
                        plan = (bnk_plan){ .rows_per_line = 1,
                                           .run_channels = 1,
                                           .piece_rows = 1,
                                           .piece_values = 1,
                                           .threads = 1,
                                           .isa = isa };
                    const bnk_cut cut = bnk_cut_grid(grid, plan);
                    const int64_t bytes = bnk_backward_workspace(&cut);
                    void *workspace = bnk_allocate(bytes);
                    memset(widened, 0x5B, ALL * sizeof *widened);
                    const bnk_backward job = { .input = patterns,
                                               .grad_output = patterns,
                                               .grad_bias = widened,
                                               .statistics = { .mean = ones, .invstd = ones },
                                               .frozen = 1,
                                               .count = 1,
                                               .workspace = workspace };
                    bnk_backward_run(&cut, &job);
                    bnk_free(workspace);
                    const half_type type = type_of(half);
                    for (int i = 0; i < channels; i++) {
                        const double expected = half_value(type.format, (uint16_t)i);
                        check(isnan(expected) ? isnan(widened[i]) : widened[i] == expected,
                              "isa %d: %s %04x became %.9g, not %.9g", isa, type.format.name, i,
                              widened[i], expected);
                    }
                }
}

/* With a slope of 0, the output is the bias narrowed. */
static void narrow_all(half_type type, int32_t isa, const float *values, uint16_t *narrowed,
                       int64_t count)
{
    const bnk_grid grid = { 1, count, 1, 0, type.half };
    const bnk_cut cut = bnk_cut_grid(grid, by_columns(count, isa));
    static float zeros[BNK_MAX_COLUMNS], ones[BNK_MAX_COLUMNS];
    static uint16_t input[BNK_MAX_COLUMNS];
    for (int64_t i = 0; i < count; i++) ones[i] = 1;
    const bnk_inference job = { .input = input,
                                .output = narrowed,
                                .weight = zeros,
                                .bias = values,
                                .statistics = { .running_mean = zeros, .running_var = ones } };
    bnk_forward_inference(&cut, &job);
}

static void check_narrowed(half_type type, int32_t isa, const float *values, int64_t count)
{
    uint16_t narrowed[BNK_MAX_COLUMNS];
    narrow_all(type, isa, values, narrowed, count);
    for (int64_t i = 0; i < count; i++) {
        const uint16_t expected = half_bits(type.format, half_round(type.format, values[i]));
        const bool right = isnan(values[i]) ? half_is_quiet_nan(type.format, narrowed[i])
                                            : narrowed[i] == expected ||
                                                  (values[i] == 0 && (narrowed[i] & 0x7fff) == 0);
        check(right, "isa %d: %a became %s %04x, not %04x", isa, (double)values[i],
              type.format.name, narrowed[i], expected);
    }
}

static float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* At every number of the format and half-way to the next, in between, and on both sides of each. */
static void every_neighbourhood_narrows(void **state)
{
    (void)state;
    for (int32_t half = BNK_HALF_BFLOAT16; half <= BNK_HALF_FLOAT16; half++) {
        const half_type type = type_of(half);
        for (int32_t isa = next_isa(-1); isa >= 0; isa = next_isa(isa)) {
            float values[BNK_MAX_COLUMNS - 1]; /* the last ones of a line are single */
            int count = 0;
            for (int i = 0; i < 1 << 16; i++) {
                const double here = half_value(type.format, (uint16_t)i);
                const double next = half_value(type.format, (uint16_t)(i + 1));
                if (!isfinite(here)) continue;
                /* Beyond the largest number, as if there were one more. */
                const double last = ldexp(1, type.format.largest_exponent + 1);
                const double beyond = isfinite(next) ? next : copysign(last, here);
                for (int quarter = 0; quarter < 4; quarter++) {
                    const float at = (float)(here + (beyond - here) / 4 * quarter);
                    values[count++] = at;
                    values[count++] = nextafterf(at, INFINITY);
                    values[count++] = nextafterf(at, -INFINITY);
                }
                if (count + 12 <= (int)LENGTH(values)) continue;
                check_narrowed(type, isa, values, count);
                count = 0;
            }
            if (count > 0) check_narrowed(type, isa, values, count);

            const float specials[] = { INFINITY,
                                       -INFINITY,
                                       float_of(0x7fc00000), /* NaNs as arithmetic makes them */
                                       float_of(0xffc00000),
                                       float_of(0x7fff0000),
                                       0x1p-149f,
                                       -0x1p-149f,
                                       0x1.fffffep127f,
                                       -0x1.fffffep127f,
                                       65519.996f,
                                       65520,
                                       0x1p-25f,
                                       0x1.000002p-25f,
                                       0x1p-134f,
                                       0x1.000002p-126f };
            check_narrowed(type, isa, specials, LENGTH(specials));
        }
    }
}

static uint32_t xorshift(uint32_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    return *state ^= *state << 5;
}

static void random_floats_narrow(void **state)
{
    (void)state;
    uint32_t random = 1;
    for (int round = 0; round < 400; round++) {
        float values[BNK_MAX_COLUMNS];
        for (int i = 0; i < BNK_MAX_COLUMNS; i++) values[i] = float_of(xorshift(&random));
        for (int32_t half = BNK_HALF_BFLOAT16; half <= BNK_HALF_FLOAT16; half++)
            for (int32_t isa = next_isa(-1); isa >= 0; isa = next_isa(isa))
                check_narrowed(type_of(half), isa, values, BNK_MAX_COLUMNS);
    }
}

/* ---- operations ---- */

/* Rounds `array`, of floats, to the type, and gives the same numbers stored in it. */
static uint16_t *stored(half_type type, elements array, placement where)
{
    uint16_t *bits = guarded((size_t)array.count * sizeof *bits, sizeof *bits, where);
    for (int64_t i = 0; i < array.count; i++) {
        const double value = half_round(type.format, elements_get(array, i));
        elements_set(array, i, value);
        bits[i] = half_bits(type.format, value);
    }
    return bits;
}

static void check_tensor(half_type type, const char *what, const char *plan, const uint16_t *got,
                         elements expected)
{
    for (int64_t i = 0; i < expected.count; i++) {
        const uint16_t bits =
            half_bits(type.format, half_round(type.format, elements_get(expected, i)));
        check(got[i] == bits, "%s, %s: %s[%lld] is %04x (%.9g), expected %04x (%.9g)",
              type.format.name, plan, what, (long long)i, got[i], half_value(type.format, got[i]),
              bits, half_value(type.format, bits));
    }
}

/* Statistics of halves are good to 18 bits, so that an output may be rounded the other way. */
static void check_near(half_type type, const char *what, const char *plan, const uint16_t *got,
                       elements expected)
{
    for (int64_t i = 0; i < expected.count; i++) {
        const double right = elements_get(expected, i), value = half_value(type.format, got[i]);
        const double step = fmax(fabs(right), 0x1p-6) * ldexp(1, -type.format.fraction);
        check(fabs(value - right) <= step, "%s, %s: %s[%lld] is %.9g, with float %.9g",
              type.format.name, plan, what, (long long)i, value, right);
    }
}

/* Relative to `scale`, if that is not NULL, or to the value. */
static void check_close(half_type type, const char *what, const char *plan, elements got,
                        elements expected, const elements *scale)
{
    for (int64_t i = 0; i < expected.count; i++) {
        const double right = elements_get(expected, i), value = elements_get(got, i);
        const double size = scale ? 1 / elements_get(*scale, i) : fabs(right);
        check(fabs(value - right) <= 0x1p-17 * size, "%s, %s: %s[%lld] is %.17g, with float %.17g",
              type.format.name, plan, what, (long long)i, value, right);
    }
}

static void check_same(half_type type, const char *what, const char *plan, elements got,
                       elements expected)
{
    const int64_t at = elements_first_difference(got, expected);
    check(at < 0, "%s, %s: %s[%lld] is %.17g, with float %.17g", type.format.name, plan, what,
          (long long)at, elements_get(got, at), elements_get(expected, at));
}

/* What float gave, to be compared with. */
typedef struct results {
    elements output, inferred, grad_input, frozen_grad_input;
    elements running_mean, running_var, saved_mean, saved_invstd, grad_weight, grad_bias;
} results;

static elements kept(elements from)
{
    return guarded_copy(from);
}

static results with_float(bench *b, const bnk_plan *plan)
{
    results r;
    bench_reset(b);
    bench_inference(b, plan);
    r.inferred = kept(b->output);
    bench_forward(b, plan);
    r.output = kept(b->output);
    r.running_mean = kept(b->running_mean);
    r.running_var = kept(b->running_var);
    r.saved_mean = kept(b->saved_mean);
    r.saved_invstd = kept(b->saved_invstd);
    bench_backward(b, plan, true, false, GRAD_ALL, OF_ITS_OWN);
    r.frozen_grad_input = kept(b->grad_input);
    bench_backward(b, plan, false, false, GRAD_ALL, OF_ITS_OWN);
    r.grad_input = kept(b->grad_input);
    r.grad_weight = kept(b->grad_weight);
    r.grad_bias = kept(b->grad_bias);
    return r;
}

static void free_results(results r)
{
    const elements all[] = { r.output,       r.inferred,    r.grad_input, r.frozen_grad_input,
                             r.running_mean, r.running_var, r.saved_mean, r.saved_invstd,
                             r.grad_weight,  r.grad_bias };
    for (size_t i = 0; i < LENGTH(all); i++) guarded_free(all[i].data);
}

/* What training gave in the first manner: the others give the same bits. */
typedef struct trained {
    uint16_t *output; /* NULL before */
    elements running_mean, running_var, saved_mean, saved_invstd;
} trained;

static void check_trained(half_type type, const char *plan, const bench *h, const uint16_t *output,
                          size_t bytes, trained *first)
{
    if (!first->output) {
        first->output = guarded(bytes, sizeof *output, PLACE_START);
        memcpy(first->output, output, bytes);
        first->running_mean = kept(h->running_mean);
        first->running_var = kept(h->running_var);
        first->saved_mean = kept(h->saved_mean);
        first->saved_invstd = kept(h->saved_invstd);
        return;
    }
    check(memcmp(output, first->output, bytes) == 0,
          "%s, %s: the output has other bits than before", type.format.name, plan);
    check_same(type, "running_mean", plan, h->running_mean, first->running_mean);
    check_same(type, "running_var", plan, h->running_var, first->running_var);
    check_same(type, "saved_mean", plan, h->saved_mean, first->saved_mean);
    check_same(type, "saved_invstd", plan, h->saved_invstd, first->saved_invstd);
}

static void free_trained(trained *first)
{
    if (!first->output) return;
    guarded_free(first->output);
    const elements all[] = { first->running_mean, first->running_var, first->saved_mean,
                             first->saved_invstd };
    for (size_t i = 0; i < LENGTH(all); i++) guarded_free(all[i].data);
    first->output = NULL;
}

/* `h` is `b` with tensors of the half type: to[] are room for outputs, over[] for working in place. */
static void check_manner(half_type type, const bench *b, const bnk_plan *plan, const results *r,
                         const uint16_t *x, const uint16_t *dy, uint16_t *to, bool in_place,
                         trained *first)
{
    const size_t bytes = (size_t)b->input.count * sizeof *to;
    bench h = *b;
    h.grid.half = type.half;
    char text[256];
    strcpy(text, plan_text(&h.grid, plan));
#define RESET()                                            \
    do {                                                   \
        elements_copy(h.running_mean, h.old_running_mean); \
        elements_copy(h.running_var, h.old_running_var);   \
        memset(to, 0x5B, bytes);                           \
        h.input.data = (void *)x;                          \
        h.grad_output.data = (void *)dy;                   \
        h.output.data = h.grad_input.data = to;            \
    } while (0)
#define IN_PLACE(array, from)                                   \
    do {                                                        \
        if (in_place) h.array.data = memcpy(to, (from), bytes); \
    } while (0)

    RESET();
    IN_PLACE(input, x);
    bench_inference(&h, plan);
    check_tensor(type, "inference's output", text, to, r->inferred);

    RESET();
    IN_PLACE(input, x);
    bench_forward(&h, plan);
    check_near(type, "output", text, to, r->output);
    check_close(type, "running_mean", text, h.running_mean, r->running_mean, &r->saved_invstd);
    check_close(type, "running_var", text, h.running_var, r->running_var, NULL);
    check_close(type, "saved_mean", text, h.saved_mean, r->saved_mean, &r->saved_invstd);
    check_close(type, "saved_invstd", text, h.saved_invstd, r->saved_invstd, NULL);
    check_trained(type, text, &h, to, bytes, first);
    check(h.nonfinite_channels == 0, "%s: %lld channels are not finite", text,
          (long long)h.nonfinite_channels);

    elements_copy(h.saved_mean, r->saved_mean);
    elements_copy(h.saved_invstd, r->saved_invstd);
    RESET();
    IN_PLACE(grad_output, dy);
    bench_backward(&h, plan, true, false, GRAD_ALL, OF_ITS_OWN);
    check_tensor(type, "frozen grad_input", text, to, r->frozen_grad_input);

    RESET();
    IN_PLACE(input, x);
    bench_backward(&h, plan, false, false, GRAD_ALL, OF_ITS_OWN);
    check_tensor(type, "grad_input", text, to, r->grad_input);
    check_same(type, "grad_weight", text, h.grad_weight, r->grad_weight);
    check_same(type, "grad_bias", text, h.grad_bias, r->grad_bias);
    check(guarded_intact(), "%s: something was written beside a buffer", text);
#undef RESET
#undef IN_PLACE
}

static void over_all_grids(int32_t half, double mean, double deviation)
{
    const half_type type = type_of(half);
    const bnk_grid *grids;
    const int count = bench_grids(&grids);
    for (int g = 0; g < count; g++) {
        bench b = bench_make(grids[g], g);
        elements_fill_normal(b.input, 1, mean, deviation);
        const uint16_t *x = stored(type, b.input, (placement)(g % 3));
        const uint16_t *dy = stored(type, b.grad_output, (placement)((g + 1) % 3));
        uint16_t *to =
            guarded((size_t)b.input.count * sizeof *to, sizeof *to, (placement)((g + 2) % 3));
        bnk_plan cuts[MAX_CUTS], manners[MAX_MANNERS];
        const int cut_count = cuts_of(&b.grid, cuts);
        for (int i = 0; i < cut_count; i++) {
            bnk_plan plan = cuts[i];
            plan.isa = best_isa();
            const results r = with_float(&b, &plan);
            trained first = { .output = NULL };
            /* Every fifth manner, from another one on each time: all meet all shapes of work. */
            const int manner_count = manners_of(cuts[i], false, manners);
            for (int m = (g + i) % 5; m < manner_count; m += 5)
                check_manner(type, &b, &manners[m], &r, x, dy, to, (m + g) % 2 == 1, &first);
            free_trained(&first);
            free_results(r);
        }
        bench_free(&b);
    }
}

static void bfloat16_as_float(void **state)
{
    (void)state;
    over_all_grids(BNK_HALF_BFLOAT16, 0.5, 2);
}

static void float16_as_float(void **state)
{
    (void)state;
    over_all_grids(BNK_HALF_FLOAT16, 0.5, 2);
}

/* So far from zero that sums take a pivot, which has to be read as what it is. */
static void float16_far_from_zero(void **state)
{
    (void)state;
    over_all_grids(BNK_HALF_FLOAT16, 2000, 1);
}

/* Rows that begin everywhere in a cache line, longer than one, past the caches. */
static void rows_at_every_place_of_a_line(void **state)
{
    (void)state;
    for (int32_t half = BNK_HALF_BFLOAT16; half <= BNK_HALF_FLOAT16; half++)
        for (int64_t inner = 513; inner <= 577; inner += 7) {
            const half_type type = type_of(half);
            bench b = bench_make((bnk_grid){ 9, 5, inner, 0, 0 }, (int)(inner % 3));
            const uint16_t *x = stored(type, b.input, PLACE_START);
            const uint16_t *dy = stored(type, b.grad_output, PLACE_SHIFTED);
            const size_t bytes = (size_t)(b.input.count + 32) * sizeof(uint16_t);
            uint16_t *room = guarded(bytes, sizeof *room, PLACE_START);
            bnk_plan cuts[MAX_CUTS];
            const int cut_count = cuts_of(&b.grid, cuts);
            for (int i = 0; i < cut_count; i++) {
                bnk_plan plan = cuts[i];
                plan.isa = best_isa();
                const results r = with_float(&b, &plan);
                plan.nontemporal = plan.whole_runs = 1;
                trained first = { .output = NULL };
                for (int shift = 0; shift < 32; shift += 5)
                    check_manner(type, &b, &plan, &r, x, dy, room + shift, shift % 2 == 1, &first);
                free_trained(&first);
                free_results(r);
            }
            bench_free(&b);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(every_pattern_widens, bench_teardown),
        cmocka_unit_test_teardown(every_neighbourhood_narrows, bench_teardown),
        cmocka_unit_test_teardown(random_floats_narrow, bench_teardown),
        cmocka_unit_test_teardown(bfloat16_as_float, bench_teardown),
        cmocka_unit_test_teardown(float16_as_float, bench_teardown),
        cmocka_unit_test_teardown(float16_far_from_zero, bench_teardown),
        cmocka_unit_test_teardown(rows_at_every_place_of_a_line, bench_teardown),
    };
    return cmocka_run_group_tests_name("kernels: halves", tests, NULL, NULL);
}
