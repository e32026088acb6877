#include "bench.h"

#include <stdlib.h>
#include <string.h>

enum { LANE = 16 };

static placement rotate(int *turn)
{
    return (placement)((*turn)++ % 3);
}

bench bench_make(bnk_grid grid, int variant)
{
    const bool is_double = grid.is_double;
    const int64_t count = grid.rows * grid.channels * grid.inner, channels = grid.channels;
    int turn = variant;
    bench b = {
        .grid = grid,
        .shape = reference_grid(&grid),
        .epsilon = 1e-5,
        .momentum = 0.1,
        .variance_scale = 1.25,
        .input = guarded_elements(count, is_double, rotate(&turn)),
        .output = guarded_elements(count, is_double, rotate(&turn)),
        .grad_output = guarded_elements(count, is_double, rotate(&turn)),
        .weight = guarded_elements(channels, is_double, rotate(&turn)),
        .bias = guarded_elements(channels, is_double, rotate(&turn)),
        .running_mean = guarded_elements(channels, is_double, rotate(&turn)),
        .running_var = guarded_elements(channels, is_double, rotate(&turn)),
        .old_running_mean = guarded_elements(channels, is_double, PLACE_START),
        .old_running_var = guarded_elements(channels, is_double, PLACE_START),
        .grad_input = guarded_elements(count, is_double, rotate(&turn)),
        .grad_weight = guarded_elements(channels, is_double, rotate(&turn)),
        .grad_bias = guarded_elements(channels, is_double, rotate(&turn)),
        .saved_mean = guarded_elements(channels, true, rotate(&turn)),
        .saved_invstd = guarded_elements(channels, true, rotate(&turn)),
        .batch = calloc((size_t)channels, sizeof(ref_statistics)),
        .running = calloc((size_t)channels, sizeof(ref_statistics)),
    };
    if (b.batch == NULL || b.running == NULL) abort();
    elements_fill_normal(b.input, 1, 0.5, 2);
    elements_fill_normal(b.grad_output, 2, 0.1, 1);
    elements_fill_normal(b.weight, 3, 1, 0.5);
    elements_fill_normal(b.bias, 4, 0, 1);
    elements_fill_normal(b.old_running_mean, 5, 0, 1);
    for (int64_t c = 0; c < channels; c++)
        elements_set(b.old_running_var, c, 0.25 + 0.125 * (double)(c % 20));
    bench_reset(&b);
    bench_refresh_reference(&b);
    return b;
}

void bench_refresh_reference(bench *b)
{
    for (int64_t c = 0; c < b->grid.channels; c++) {
        b->batch[c] = ref_of_batch(b->shape, b->input, c, b->epsilon);
        b->running[c] = ref_of_running(elements_get(b->old_running_mean, c),
                                       elements_get(b->old_running_var, c), b->epsilon);
    }
}

void bench_reset(bench *b)
{
    elements_copy(b->running_mean, b->old_running_mean);
    elements_copy(b->running_var, b->old_running_var);
    elements_fill_junk(b->output);
    elements_fill_junk(b->grad_input);
    elements_fill_junk(b->grad_weight);
    elements_fill_junk(b->grad_bias);
    elements_fill_junk(b->saved_mean);
    elements_fill_junk(b->saved_invstd);
    b->nonfinite_channels = -1;
}

void bench_free(bench *b)
{
    free(b->batch);
    free(b->running);
    guarded_free_all();
}

static void *workspace_of(int64_t bytes)
{
    if (bytes == 0) return NULL;
    /* Whole cache lines, so that an end at a page's end is aligned as bnk.h promises. */
    const size_t whole = ((size_t)bytes + 63) / 64 * 64;
    void *workspace = guarded(whole, 1, PLACE_END);
    memset(workspace, 0x5B, whole);
    return workspace;
}

static void free_workspace(void *workspace)
{
    if (workspace != NULL) guarded_free(workspace);
}

static int64_t values_that_count(const bench *b)
{
    const int64_t values = b->grid.rows * b->grid.inner;
    return b->positions.mask ? bnk_count_taking_part(b->positions.mask, values) : values;
}

static void forward_from(bench *b, const bnk_plan *plan, const void *input)
{
    const bnk_cut cut = bnk_cut_grid(b->grid, *plan);
    bnk_forward job = {
        .input = input,
        .output = b->output.data,
        .weight = b->weight.data,
        .bias = b->bias.data,
        .epsilon = b->epsilon,
        .running_mean = b->running_mean.data,
        .running_var = b->running_var.data,
        .momentum = b->momentum,
        .count = values_that_count(b),
        .epilogue = b->epilogue,
        .positions = b->positions,
        .variance_scale = b->variance_scale,
        .saved_mean = b->saved_mean.data,
        .saved_invstd = b->saved_invstd.data,
        .nonfinite_channels = -1,
        .workspace = workspace_of(bnk_forward_workspace(&cut)),
    };
    bnk_forward_training(&cut, &job);
    b->nonfinite_channels = job.nonfinite_channels;
    free_workspace(job.workspace);
}

void bench_forward(bench *b, const bnk_plan *plan)
{
    forward_from(b, plan, b->input.data);
}

void bench_forward_in_place(bench *b, const bnk_plan *plan)
{
    elements_copy(b->output, b->input);
    forward_from(b, plan, b->output.data);
}

void bench_inference(bench *b, const bnk_plan *plan)
{
    const bnk_cut cut = bnk_cut_grid(b->grid, *plan);
    const bnk_inference job = {
        .input = b->input.data,
        .output = b->output.data,
        .weight = b->weight.data,
        .bias = b->bias.data,
        .statistics = { .running_mean = b->running_mean.data,
                        .running_var = b->running_var.data,
                        .epsilon = b->epsilon },
        .epilogue = b->epilogue,
        .positions = b->positions,
    };
    bnk_forward_inference(&cut, &job);
}

void bench_backward(bench *b, const bnk_plan *plan, bool frozen, bool from_running, int gradients,
                    where_to to)
{
    const bnk_cut cut = bnk_cut_grid(b->grid, *plan);
    const void *input = b->input.data, *grad_output = b->grad_output.data;
    if (to == OVER_INPUT) {
        elements_copy(b->grad_input, b->input);
        input = b->grad_input.data;
    } else if (to == OVER_GRAD_OUTPUT) {
        elements_copy(b->grad_input, b->grad_output);
        grad_output = b->grad_input.data;
    }
    const bnk_backward job = {
        .input = input,
        .grad_output = grad_output,
        .grad_input = gradients & GRAD_INPUT ? b->grad_input.data : NULL,
        .grad_weight = gradients & GRAD_WEIGHT ? b->grad_weight.data : NULL,
        .grad_bias = gradients & GRAD_BIAS ? b->grad_bias.data : NULL,
        .weight = b->weight.data,
        .statistics = { .mean = from_running ? NULL : b->saved_mean.data,
                        .invstd = from_running ? NULL : b->saved_invstd.data,
                        .running_mean = from_running ? b->running_mean.data : NULL,
                        .running_var = from_running ? b->running_var.data : NULL,
                        .epsilon = b->epsilon },
        .frozen = frozen,
        .count = values_that_count(b),
        .epilogue = b->epilogue,
        .positions = b->positions,
        .workspace = workspace_of(bnk_backward_workspace(&cut)),
    };
    bnk_backward_run(&cut, &job);
    free_workspace(job.workspace);
}

int bench_grids(const bnk_grid **grids)
{
    static const int64_t classes[] = { 1, LANE - 1, LANE, LANE + 1, 2 * LANE + 3 };
    static const bnk_grid more[] = {
        { 1, 1, 5000, 0, 0 },            /* one channel, one row */
        { 3, 2, BNK_MAX_COLUMNS, 0, 0 }, /* the longest row by columns, and one more */
        { 3, 2, BNK_MAX_COLUMNS + 1, 0, 0 },
        { 7, BNK_MAX_COLUMNS, 1, 0, 0 },
        { 7, BNK_MAX_COLUMNS + 1, 1, 0, 0 },
        { 4, 30, 49, 0, 0 }, /* 7 x 7 images */
        { 301, 3, 1, 0, 0 }, /* many rows of few channels */
        { 2000, 1, 1, 0, 0 },
    };
    enum { CLASSES = 5, ALL = CLASSES * CLASSES * CLASSES + sizeof more / sizeof *more };
    static bnk_grid all[ALL];
    int count = 0;
    for (int n = 0; n < CLASSES; n++)
        for (int c = 0; c < CLASSES; c++)
            for (int s = 0; s < CLASSES; s++)
                all[count++] = (bnk_grid){ classes[n], classes[c], classes[s], 0, 0 };
    for (size_t i = 0; i < sizeof more / sizeof *more; i++) all[count++] = more[i];
    *grids = all;
    return count;
}

int bench_teardown(void **state)
{
    (void)state;
    guarded_free_all();
    return 0;
}
