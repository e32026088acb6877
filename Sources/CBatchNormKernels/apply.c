/* Picks the apply leaf for a piece and lays its coefficients out as the leaf wants them. */
#include "apply.h"

#include <stdbool.h>

#include "columns.h"

/* By the plain leaves; frozen, they take dy for x. */
static void plain_rows(const bnk_operands *o, int64_t at, int64_t rows, int64_t length,
                       const bnk_linear *f)
{
    const void *x = bnk_value(o, o->x, at), *dy = bnk_value(o, o->dy, at);
    void *y = bnk_value(o, o->y, at);
    const int64_t stride = o->cut->stride;
    const int32_t nontemporal = o->cut->plan.nontemporal;
    if (o->dy && !o->frozen)
        o->leaves->row_grad_apply(x, dy, y, rows, stride, length, f, nontemporal);
    else
        o->leaves->row_apply(o->frozen ? dy : x, y, rows, stride, length, f, nontemporal);
}

static void plain_columns(const bnk_operands *o, int64_t at, int64_t lines, int64_t stride,
                          int64_t width, const bnk_linears *columns)
{
    const void *x = bnk_value(o, o->x, at), *dy = bnk_value(o, o->dy, at);
    void *y = bnk_value(o, o->y, at);
    const int32_t nontemporal = o->cut->plan.nontemporal;
    if (o->dy && !o->frozen)
        o->leaves->column_grad_apply(x, dy, y, lines, stride, width, columns, nontemporal);
    else
        o->leaves->column_apply(o->frozen ? dy : x, y, lines, stride, width, columns, nontemporal);
}

void bnk_apply_rows(const bnk_operands *o, const bnk_piece *piece, const bnk_linear *f)
{
    const int64_t stride = o->cut->stride, first = bnk_first_element(o->cut, piece);
    if (bnk_is_plain(o)) {
        plain_rows(o, first, piece->rows, piece->length, f);
        return;
    }
    if (bnk_usual_rows(o, first, piece->rows, stride, piece->length, f)) return;
    const int plain = bnk_applies_plainly(o) && o->y;
    for (int64_t row = 0, begin = 0; row < piece->rows; begin = ++row) {
        /* Whole rows up to the next one that has something special. */
        const uint8_t *positions = NULL;
        while (row < piece->rows &&
               !(positions =
                     bnk_positions_of_row(o, piece->row + row, piece->offset, piece->length)) &&
               plain)
            row++;
        if (row > begin) plain_rows(o, first + begin * stride, row - begin, piece->length, f);
        if (row == piece->rows) break;
        const int64_t prefix =
            plain && positions ? bnk_prefix_taking_part(positions, piece->length) : 0;
        const int64_t straight = prefix > 0 ? prefix : 0;
        const int64_t at = first + row * stride;
        if (straight > 0) plain_rows(o, at, 1, straight, f);
        bnk_epilogue_row(o, at + straight, piece->length - straight,
                         positions ? positions + straight : NULL, f);
    }
}

/* Only whole rows lie behind one another, not those of channels beside an extreme one. */
static int64_t rows_per_line(const bnk_cut *cut, const bnk_piece *piece, int64_t rows_left)
{
    return piece->channels == cut->grid.channels ? bnk_rows_per_line(&cut->plan, rows_left) : 1;
}

/* The coefficients of a line's columns, in `memory` where they are not the channels' themselves. */
static bnk_linears columns_of(const bnk_operands *o, const bnk_piece *piece,
                              const bnk_linears *channels, double *memory)
{
    const int32_t is_double = o->cut->grid.is_double;
    const int64_t inner = o->cut->grid.inner, count = piece->channels;
    const int64_t rows = rows_per_line(o->cut, piece, piece->rows);
    if (inner == 1 && rows == 1) return *channels;
    const bnk_linears columns = bnk_linears_in(memory, BNK_MAX_COLUMNS, is_double);
    bnk_expand(channels->scale, is_double, count, inner, rows, columns.scale);
    bnk_expand(channels->center, is_double, count, inner, rows, columns.center);
    bnk_expand(channels->slope, is_double, count, inner, rows, columns.slope);
    bnk_expand(channels->offset, is_double, count, inner, rows, columns.offset);
    if (o->dy) {
        bnk_expand(channels->factor, is_double, count, inner, rows, columns.factor);
        bnk_expand(channels->slope_rest, is_double, count, inner, rows, columns.slope_rest);
    }
    return columns;
}

/* Lines of an operation with an epilogue, or some of whose positions may be masked; from row `row` of a piece on. */
static void apply_lines(const bnk_operands *o, const bnk_piece *piece, int64_t row, int64_t lines,
                        int64_t rows, const bnk_linears *columns)
{
    const int plain = bnk_applies_plainly(o);
    const int64_t first = bnk_element_at(o->cut, row, piece->channel, 0);
    const int64_t width = piece->channels * o->cut->grid.inner * rows;
    const int64_t stride = o->cut->stride * rows;
    if (bnk_usual_lines(o, first, lines, stride, width, columns)) return;
    for (int64_t line = 0, begin = 0; line < lines; begin = ++line) {
        uint8_t mask[BNK_MAX_COLUMNS];
        const uint8_t *positions = NULL;
        while (line < lines &&
               !(positions =
                     bnk_positions_of_line(o, row + line * rows, rows, piece->channels, mask)) &&
               plain)
            line++;
        if (line > begin)
            plain_columns(o, first + begin * stride, line - begin, stride, width, columns);
        if (line < lines) bnk_epilogue_line(o, first + line * stride, width, positions, columns);
    }
}

static void apply_columns(const bnk_operands *o, const bnk_piece *piece,
                          const bnk_linears *channels)
{
    const bnk_cut *cut = o->cut;
    double memory[BNK_LINEARS * BNK_MAX_COLUMNS];
    const bnk_linears columns = columns_of(o, piece, channels, memory);
    const int64_t end = piece->row + piece->rows;
    for (int64_t row = piece->row; row < end;) {
        const int64_t rows = rows_per_line(cut, piece, end - row); /* the last may be too few */
        const int64_t lines = (end - row) / rows;
        if (!bnk_is_plain(o))
            apply_lines(o, piece, row, lines, rows, &columns);
        else
            plain_columns(o, bnk_element_at(cut, row, piece->channel, 0), lines, cut->stride * rows,
                          piece->channels * cut->grid.inner * rows, &columns);
        row += lines * rows;
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

static void apply_extremes(const bnk_operands *o, const bnk_piece *piece, bnk_results results)
{
    for (int64_t c = piece->channel; c < piece->channel + piece->channels; c++) {
        const bnk_extreme e = o->extreme(o->operation, c, results);
        bnk_apply_extreme(o, piece, c, &e);
    }
}

/* By columns: an extreme channel breaks the line. */
static void apply_broken_columns(const bnk_operands *o, const bnk_piece *piece,
                                 const bnk_linears *channels, bnk_results results)
{
    const int32_t is_double = o->cut->grid.is_double;
    bnk_piece part = *piece;
    for (int64_t i = 0; i < piece->channels; i += part.channels) {
        const bnk_linears own = bnk_linears_from(channels, i, is_double);
        part.channel = piece->channel + i;
        part.channels = alike(own.scale, is_double, piece->channels - i);
        if (bnk_get(own.scale, is_double, 0, 0) == 0)
            apply_extremes(o, &part, results);
        else
            apply_columns(o, &part, &own);
    }
}

void bnk_apply_piece(const bnk_operands *o, const bnk_piece *piece, const bnk_linears *channels,
                     bnk_results results)
{
    const int32_t is_double = o->cut->grid.is_double;
    const bool extremes = has_extremes(channels->scale, is_double, piece->channels);
    if (o->cut->plan.by_columns) {
        if (extremes)
            apply_broken_columns(o, piece, channels, results);
        else
            apply_columns(o, piece, channels);
    } else if (extremes) {
        apply_extremes(o, piece, results);
    } else {
        const bnk_linear f = bnk_linears_get(channels, is_double, 0);
        bnk_apply_rows(o, piece, &f);
    }
}

void bnk_finish_stores(const bnk_cut *cut)
{
#if defined(__x86_64__)
    if (cut->plan.nontemporal) __builtin_ia32_sfence();
#else
    (void)cut;
#endif
}
