/* Picks the apply leaf for a piece and lays its coefficients out as the leaf wants them. */
#include "apply.h"

#include "columns.h"

/* ---- coefficients ---- */

/* Those of the columns of a line: the channels' own where a line has one column a channel. */
static bnk_linears columns_of(bnk_application *a, const bnk_linears *channels)
{
    const int32_t is_double = a->cut->grid->is_double;
    const int64_t inner = a->cut->grid->inner, count = a->channels;
    const int64_t fold = bnk_fold_of(a->cut->plan, a->rows);
    if (inner == 1 && fold == 1) return *channels;
    const bnk_linears columns = bnk_linears_in(a->memory, BNK_MAX_COLUMNS, is_double);
    bnk_expand(channels->scale, is_double, count, inner, fold, columns.scale);
    bnk_expand(channels->center, is_double, count, inner, fold, columns.center);
    bnk_expand(channels->slope, is_double, count, inner, fold, columns.slope);
    bnk_expand(channels->offset, is_double, count, inner, fold, columns.offset);
    if (a->dy) {
        bnk_expand(channels->factor, is_double, count, inner, fold, columns.factor);
        bnk_expand(channels->slope_rest, is_double, count, inner, fold, columns.slope_rest);
    }
    return columns;
}

void bnk_apply_begin(bnk_application *a, const bnk_cut *cut, const bnk_leaves *leaves,
                     const bnk_piece *piece, const bnk_linears *channels, const void *x,
                     const void *dy, void *y)
{
    a->cut = cut;
    a->leaves = leaves;
    a->x = (const char *)x + piece->start;
    a->dy = dy ? (const char *)dy + piece->start : NULL;
    a->y = (char *)y + piece->start;
    a->channels = piece->channels;
    a->rows = piece->rows;
    a->length = piece->length;
    a->row = a->offset = a->owed = 0;
    if (cut->plan->by_columns)
        a->columns = columns_of(a, channels);
    else
        a->linear = bnk_linears_get(channels, cut->grid->is_double, 0);
}

/* ---- steps ---- */

/* Some lines, or a part of one: `length` elements of each from `offset` on. */
static void apply_lines(const bnk_application *a, int64_t lines, int64_t stride, int64_t length)
{
    const bnk_cut *cut = a->cut;
    const int stream = cut->plan->stream;
    const int64_t at = (a->row * cut->stride + a->offset) * cut->element;
    const char *x = a->x + at, *dy = a->dy + (a->dy ? at : 0);
    char *y = a->y + at;
    if (!cut->plan->by_columns) {
        if (a->dy)
            a->leaves->row_grad_apply(x, dy, y, lines, stride, length, &a->linear, stream);
        else
            a->leaves->row_apply(x, y, lines, stride, length, &a->linear, stream);
        return;
    }
    const bnk_linears columns = bnk_linears_from(&a->columns, a->offset, cut->grid->is_double);
    const int64_t ahead = bnk_ahead(cut);
    if (a->dy)
        a->leaves->column_grad_apply(x, dy, y, lines, stride, length, ahead, &columns, stream);
    else
        a->leaves->column_apply(x, y, lines, stride, length, ahead, &columns, stream);
}

/* A step ends where a cache line of y does, so that each is written whole. */
static int64_t whole_lines(const bnk_application *a, int64_t length)
{
    const int64_t element = a->cut->element;
    const char *end = a->y + (a->row * a->cut->stride + a->offset + length) * element;
    return length - (int64_t)((uintptr_t)end % 64) / element;
}

void bnk_apply_some(bnk_application *a, int64_t elements)
{
    const bnk_cut *cut = a->cut;
    a->owed += elements;
    while (a->row < a->rows) {
        /* By columns, rows are taken in folds, and one by one where too few are left. */
        const int by_columns = cut->plan->by_columns;
        const int64_t left = a->rows - a->row;
        const int64_t fold = by_columns ? bnk_fold_of(cut->plan, left) : 1;
        const int64_t width = by_columns ? a->channels * cut->grid->inner * fold : a->length;
        if (a->offset == 0 && a->owed >= width) {
            const int64_t lines = bnk_min(a->owed / width, left / fold);
            apply_lines(a, lines, cut->stride * fold, width);
            a->row += lines * fold;
            a->owed -= lines * width;
            continue;
        }
        int64_t length = width - a->offset;
        if (length > a->owed) length = whole_lines(a, a->owed);
        if (length <= 0) return;
        apply_lines(a, 1, 0, length);
        a->owed -= length;
        a->offset += length;
        if (a->offset == width) {
            a->offset = 0;
            a->row += fold;
        }
    }
}

void bnk_apply_rest(bnk_application *a)
{
    bnk_apply_some(a, a->rows * a->cut->stride);
}

void bnk_finish_stores(const bnk_cut *cut)
{
#if defined(__x86_64__)
    if (cut->plan->stream) __builtin_ia32_sfence();
#else
    (void)cut;
#endif
}

/* ---- a whole grid ---- */

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

void bnk_apply_tasks_run(const bnk_cut *cut, const bnk_leaves *leaves, int64_t begin, int64_t end,
                         const bnk_linears *linears, const void *x, const void *dy, void *y)
{
    const int64_t tasks = bnk_apply_tasks(cut);
    for (int64_t task = begin; task < end; task++) {
        /* Last read, first applied: what the reduction saw last is still in cache. */
        const int64_t reversed = tasks - 1 - task;
        bnk_piece piece = bnk_piece_at(cut, reversed % cut->runs, reversed / cut->runs);
        if (takes_whole_rows(cut)) {
            piece.channel = 0;
            piece.channels = cut->grid->channels;
            piece.row = cut->grid->rows * reversed / tasks;
            piece.rows = cut->grid->rows * (reversed + 1) / tasks - piece.row;
            piece.start = piece.row * cut->stride * cut->element;
        }
        const bnk_linears own = bnk_linears_from(linears, piece.channel, cut->grid->is_double);
        bnk_application application;
        bnk_apply_begin(&application, cut, leaves, &piece, &own, x, dy, y);
        bnk_apply_rest(&application);
    }
    bnk_finish_stores(cut);
}
