/* Picks the apply leaf for a piece and lays its coefficients out as the leaf wants them. */
#include "apply.h"

#include <stdbool.h>

#include "columns.h"

/* By the plain leaves; frozen, they take dy for x. */
static void plain_rows(const bnk_operands *o, int64_t at, int64_t rows, int64_t length,
                       const bnk_linear *f)
{
    const int64_t stride = o->cut->stride, start = at * o->cut->element;
    const int32_t stream = o->cut->plan.nontemporal;
    if (o->dy && !o->frozen)
        o->leaves->row_grad_apply(o->x + start, o->dy + start, o->y + start, rows, stride, length,
                                  f, stream);
    else
        o->leaves->row_apply((o->frozen ? o->dy : o->x) + start, o->y + start, rows, stride, length,
                             f, stream);
}

static void plain_columns(const bnk_operands *o, int64_t at, int64_t lines, int64_t stride,
                          int64_t width, const bnk_linears *columns)
{
    const int64_t start = at * o->cut->element;
    const int32_t stream = o->cut->plan.nontemporal;
    if (o->dy && !o->frozen)
        o->leaves->column_grad_apply(o->x + start, o->dy + start, o->y + start, lines, stride,
                                     width, columns, stream);
    else
        o->leaves->column_apply((o->frozen ? o->dy : o->x) + start, o->y + start, lines, stride,
                                width, columns, stream);
}

/* Inner values [offset, offset + length) of some rows of one channel. */
static void apply_rows(const bnk_operands *o, int64_t channel, int64_t row, int64_t rows,
                       int64_t offset, int64_t length, const bnk_linear *f)
{
    const int64_t stride = o->cut->stride, end = row + rows;
    const int64_t first = channel * o->cut->grid.inner + offset;
    if (!o->extras) {
        plain_rows(o, row * stride + first, rows, length, f);
        return;
    }
    const int plain = bnk_applies_plainly(o) && o->y;
    for (int64_t begin = row; row < end; begin = ++row) {
        /* Whole rows up to the next one that has something special. */
        const uint8_t *keep = NULL;
        while (row < end && !(keep = bnk_keep_row(o, row, offset, length)) && plain) row++;
        if (row > begin) plain_rows(o, begin * stride + first, row - begin, length, f);
        if (row == end) break;
        const int64_t prefix = plain && keep ? bnk_kept_prefix(keep, length) : 0;
        const int64_t straight = prefix > 0 ? prefix : 0;
        if (straight > 0) plain_rows(o, row * stride + first, 1, straight, f);
        bnk_fused_row(o, row * stride + first + straight, length - straight,
                      keep ? keep + straight : NULL, f);
    }
}

/* Only whole rows fold, not those of channels beside an extreme one. */
static int64_t fold_of(const bnk_cut *cut, const bnk_piece *piece, int64_t rows_left)
{
    return piece->channels == cut->grid.channels ? bnk_fold_of(&cut->plan, rows_left) : 1;
}

static void apply_columns(const bnk_operands *o, const bnk_piece *piece,
                          const bnk_linears *channels)
{
    const bnk_cut *cut = o->cut;
    const int32_t is_double = cut->grid.is_double;
    const int64_t inner = cut->grid.inner;
    const int64_t fold = fold_of(cut, piece, piece->rows);

    double memory[BNK_LINEARS * BNK_MAX_COLUMNS];
    bnk_linears columns = *channels;
    if (inner > 1 || fold > 1) {
        const int64_t c = piece->channels;
        columns = bnk_linears_in(memory, BNK_MAX_COLUMNS, is_double);
        bnk_expand(channels->scale, is_double, c, inner, fold, columns.scale);
        bnk_expand(channels->center, is_double, c, inner, fold, columns.center);
        bnk_expand(channels->slope, is_double, c, inner, fold, columns.slope);
        bnk_expand(channels->offset, is_double, c, inner, fold, columns.offset);
        if (o->dy) {
            bnk_expand(channels->factor, is_double, c, inner, fold, columns.factor);
            bnk_expand(channels->slope_rest, is_double, c, inner, fold, columns.slope_rest);
        }
    }

    const int plain = bnk_applies_plainly(o);
    const int64_t first = piece->channel * inner, end = piece->row + piece->rows;
    int64_t row = piece->row;
    while (row < end) {
        const int64_t folded = fold_of(cut, piece, end - row); /* the last rows may be too few */
        const int64_t lines = (end - row) / folded;
        const int64_t width = piece->channels * inner * folded, stride = cut->stride * folded;
        int64_t line = 0;
        if (!o->extras) {
            plain_columns(o, row * cut->stride + first, lines, stride, width, &columns);
            line = lines;
        }
        for (int64_t begin = line; line < lines; begin = ++line) {
            uint8_t keeps[BNK_MAX_COLUMNS];
            const uint8_t *keep = NULL;
            while (
                line < lines &&
                !(keep = bnk_keep_line(o, row + line * folded, folded, piece->channels, keeps)) &&
                plain)
                line++;
            const int64_t at = row * cut->stride + first;
            if (line > begin)
                plain_columns(o, at + begin * stride, line - begin, stride, width, &columns);
            if (line < lines) bnk_fused_line(o, at + line * stride, width, keep, &columns);
        }
        row += lines * folded;
    }
}

/* How many of `count` channels, from the first on, are all extreme or all not. */
static int64_t alike(const void *scales, int32_t is_double, int64_t count)
{
    const bool extreme = bnk_get(scales, is_double, 0, 0) == 0;
    int64_t i = 1;
    while (i < count && (bnk_get(scales, is_double, i, 0) == 0) == extreme) i++;
    return i;
}

static bool has_extremes(const void *scales, int32_t is_double, int64_t count)
{
    int any = 0; /* without a branch, so that many are looked at together */
    if (is_double)
        for (int64_t i = 0; i < count; i++) any |= ((const double *)scales)[i] == 0;
    else
        for (int64_t i = 0; i < count; i++) any |= ((const float *)scales)[i] == 0;
    return any;
}

static void apply_extremes(const bnk_operands *o, const bnk_piece *piece, bnk_statistics statistics)
{
    for (int64_t c = piece->channel; c < piece->channel + piece->channels; c++) {
        const bnk_extreme e = o->extreme(o->operation, c, statistics);
        bnk_apply_extreme(o, piece, c, &e);
    }
}

/* By columns: an extreme channel breaks the line. */
static void apply_broken_columns(const bnk_operands *o, const bnk_piece *piece,
                                 const bnk_linears *channels, bnk_statistics statistics)
{
    const int32_t is_double = o->cut->grid.is_double;
    bnk_piece part = *piece;
    for (int64_t i = 0; i < piece->channels; i += part.channels) {
        const bnk_linears own = bnk_linears_from(channels, i, is_double);
        part.channel = piece->channel + i;
        part.channels = alike(own.scale, is_double, piece->channels - i);
        if (bnk_get(own.scale, is_double, 0, 0) == 0)
            apply_extremes(o, &part, statistics);
        else
            apply_columns(o, &part, &own);
    }
}

void bnk_apply_piece(const bnk_operands *o, const bnk_piece *piece, const bnk_linears *channels,
                     bnk_statistics statistics)
{
    const int32_t is_double = o->cut->grid.is_double;
    const bool extremes = has_extremes(channels->scale, is_double, piece->channels);
    if (o->cut->plan.by_columns) {
        if (extremes)
            apply_broken_columns(o, piece, channels, statistics);
        else
            apply_columns(o, piece, channels);
    } else if (extremes) {
        apply_extremes(o, piece, statistics);
    } else {
        const bnk_linear f = bnk_linears_get(channels, is_double, 0);
        apply_rows(o, piece->channel, piece->row, piece->rows, piece->offset, piece->length, &f);
    }
}

/* ---- in steps ---- */

void bnk_apply_begin(bnk_application *a, const bnk_operands *o, const bnk_piece *piece,
                     const bnk_linear *f)
{
    a->operands = o;
    a->piece = *piece;
    a->f = *f;
    a->row = a->offset = a->owed = 0;
}

/* A step ends where a cache line of y does, so that each is written whole. */
static int64_t whole_lines(const bnk_application *a, int64_t length)
{
    const bnk_cut *cut = a->operands->cut;
    const char *end = bnk_written(a->operands) + a->piece.start +
                      (a->row * cut->stride + a->offset + length) * cut->element;
    return length - (int64_t)((uintptr_t)end % 64) / cut->element;
}

void bnk_apply_some(bnk_application *a, int64_t elements)
{
    const bnk_piece *piece = &a->piece;
    a->owed += elements;
    while (a->row < piece->rows) {
        int64_t rows = 1, length = piece->length - a->offset;
        if (a->offset == 0 && a->owed >= length)
            rows = bnk_min(a->owed / length, piece->rows - a->row);
        else if (length > a->owed)
            length = whole_lines(a, a->owed);
        if (length <= 0) return;
        apply_rows(a->operands, piece->channel, piece->row + a->row, rows,
                   piece->offset + a->offset, length, &a->f);
        a->owed -= rows * length;
        a->offset += length;
        if (a->offset == piece->length) {
            a->offset = 0;
            a->row += rows;
        }
    }
}

void bnk_apply_rest(bnk_application *a)
{
    bnk_apply_some(a, a->piece.rows * a->piece.length);
}

/* ---- the end of a task ---- */

void bnk_finish_stores(const bnk_cut *cut)
{
#if defined(__x86_64__)
    if (cut->plan.nontemporal) __builtin_ia32_sfence();
#else
    (void)cut;
#endif
}

/* ---- a whole grid ---- */

/* Whole rows, one behind the other in memory, rather than strips of them, where nothing has to be
 * expanded. */
static int takes_whole_rows(const bnk_cut *cut)
{
    return cut->plan.by_columns && cut->grid.inner == 1 && cut->plan.rows_per_line == 1;
}

int64_t bnk_apply_tasks(const bnk_cut *cut)
{
    const int64_t tasks = cut->runs * cut->pieces;
    return takes_whole_rows(cut) ? bnk_min(tasks, cut->grid.rows) : tasks;
}

/* Rows longer than what can be taken at once with extras: each in strips. */
static void apply_long_rows(const bnk_operands *o, const bnk_piece *rows,
                            const bnk_linears *linears, bnk_statistics statistics)
{
    const int64_t end = rows->row + rows->rows;
    bnk_piece strip = *rows;
    strip.rows = 1;
    for (; strip.row < end; strip.row++)
        for (strip.channel = 0; strip.channel < rows->channels; strip.channel += strip.channels) {
            strip.channels = bnk_min(BNK_MAX_COLUMNS, rows->channels - strip.channel);
            const bnk_linears own =
                bnk_linears_from(linears, strip.channel, o->cut->grid.is_double);
            bnk_apply_piece(o, &strip, &own, statistics);
        }
}

void bnk_apply_tasks_run(const bnk_operands *o, int64_t begin, int64_t end,
                         const bnk_linears *linears, bnk_statistics statistics)
{
    const bnk_cut *cut = o->cut;
    const int64_t tasks = bnk_apply_tasks(cut);
    for (int64_t task = begin; task < end; task++) {
        /* Last read, first applied: what the reduction saw last is still in cache. */
        const int64_t reversed = tasks - 1 - task;
        bnk_piece piece = bnk_piece_at(cut, reversed % cut->runs, reversed / cut->runs);
        if (takes_whole_rows(cut)) {
            piece.channel = 0;
            piece.channels = cut->grid.channels;
            piece.row = cut->grid.rows * reversed / tasks;
            piece.rows = cut->grid.rows * (reversed + 1) / tasks - piece.row;
            piece.start = piece.row * cut->stride * cut->element;
        }
        if (o->extras && piece.channels > BNK_MAX_COLUMNS) {
            apply_long_rows(o, &piece, linears, statistics);
            continue;
        }
        const bnk_linears own = bnk_linears_from(linears, piece.channel, cut->grid.is_double);
        bnk_apply_piece(o, &piece, &own, statistics);
    }
    bnk_finish_stores(cut);
}
