/*
 * Channels are finished many at a time: each gets the bits that it gets alone, whatever its neighbours hold, with every
 * instruction set. Statistics and sums are given, of a tensor of one row.
 */
#include "check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "plans.h"

/* Two times as many as are finished together, and some. The first half is usual. */
enum { CHANNELS = 150, VALUES = 8 };

/* All that the operations read and write, channel by channel; so it is compared as memory. */
typedef struct memory {
    double mean[CHANNELS], mean_rest[CHANNELS], m2[CHANNELS]; /* moments */
    double dy[CHANNELS], dy_xmu[CHANNELS];                    /* gradient sums */
    double saved_mean[CHANNELS], saved_mean_rest[CHANNELS], saved_invstd[CHANNELS];
    int64_t skipped_means[CHANNELS], skipped_vars[CHANNELS];
    int64_t nonfinite, nonfinite_running;
    /* Of either type. */
    double input[CHANNELS], grad_output[CHANNELS], result[CHANNELS];
    double weight[CHANNELS], bias[CHANNELS];
    double running_mean[CHANNELS], running_var[CHANNELS];
    double grad_weight[CHANNELS], grad_bias[CHANNELS];
} memory;

typedef struct options {
    int32_t is_double, isa;
    int32_t has_parameters, is_frozen;
    double momentum, variance_scale, epsilon;
    int64_t batches;
} options;

static void *at(const options *o, const double *values, int64_t channel)
{
    return (char *)values + channel * (o->is_double ? 8 : 4);
}

static void set(const options *o, double *values, int64_t channel, double value)
{
    if (o->is_double)
        *(double *)at(o, values, channel) = value;
    else
        *(float *)at(o, values, channel) = (float)value;
}

static memory filled(const options *o)
{
    memory m;
    memset(&m, 0, sizeof m);
    for (int64_t c = 0; c < CHANNELS; c++) {
        const double step = (double)c / (double)CHANNELS;
        m.mean[c] = 0.5 - step;
        m.mean_rest[c] = 1e-18 * step;
        m.m2[c] = (double)VALUES * (0.1 + step);
        m.dy[c] = 0.3 - step;
        m.dy_xmu[c] = 0.2 + step;
        m.skipped_means[c] = c % 3;
        m.skipped_vars[c] = c % 2;
        set(o, m.input, c, 1.7 - step);
        set(o, m.grad_output, c, 0.7 + step);
        set(o, m.weight, c, 1.5 - step);
        set(o, m.bias, c, step);
        set(o, m.running_mean, c, 3 * step);
        set(o, m.running_var, c, 1 + step);
    }
    m.mean[80] = m.mean[140] = NAN;
    m.mean[81] = o->is_double ? 1e300 : 1e36;
    m.m2[82] = INFINITY;
    m.m2[83] = o->is_double ? 1e305 : 1e45; /* too large for running statistics */
    m.m2[84] = 0;
    m.dy[85] = m.dy_xmu[86] = NAN;
    m.dy_xmu[87] = 0;
    m.dy_xmu[88] = 1e-320;
    set(o, m.weight, 89, 0);
    set(o, m.weight, 90, o->is_double ? 1e-310 : 1e-41);
    set(o, m.weight, 91, NAN);
    set(o, m.weight, 92, o->is_double ? 1e308 : 1e38);
    set(o, m.bias, 93, INFINITY);
    set(o, m.running_mean, 94, NAN);
    set(o, m.running_var, 95, INFINITY);
    set(o, m.running_var, 96, 0);
    set(o, m.running_var, 97, -1);
    set(o, m.running_mean, 98, o->is_double ? 1e300 : 1e36);
    return m;
}

static void *workspace_of(int64_t bytes)
{
    void *workspace = bnk_allocate(bytes);
    if (workspace == NULL) abort();
    return workspace;
}

/* Training's second part, then backward's, through these statistics or the running ones; and inference over its results. */
static void run(const options *o, memory *m, int64_t first, int64_t channels)
{
    const bnk_grid grid = { 1, channels, 1, o->is_double, BNK_HALF_NONE };
    const bnk_cut cut = bnk_cut_grid(grid, (bnk_plan){ .by_columns = 1,
                                                       .rows_per_line = 1,
                                                       .run_channels = channels,
                                                       .piece_rows = 1,
                                                       .piece_values = 1,
                                                       .threads = 1,
                                                       .isa = o->isa });
    const void *weight = o->has_parameters ? at(o, m->weight, first) : NULL;
    const void *bias = o->has_parameters ? at(o, m->bias, first) : NULL;
    const size_t bytes = (size_t)channels * sizeof(int64_t);
    int64_t skipped[2 * CHANNELS];
    memcpy(skipped, m->skipped_means + first, bytes);
    memcpy(skipped + channels, m->skipped_vars + first, bytes);

    const bnk_moment_arrays moments = { VALUES, m->mean + first, m->mean_rest + first,
                                        m->m2 + first };
    bnk_forward forward = { .input = at(o, m->input, first),
                            .output = at(o, m->result, first),
                            .weight = weight,
                            .bias = bias,
                            .epsilon = o->epsilon,
                            .running_mean = at(o, m->running_mean, first),
                            .running_var = at(o, m->running_var, first),
                            .momentum = o->momentum,
                            .batches = o->batches,
                            .skipped = o->batches ? skipped : NULL,
                            .variance_scale = o->variance_scale,
                            .saved_mean = m->saved_mean + first,
                            .saved_mean_rest = m->saved_mean_rest + first,
                            .saved_invstd = m->saved_invstd + first,
                            .count = VALUES,
                            .workspace = workspace_of(bnk_normalize_workspace(&cut)) };
    bnk_normalize(&cut, &moments, &forward);
    memcpy(m->skipped_means + first, skipped, bytes);
    memcpy(m->skipped_vars + first, skipped + channels, bytes);
    m->nonfinite += forward.nonfinite_channels;
    m->nonfinite_running += forward.nonfinite_running_channels;
    bnk_free(forward.workspace);

    const bnk_statistics saved = { .mean = m->saved_mean + first,
                                   .mean_rest = m->saved_mean_rest + first,
                                   .invstd = m->saved_invstd + first };
    const bnk_statistics running = { .running_mean = at(o, m->running_mean, first),
                                     .running_var = at(o, m->running_var, first),
                                     .epsilon = o->epsilon };
    const bnk_gradient_sums sums = { VALUES, m->dy + first, m->dy_xmu + first };
    const bnk_backward backward = { .input = forward.output,
                                    .grad_output = at(o, m->grad_output, first),
                                    .grad_input = at(o, m->grad_output, first),
                                    .grad_weight = at(o, m->grad_weight, first),
                                    .grad_bias = at(o, m->grad_bias, first),
                                    .weight = weight,
                                    .statistics = o->is_frozen ? running : saved,
                                    .frozen = o->is_frozen,
                                    .count = VALUES,
                                    .workspace = workspace_of(bnk_backward_apply_workspace(&cut)) };
    bnk_backward_apply(&cut, &sums, &backward);
    bnk_free(backward.workspace);

    const bnk_inference inference = { .input = forward.output,
                                      .output = forward.output,
                                      .weight = weight,
                                      .bias = bias,
                                      .statistics = o->is_frozen ? running : saved };
    bnk_forward_inference(&cut, &inference);
}

static void check_alike(const options *o)
{
    memory together = filled(o), alone = together;
    run(o, &together, 0, CHANNELS);
    for (int64_t c = 0; c < CHANNELS; c++) run(o, &alone, c, 1);
    const unsigned char *a = (const void *)&together, *b = (const void *)&alone;
    size_t i = 0;
    while (i < sizeof together && a[i] == b[i]) i++;
    check(i == sizeof together,
          "isa %d, %s, parameters %d, frozen %d, momentum %g, batches %d, variance_scale %g: byte "
          "%zu "
          "of the memory is not as when each channel is alone",
          o->isa, o->is_double ? "float64" : "float32", o->has_parameters, o->is_frozen,
          o->momentum, (int)o->batches, o->variance_scale, i);
    /* The data has its rare cases; but where old values do not count. */
    const bool replaced = o->momentum == 1 && o->batches == 0 && o->variance_scale > 0;
    check(together.nonfinite > 0 && (together.nonfinite_running > 0) == !replaced,
          "momentum %g, variance_scale %g: %d and %d channels are not finite", o->momentum,
          o->variance_scale, (int)together.nonfinite, (int)together.nonfinite_running);
}

static void together_as_alone(void **state)
{
    (void)state;
    static const struct {
        double momentum;
        int64_t batches;
    } averages[] = { { 0.1, 0 }, { 1, 0 }, { 0, 5 } };
    for (int32_t isa = next_isa(-1); isa >= 0; isa = next_isa(isa))
        for (int32_t i = 0; i < 16; i++)
            for (size_t k = 0; k < LENGTH(averages); k++)
                check_alike(&(options){ .is_double = i & 1,
                                        .isa = isa,
                                        .has_parameters = i >> 1 & 1,
                                        .is_frozen = i >> 2 & 1,
                                        .momentum = averages[k].momentum,
                                        .batches = averages[k].batches,
                                        .variance_scale = i >> 3 & 1 ? 1.25 : 0,
                                        .epsilon = 1e-5 });
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(together_as_alone) };
    return cmocka_run_group_tests_name("kernels: finish", tests, NULL, NULL);
}
