/* Applies coefficients to a whole grid, cut into tasks as suits it. */
#include "apply.h"

int bnk_takes_whole_rows(const bnk_cut *cut)
{
    return cut->plan.by_columns && cut->grid.inner == 1 && cut->plan.rows_per_line == 1;
}

int64_t bnk_apply_tasks(const bnk_cut *cut)
{
    const int64_t tasks = cut->runs * cut->pieces;
    return bnk_takes_whole_rows(cut) ? bnk_min(tasks, cut->grid.rows) : tasks;
}

/* Rows longer than what can be taken at once with an epilogue or masked positions; of plain ones the coefficients alone
 * would fill L1. */
static void apply_long_rows(const bnk_operands *o, const bnk_piece *rows,
                            const bnk_linears *linears, bnk_results results)
{
    bnk_piece part = *rows;
    for (part.channel = 0; part.channel < rows->channels; part.channel += part.channels) {
        part.channels = bnk_min(BNK_MAX_COLUMNS, rows->channels - part.channel);
        const bnk_linears own = bnk_linears_from(linears, part.channel, o->cut->grid.is_double);
        bnk_apply_piece(o, &part, &own, results);
    }
}

void bnk_apply_tasks_run(const bnk_operands *o, int64_t begin, int64_t end,
                         const bnk_linears *linears, bnk_results results)
{
    const bnk_cut *cut = o->cut;
    const int64_t tasks = bnk_apply_tasks(cut);
    for (int64_t task = begin; task < end; task++) {
        /* Last read, first applied: what the reduction saw last is still in cache. */
        const int64_t reversed = tasks - 1 - task;
        bnk_piece piece = bnk_piece_at(cut, reversed % cut->runs, reversed / cut->runs);
        if (bnk_takes_whole_rows(cut)) {
            piece.channel = 0;
            piece.channels = cut->grid.channels;
            piece.row = cut->grid.rows * reversed / tasks;
            piece.rows = cut->grid.rows * (reversed + 1) / tasks - piece.row;
        }
        if (piece.channels > BNK_MAX_COLUMNS) {
            apply_long_rows(o, &piece, linears, results);
            continue;
        }
        const bnk_linears own = bnk_linears_from(linears, piece.channel, cut->grid.is_double);
        bnk_apply_piece(o, &piece, &own, results);
    }
    bnk_finish_stores(cut);
}
