/* Picks the apply leaf for a piece and lays its coefficients out as the leaf wants them. */
#include "apply.h"

#include "columns.h"

static void apply_rows(const bnk_cut *cut, const bnk_leaves *leaves, const bnk_piece *piece,
                       const bnk_linears *channels, const char *x, const char *dy, char *y)
{
    const bnk_linear f = bnk_linears_get(channels, cut->grid->is_double, 0);
    if (dy)
        leaves->row_grad_apply(x, dy, y, piece->rows, cut->stride, piece->length, &f,
                               cut->plan->stream);
    else
        leaves->row_apply(x, y, piece->rows, cut->stride, piece->length, &f, cut->plan->stream);
}

static void apply_columns(const bnk_cut *cut, const bnk_leaves *leaves, const bnk_piece *piece,
                          const bnk_linears *channels, const char *x, const char *dy, char *y)
{
    const int32_t is_double = cut->grid->is_double;
    const int64_t inner = cut->grid->inner, ahead = bnk_ahead(cut);
    const int64_t fold = bnk_fold_of(cut->plan, piece->rows);

    double memory[BNK_LINEARS * BNK_MAX_COLUMNS];
    bnk_linears columns = *channels;
    if (inner > 1 || fold > 1) {
        const int64_t c = piece->channels;
        columns = bnk_linears_in(memory, BNK_MAX_COLUMNS, is_double);
        bnk_expand(channels->scale, is_double, c, inner, fold, columns.scale);
        bnk_expand(channels->center, is_double, c, inner, fold, columns.center);
        bnk_expand(channels->slope, is_double, c, inner, fold, columns.slope);
        bnk_expand(channels->offset, is_double, c, inner, fold, columns.offset);
        if (dy) {
            bnk_expand(channels->factor, is_double, c, inner, fold, columns.factor);
            bnk_expand(channels->slope_rest, is_double, c, inner, fold, columns.slope_rest);
        }
    }

    int64_t row = 0;
    while (row < piece->rows) {
        const int64_t left = piece->rows - row;
        const int64_t folded = left >= fold ? fold : 1; /* the last rows are too few for a fold */
        const int64_t lines = left / folded;
        const int64_t width = piece->channels * inner * folded, stride = cut->stride * folded;
        const int64_t at = row * cut->stride * cut->element;
        if (dy)
            leaves->column_grad_apply(x + at, dy + at, y + at, lines, stride, width, ahead,
                                      &columns, cut->plan->stream);
        else
            leaves->column_apply(x + at, y + at, lines, stride, width, ahead, &columns,
                                 cut->plan->stream);
        row += lines * folded;
    }
}

void bnk_apply_piece(const bnk_cut *cut, const bnk_leaves *leaves, const bnk_piece *piece,
                     const bnk_linears *channels, const void *x, const void *dy, void *y)
{
    const char *from = (const char *)x + piece->start;
    const char *grad = dy ? (const char *)dy + piece->start : NULL;
    char *to = (char *)y + piece->start;
    if (cut->plan->by_columns)
        apply_columns(cut, leaves, piece, channels, from, grad, to);
    else
        apply_rows(cut, leaves, piece, channels, from, grad, to);
}

/* Whole rows, one behind the other in memory, rather than strips of them, where nothing has to be
 * expanded. */
static int takes_whole_rows(const bnk_cut *cut)
{
    return cut->plan->by_columns && cut->grid->inner == 1 && cut->plan->fold == 1;
}

int64_t bnk_apply_tasks(const bnk_cut *cut)
{
    const int64_t tasks = cut->runs * cut->pieces;
    return takes_whole_rows(cut) ? bnk_min(tasks, cut->grid->rows) : tasks;
}

void bnk_apply_task(const bnk_cut *cut, const bnk_leaves *leaves, int64_t task,
                    const bnk_linears *linears, const void *x, const void *dy, void *y)
{
    /* Last read, first applied: what the reduction saw last is still in cache. */
    const int64_t tasks = bnk_apply_tasks(cut), reversed = tasks - 1 - task;
    bnk_piece piece = bnk_piece_at(cut, reversed % cut->runs, reversed / cut->runs);
    if (takes_whole_rows(cut)) {
        const int64_t end = cut->grid->rows * (reversed + 1) / tasks;
        piece.channel = 0;
        piece.channels = cut->grid->channels;
        piece.row = cut->grid->rows * reversed / tasks;
        piece.rows = end - piece.row;
        piece.start = piece.row * cut->stride * cut->element;
    }
    const bnk_linears own = bnk_linears_from(linears, piece.channel, cut->grid->is_double);
    bnk_apply_piece(cut, leaves, &piece, &own, x, dy, y);
}
