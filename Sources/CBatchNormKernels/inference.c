/* The forward with given statistics: each piece is applied, and nothing is reduced. */
#include "apply.h"
#include "normalization.h"
#include "parallel.h"
#include "statistics.h"

typedef struct inference {
    const bnk_inference *job;
    bnk_operands operands;
} inference;

static bnk_linear coefficients(const inference *t, int64_t channel)
{
    const bnk_grid *grid = &t->operands.cut->grid;
    const bnk_statistics *s = &t->job->statistics;
    return bnk_normalization(grid, channel, t->job->weight, t->job->bias,
                             bnk_mean_of(s, grid, channel), bnk_mean_rest_of(s, grid, channel),
                             bnk_invstd_of(s, grid, channel));
}

static bnk_extreme extreme_coefficients(const void *operation, int64_t channel, bnk_results results)
{
    (void)results; /* there are none */
    const inference *t = operation;
    const bnk_grid *grid = &t->operands.cut->grid;
    const bnk_statistics *s = &t->job->statistics;
    return bnk_extreme_normalization(
        grid, channel, t->job->weight, t->job->bias, bnk_mean_of(s, grid, channel),
        bnk_mean_rest_of(s, grid, channel), bnk_invstd_of(s, grid, channel));
}

static void apply_pieces(void *context, int64_t begin, int64_t end)
{
    const inference *t = context;
    const bnk_cut *cut = t->operands.cut;
    const int32_t is_double = cut->grid.is_double;
    double memory[BNK_LINEARS * BNK_MAX_COLUMNS];
    const bnk_linears linears = bnk_linears_in(memory, BNK_MAX_COLUMNS, is_double);
    for (int64_t task = begin; task < end; task++) {
        /* Run by run, so that the coefficients of each are formed once. */
        const int64_t index = task % cut->pieces;
        const bnk_piece piece = bnk_piece_at(cut, task / cut->pieces, index);
        for (int64_t i = 0; i < piece.channels && (index == 0 || task == begin); i++)
            bnk_linears_set(&linears, is_double, i, coefficients(t, piece.channel + i));
        bnk_apply_piece(&t->operands, &piece, &linears, (bnk_results){ NULL, 0 });
    }
    bnk_finish_stores(cut);
}

static bnk_phase phase_of(const bnk_cut *cut)
{
    return (bnk_phase){ apply_pieces, cut->runs * cut->pieces };
}

bnk_schedule bnk_inference_schedule(const bnk_cut *cut)
{
    return (bnk_schedule){ 1, phase_of(cut).tasks };
}

void bnk_forward_inference(const bnk_cut *cut, const bnk_inference *job)
{
    inference t = { .job = job,
                    .operands = { .cut = cut,
                                  .leaves = bnk_leaves_for(cut->plan.isa, &cut->grid),
                                  .x = job->input,
                                  .y = job->output,
                                  .epilogue = job->epilogue,
                                  .positions = job->positions,
                                  .extreme = extreme_coefficients } };
    t.operands.operation = &t;
    bnk_clear_last_bits(&t.operands);
    const bnk_phase phase = phase_of(cut);
    bnk_parallel(cut->plan.threads, &phase, 1, &t);
}
