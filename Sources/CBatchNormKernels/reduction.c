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
        o->reduction->take(o, channel, own);
    return o->reduction->finish_extreme(o, channel, result);
}

/* ---- whole runs ---- */

/* Reduces and merges a run's pieces. */
static void reduce_run(const bnk_operation *o, int64_t run, void *merged, bnk_application *other)
{
    const bnk_cut *cut = cut_of(o);
    double own[BNK_RESULT_DOUBLES * BNK_MAX_COLUMNS];
    double count = 0;
    for (int64_t p = 0; p < cut->pieces; p++) {
        const bnk_piece piece = bnk_piece_at(cut, run, p);
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
        clear(o, merged, whole.channels);
        if (o->has_results) reduce_run(o, run, merged, applying);
        if (applying) bnk_apply_rest(applying);
        applying = NULL;
        o->reduction->finish(o, whole.channel, whole.channels, merged, &linears);
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

/* Channels that a task of the second phase takes together. */
enum { MERGED = 64 };

static int64_t merge_tasks(const bnk_cut *cut)
{
    return bnk_ceil_div(cut->grid.channels, MERGED);
}

/* Merges what reduce_pieces has written; returns how many channels a task has. */
static int64_t merge_pieces(const bnk_operation *o, int64_t task, void *merged)
{
    const bnk_cut *cut = cut_of(o);
    const int64_t first = task * MERGED, channels = bnk_min(MERGED, cut->grid.channels - first);
    double count = 0;
    clear(o, merged, channels);
    for (int64_t p = 0; o->has_results && p < cut->pieces; p++) {
        o->reduction->merge(merged, count, partial_at(o, p, first), o->counts[p], channels);
        count += o->counts[p];
    }
    return channels;
}

static void finish_channels(void *context, int64_t begin, int64_t end)
{
    const bnk_operation *o = context;
    for (int64_t task = begin; task < end; task++) {
        double merged[BNK_RESULT_DOUBLES * MERGED];
        const int64_t first = task * MERGED, channels = merge_pieces(o, task, merged);
        const bnk_linears linears = bnk_linears_from(&o->linears, first, cut_of(o)->grid.is_double);
        o->reduction->finish(o, first, channels, merged, &linears);
        /* For extreme channels; nobody reads the first piece's any more. */
        memcpy(partial_at(o, 0, first), merged, (size_t)(channels * o->reduction->size));
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
        double merged[BNK_RESULT_DOUBLES * MERGED];
        const int64_t channels = merge_pieces(o, task, merged);
        for (int64_t i = 0; i < channels; i++)
            o->reduction->give(o, task * MERGED + i, results_at(o, merged, i));
    }
}

static void finish_taken(const bnk_operation *o, int64_t channel, const bnk_linears *linears)
{
    double result[BNK_RESULT_DOUBLES];
    o->reduction->take(o, channel, result);
    o->reduction->finish(o, channel, 1, result, linears);
}

static void finish_taken_channels(void *context, int64_t begin, int64_t end)
{
    const bnk_operation *o = context;
    for (int64_t c = begin; c < end; c++) {
        const bnk_linears own = bnk_linears_from(&o->linears, c, cut_of(o)->grid.is_double);
        finish_taken(o, c, &own);
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
    phases[1] = (bnk_phase){ finish_channels, merge_tasks(cut) };
    phases[2] = apply_phase(o);
    return 3;
}

/* As bnk_operation_run goes through an operation that has results and applies them. */
bnk_schedule bnk_reduction_schedule(const bnk_cut *cut)
{
    const bnk_operation o = { .operands.cut = cut, .has_results = true, .applies = true };
    bnk_phase phases[3];
    const int count = phases_of(&o, phases);
    return (bnk_schedule){ count, bnk_most_tasks(phases, count) };
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
    const bnk_phase phases[] = { reduce_phase(o), { give_channels, merge_tasks(cut) } };
    bnk_parallel(cut->plan.threads, phases, 2, o);
}

void bnk_apply_part_run(bnk_operation *o, void *workspace)
{
    const bnk_cut *cut = cut_of(o);
    prepare_to_apply(o);
    place_linears(o, workspace);
    const bnk_phase phases[] = { { finish_taken_channels, cut->grid.channels }, apply_phase(o) };
    bnk_parallel(cut->plan.threads, phases, 2, o);
}

void bnk_apply_part_to_nothing(const bnk_operation *o)
{
    const bnk_grid *grid = &cut_of(o)->grid;
    double memory[BNK_LINEARS];
    const bnk_linears unused = bnk_linears_in(memory, 1, grid->is_double);
    for (int64_t c = 0; c < grid->channels; c++) finish_taken(o, c, &unused);
}
