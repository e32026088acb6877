/* The forward with given statistics: each piece is applied, and nothing is reduced. */
#include "apply.h"
#include "normalization.h"
#include "parallel.h"
#include "statistics.h"

typedef struct inference {
    const bnk_inference *job;
    bnk_operands operands;
} inference;

/* Writes the coefficients of at most BNK_TOGETHER channels. */
BNK_FORM void finish_some(const inference *t, int64_t channel, int64_t channels,
                          const bnk_linears *linears)
{
    const bnk_grid *grid = &t->operands.cut->grid;
    const bnk_statistics *s = &t->job->statistics;
    double mean[BNK_TOGETHER], invstd[BNK_TOGETHER];
    bnk_ingredients of;
    of.channels = channels;
    of.mean = bnk_means_of(s, grid, channel, channels, mean);
    of.mean_rest = bnk_mean_rests_of(s, grid, channel);
    of.invstd = bnk_invstds_of(s, grid, channel, channels, invstd);
    bnk_normalization(grid, channel, t->job->weight, t->job->bias, &of, linears);
}

static BNK_BY_VECTORS void finish_by_vectors(const inference *t, int64_t channel, int64_t channels,
                                             const bnk_linears *linears)
{
    finish_some(t, channel, channels, linears);
}

static void finish_channels(const inference *t, int64_t channel, int64_t channels,
                            const bnk_linears *linears)
{
    const bnk_cut *cut = t->operands.cut;
    const bool by_vectors = bnk_takes_vectors(cut, channels);
    for (int64_t i = 0, count; i < channels; i += count) {
        const bnk_linears own = bnk_linears_from(linears, i, cut->grid.is_double);
        count = by_vectors ? bnk_min(BNK_TOGETHER, channels - i) : 1;
        if (by_vectors)
            finish_by_vectors(t, channel + i, count, &own);
        else
            finish_some(t, channel + i, 1, &own);
    }
}

static bnk_extreme finish_extreme(const void *operation, int64_t channel, bnk_results results)
{
    (void)results; /* there are none */
    const inference *t = operation;
    const bnk_grid *grid = &t->operands.cut->grid;
    const bnk_statistics *s = &t->job->statistics;
    double mean, invstd;
    return bnk_extreme_normalization(
        grid, channel, t->job->weight, t->job->bias, *bnk_means_of(s, grid, channel, 1, &mean),
        *bnk_mean_rests_of(s, grid, channel), *bnk_invstds_of(s, grid, channel, 1, &invstd));
}

static void apply_pieces(void *context, int64_t begin, int64_t end)
{
    const inference *t = context;
    const bnk_cut *cut = t->operands.cut;
    double memory[BNK_LINEARS * BNK_MAX_COLUMNS];
    const bnk_linears linears = bnk_linears_in(memory, BNK_MAX_COLUMNS, cut->grid.is_double);
    for (int64_t task = begin; task < end; task++) {
        /* Run by run, so that the coefficients of each are formed once. */
        const int64_t index = task % cut->pieces;
        const bnk_piece piece = bnk_piece_at(cut, task / cut->pieces, index);
        if (index == 0 || task == begin)
            finish_channels(t, piece.channel, piece.channels, &linears);
        bnk_apply_piece(&t->operands, &piece, &linears, (bnk_results){ NULL, 0 });
    }
    bnk_finish_stores(cut);
}

/* The coefficients of so many channels fit on a stack. */
enum { BNK_FITTING_CHANNELS = 2 * BNK_MAX_COLUMNS };

/* Rows one behind the other in memory, each thread with the coefficients of all channels. */
static void apply_rows(void *context, int64_t begin, int64_t end)
{
    const inference *t = context;
    const bnk_grid *grid = &t->operands.cut->grid;
    double memory[BNK_LINEARS * BNK_FITTING_CHANNELS];
    const bnk_linears linears = bnk_linears_in(memory, BNK_FITTING_CHANNELS, grid->is_double);
    finish_channels(t, 0, grid->channels, &linears);
    bnk_apply_tasks_run(&t->operands, begin, end, &linears, (bnk_results){ NULL, 0 });
}

/* Where rows are longer than a run, and enough to make up for that each thread forms the coefficients. */
static bool takes_rows(const bnk_cut *cut)
{
    return bnk_takes_whole_rows(cut) && cut->runs > 1 &&
           cut->grid.channels <= BNK_FITTING_CHANNELS && cut->grid.rows >= 16 * cut->plan.threads;
}

static bnk_phase phase_of(const bnk_cut *cut)
{
    return takes_rows(cut) ? (bnk_phase){ apply_rows, bnk_apply_tasks(cut) }
                           : (bnk_phase){ apply_pieces, cut->runs * cut->pieces };
}

bnk_schedule bnk_inference_schedule(const bnk_cut *cut)
{
    return (bnk_schedule){ 1, phase_of(cut).tasks, takes_rows(cut) };
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
                                  .extreme = finish_extreme } };
    t.operands.operation = &t;
    bnk_clear_last_bits(&t.operands);
    const bnk_phase phase = phase_of(cut);
    bnk_parallel(cut->plan.threads, &phase, 1, &t);
}
