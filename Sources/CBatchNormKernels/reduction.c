/* Runs an operation through its steps: see reduction.h. */
#include "reduction.h"

#include <string.h>

#include "coefficients.h"
#include "parallel.h"

static const bnk_cut *cut_of(const bnk_operation *o)
{
    return o->operands.cut;
}

/* ---- the steps ---- */

/* The results of neighbouring channels, from the `index`-th on. */
static void *results_at(const bnk_operation *o, const void *results, int64_t index)
{
    return (char *)results + index * o->reduction->size;
}

static void *partial_at(const bnk_operation *o, int64_t piece, int64_t channel)
{
    return results_at(o, o->partial, piece * cut_of(o)->grid.channels + channel);
}

static void clear(const bnk_operation *o, void *results, int64_t channels)
{
    memset(results, 0, (size_t)(channels * o->reduction->size));
}

/* As bnk_operands has it: from results in memory, or from the caller's. */
static bnk_extreme finish_extreme(const void *operation, int64_t channel, bnk_results results)
{
    const bnk_operation *o = operation;
    double own[BNK_RESULT_DOUBLES];
    const void *result = own;
    if (results.values)
        result = results_at(o, results.values, channel - results.first);
    else
        o->reduction->take(o, channel, 1, own);
    return o->reduction->finish_extreme(o, channel, result);
}

/* ---- whole runs ---- */

/* Finishes up to BNK_TOGETHER channels. */
static void finish(const bnk_operation *o, int64_t channel, int64_t channels, const void *results,
                   const bnk_linears *linears)
{
    const bnk_cut *cut = cut_of(o);
    if (bnk_takes_vectors(cut, channels)) {
        o->reduction->finish_by_vectors(o, channel, channels, results, linears);
        return;
    }
    for (int64_t i = 0; i < channels; i++) {
        const bnk_linears own = bnk_linears_from(linears, i, cut->grid.is_double);
        o->reduction->finish_one(o, channel + i, results_at(o, results, i), &own);
    }
}

/* Finishes a run's channels. */
static void finish_run(const bnk_operation *o, const bnk_piece *run, const void *results,
                       const bnk_linears *linears)
{
    for (int64_t i = 0; i < run->channels; i += BNK_TOGETHER) {
        const bnk_linears own = bnk_linears_from(linears, i, cut_of(o)->grid.is_double);
        finish(o, run->channel + i, bnk_min(BNK_TOGETHER, run->channels - i),
               results_at(o, results, i), &own);
    }
}

/* Reduces and merges a run's pieces. */
static void reduce_run(const bnk_operation *o, int64_t run, void *merged, bnk_application *other)
{
    const bnk_cut *cut = cut_of(o);
    const bnk_piece first = bnk_piece_at(cut, run, 0);
    double count = o->reduction->reduce(o, &first, merged, other);
    for (int64_t p = 1; p < cut->pieces; p++) {
        const bnk_piece piece = bnk_piece_at(cut, run, p);
        double own[BNK_RESULT_DOUBLES * BNK_MAX_COLUMNS];
        const double n = o->reduction->reduce(o, &piece, own, other);
        o->reduction->merge(merged, count, own, n, piece.channels);
        count += n;
    }
}

/* By rows, while one channel is applied past the caches, which leaves the core idle, the next is reduced.
 * (By columns a run's lines are too short for it to pay.) */
static bool overlaps(const bnk_cut *cut)
{
    return cut->plan.nontemporal && !cut->plan.by_columns;
}

static void take_whole_runs(void *context, int64_t begin, int64_t end)
{
    const bnk_operation *o = context;
    const bnk_cut *cut = cut_of(o);
    double memory[BNK_LINEARS * BNK_MAX_COLUMNS], merged[BNK_RESULT_DOUBLES * BNK_MAX_COLUMNS];
    const bnk_linears linears = bnk_linears_in(memory, BNK_MAX_COLUMNS, cut->grid.is_double);
    bnk_application application, *applying = NULL;
    for (int64_t run = begin; run < end; run++) {
        const bnk_piece whole = bnk_whole_run(cut, run);
        if (o->has_results)
            reduce_run(o, run, merged, applying);
        else
            clear(o, merged, whole.channels);
        if (applying) bnk_apply_rest(applying);
        applying = NULL;
        finish_run(o, &whole, merged, &linears);
        if (!o->applies) continue;
        const bnk_linear f = bnk_linears_get(&linears, cut->grid.is_double, 0);
        if (overlaps(cut) && !bnk_is_extreme(&f)) {
            applying = &application;
            bnk_apply_begin(applying, &o->operands, &whole, &f);
        } else {
            bnk_apply_piece(&o->operands, &whole, &linears, (bnk_results){ merged, whole.channel });
        }
    }
    if (applying) bnk_apply_rest(applying);
    bnk_finish_stores(cut);
}

/* ---- three phases ---- */

static void reduce_pieces(void *context, int64_t begin, int64_t end)
{
    const bnk_operation *o = context;
    const bnk_cut *cut = cut_of(o);
    for (int64_t task = begin; task < end; task++) {
        const int64_t index = task / cut->runs;
        const bnk_piece piece = bnk_piece_at(cut, task % cut->runs, index);
        const double count =
            o->reduction->reduce(o, &piece, partial_at(o, index, piece.channel), NULL);
        if (piece.channel == 0) o->counts[index] = count; /* that of every run */
    }
}

/* The second phase: a task takes BNK_TOGETHER channels. */
static int64_t channel_tasks(const bnk_cut *cut)
{
    return bnk_ceil_div(cut->grid.channels, BNK_TOGETHER);
}

typedef struct channel_task {
    int64_t first, channels;
} channel_task;

static channel_task channel_task_at(const bnk_cut *cut, int64_t task)
{
    const int64_t first = task * BNK_TOGETHER;
    return (channel_task){ first, bnk_min(BNK_TOGETHER, cut->grid.channels - first) };
}

/* Merges what reduce_pieces has written. */
static void merge_pieces(const bnk_operation *o, channel_task own, void *merged)
{
    const bnk_cut *cut = cut_of(o);
    if (!o->has_results) {
        clear(o, merged, own.channels);
        return;
    }
    double count = o->counts[0];
    memcpy(merged, partial_at(o, 0, own.first), (size_t)(own.channels * o->reduction->size));
    for (int64_t p = 1; p < cut->pieces; p++) {
        o->reduction->merge(merged, count, partial_at(o, p, own.first), o->counts[p], own.channels);
        count += o->counts[p];
    }
}

static void finish_channels(void *context, int64_t begin, int64_t end)
{
    const bnk_operation *o = context;
    for (int64_t task = begin; task < end; task++) {
        double merged[BNK_RESULT_DOUBLES * BNK_TOGETHER];
        const channel_task own = channel_task_at(cut_of(o), task);
        const bnk_linears linears =
            bnk_linears_from(&o->linears, own.first, cut_of(o)->grid.is_double);
        merge_pieces(o, own, merged);
        finish(o, own.first, own.channels, merged, &linears);
        /* For extreme channels; nobody reads the first piece's any more. */
        memcpy(partial_at(o, 0, own.first), merged, (size_t)(own.channels * o->reduction->size));
    }
}

static void apply_all(void *context, int64_t begin, int64_t end)
{
    const bnk_operation *o = context;
    bnk_apply_tasks_run(&o->operands, begin, end, &o->linears, (bnk_results){ o->partial, 0 });
}

/* ---- the parts of a split operation ---- */

static void give_channels(void *context, int64_t begin, int64_t end)
{
    const bnk_operation *o = context;
    for (int64_t task = begin; task < end; task++) {
        double merged[BNK_RESULT_DOUBLES * BNK_TOGETHER];
        const channel_task own = channel_task_at(cut_of(o), task);
        merge_pieces(o, own, merged);
        o->reduction->give(o, own.first, own.channels, merged);
    }
}

static void finish_taken(const bnk_operation *o, channel_task own, const bnk_linears *linears)
{
    double results[BNK_RESULT_DOUBLES * BNK_TOGETHER];
    o->reduction->take(o, own.first, own.channels, results);
    finish(o, own.first, own.channels, results, linears);
}

static void finish_taken_channels(void *context, int64_t begin, int64_t end)
{
    const bnk_operation *o = context;
    for (int64_t task = begin; task < end; task++) {
        const channel_task own = channel_task_at(cut_of(o), task);
        const bnk_linears linears =
            bnk_linears_from(&o->linears, own.first, cut_of(o)->grid.is_double);
        finish_taken(o, own, &linears);
    }
}

/* ---- entries ---- */

int64_t bnk_reduce_part_workspace(const bnk_reduction *reduction, const bnk_cut *cut)
{
    return cut->pieces * (cut->grid.channels * reduction->size + (int64_t)sizeof(double));
}

int64_t bnk_apply_part_workspace(const bnk_cut *cut)
{
    return bnk_linears_size(&cut->grid);
}

int64_t bnk_operation_workspace(const bnk_reduction *reduction, const bnk_cut *cut)
{
    if (cut->plan.whole_runs) return 0;
    return bnk_reduce_part_workspace(reduction, cut) + bnk_apply_part_workspace(cut);
}

static void place_results(bnk_operation *o, void *workspace)
{
    o->partial = workspace;
    o->counts = partial_at(o, cut_of(o)->pieces, 0);
}

static void place_linears(bnk_operation *o, void *workspace)
{
    const bnk_grid *grid = &cut_of(o)->grid;
    o->linears = bnk_linears_in(workspace, grid->channels, grid->is_double);
}

static void prepare_to_apply(bnk_operation *o)
{
    o->operands.extreme = finish_extreme;
    o->operands.operation = o;
    bnk_clear_last_bits(&o->operands);
}

static bnk_phase reduce_phase(const bnk_operation *o)
{
    const bnk_cut *cut = cut_of(o);
    return (bnk_phase){ reduce_pieces, o->has_results ? cut->runs * cut->pieces : 0 };
}

static bnk_phase apply_phase(const bnk_operation *o)
{
    return (bnk_phase){ apply_all, o->applies ? bnk_apply_tasks(cut_of(o)) : 0 };
}

/* One, or three in the workspace; returns how many. */
static int phases_of(const bnk_operation *o, bnk_phase *phases)
{
    const bnk_cut *cut = cut_of(o);
    if (cut->plan.whole_runs) {
        phases[0] = (bnk_phase){ take_whole_runs, cut->runs };
        return 1;
    }
    phases[0] = reduce_phase(o);
    phases[1] = (bnk_phase){ finish_channels, channel_tasks(cut) };
    phases[2] = apply_phase(o);
    return 3;
}

/* As bnk_operation_run goes through an operation that has results and applies them. */
bnk_schedule bnk_reduction_schedule(const bnk_cut *cut)
{
    const bnk_operation o = { .operands.cut = cut, .has_results = true, .applies = true };
    bnk_phase phases[3];
    const int count = phases_of(&o, phases);
    return (bnk_schedule){ count, bnk_most_tasks(phases, count), 0 };
}

void bnk_operation_run(bnk_operation *o, void *workspace)
{
    const bnk_cut *cut = cut_of(o);
    bnk_phase phases[3];
    const int count = phases_of(o, phases);
    prepare_to_apply(o);
    if (count > 1) {
        place_results(o, workspace);
        place_linears(o, o->counts + cut->pieces);
    }
    bnk_parallel(cut->plan.threads, phases, count, o);
}

void bnk_reduce_part_run(bnk_operation *o, void *workspace)
{
    const bnk_cut *cut = cut_of(o);
    place_results(o, workspace);
    const bnk_phase phases[] = { reduce_phase(o), { give_channels, channel_tasks(cut) } };
    bnk_parallel(cut->plan.threads, phases, 2, o);
}

void bnk_apply_part_run(bnk_operation *o, void *workspace)
{
    const bnk_cut *cut = cut_of(o);
    prepare_to_apply(o);
    place_linears(o, workspace);
    const bnk_phase phases[] = { { finish_taken_channels, channel_tasks(cut) }, apply_phase(o) };
    bnk_parallel(cut->plan.threads, phases, 2, o);
}

void bnk_apply_part_to_nothing(const bnk_operation *o)
{
    const bnk_cut *cut = cut_of(o);
    double memory[BNK_LINEARS * BNK_TOGETHER];
    const bnk_linears unused = bnk_linears_in(memory, BNK_TOGETHER, cut->grid.is_double);
    for (int64_t task = 0; task < channel_tasks(cut); task++)
        finish_taken(o, channel_task_at(cut, task), &unused);
}
