/* Picks the apply leaf for a piece and lays its coefficients out as the leaf wants them. */
#include "apply.h"

#include "columns.h"

static void apply_rows(const bnk_cut *cut, const bnk_leaves *leaves, int64_t rows, int64_t length,
                       const bnk_linear *f, const char *x, const char *dy, char *y)
{
    if (dy)
        leaves->row_grad_apply(x, dy, y, rows, cut->stride, length, f, cut->plan->stream);
    else
        leaves->row_apply(x, y, rows, cut->stride, length, f, cut->plan->stream);
}

static void apply_columns(const bnk_cut *cut, const bnk_leaves *leaves, const bnk_piece *piece,
                          const bnk_linears *channels, const char *x, const char *dy, char *y)
{
    const int32_t is_double = cut->grid->is_double;
    const int64_t inner = cut->grid->inner;
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
            leaves->column_grad_apply(x + at, dy + at, y + at, lines, stride, width, &columns,
                                      cut->plan->stream);
        else
            leaves->column_apply(x + at, y + at, lines, stride, width, &columns, cut->plan->stream);
        row += lines * folded;
    }
}

void bnk_apply_piece(const bnk_cut *cut, const bnk_leaves *leaves, const bnk_piece *piece,
                     const bnk_linears *channels, const void *x, const void *dy, void *y)
{
    const char *from = (const char *)x + piece->start;
    const char *grad = dy ? (const char *)dy + piece->start : NULL;
    char *to = (char *)y + piece->start;
    if (cut->plan->by_columns) {
        apply_columns(cut, leaves, piece, channels, from, grad, to);
    } else {
        const bnk_linear f = bnk_linears_get(channels, cut->grid->is_double, 0);
        apply_rows(cut, leaves, piece->rows, piece->length, &f, from, grad, to);
    }
}

/* ---- in steps ---- */

void bnk_apply_begin(bnk_application *a, const bnk_cut *cut, const bnk_leaves *leaves,
                     const bnk_piece *piece, const bnk_linear *f, const void *x, const void *dy,
                     void *y)
{
    a->cut = cut;
    a->leaves = leaves;
    a->x = (const char *)x + piece->start;
    a->dy = dy ? (const char *)dy + piece->start : NULL;
    a->y = (char *)y + piece->start;
    a->f = *f;
    a->rows = piece->rows;
    a->length = piece->length;
    a->row = a->offset = a->owed = 0;
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
    a->owed += elements;
    while (a->row < a->rows) {
        int64_t rows = 1, length = a->length - a->offset;
        if (a->offset == 0 && a->owed >= length)
            rows = bnk_min(a->owed / length, a->rows - a->row);
        else if (length > a->owed)
            length = whole_lines(a, a->owed);
        if (length <= 0) return;
        const int64_t at = (a->row * a->cut->stride + a->offset) * a->cut->element;
        apply_rows(a->cut, a->leaves, rows, length, &a->f, a->x + at, a->dy ? a->dy + at : NULL,
                   a->y + at);
        a->owed -= rows * length;
        a->offset += length;
        if (a->offset == a->length) {
            a->offset = 0;
            a->row += rows;
        }
    }
}

void bnk_apply_rest(bnk_application *a)
{
    bnk_apply_some(a, a->rows * a->length);
}

/* ---- the end of a task ---- */

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
        bnk_apply_piece(cut, leaves, &piece, &own, x, dy, y);
    }
    bnk_finish_stores(cut);
}
