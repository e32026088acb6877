/* The sums of a piece that gradients need: see piece_gradients.h. */
#include "piece_gradients.h"

#include <stdbool.h>
#include <string.h>

#include "columns.h"

/* Whether the tensors can be summed as they are. */
static bool sums_are_plain(const bnk_operands *o)
{
    return bnk_sums_plainly(o) && !o->positions.mask;
}

/* ---- by rows ---- */

/* Adds the rows of a part of a piece. */
static void add_rows(const bnk_operands *o, const bnk_piece *part, int64_t ahead, double mean,
                     bnk_lane_sums *lanes)
{
    const int64_t stride = o->cut->stride, at = bnk_first_element(o->cut, part);
    if (sums_are_plain(o)) {
        o->leaves->row_grad_sums(bnk_value(o, o->x, at), bnk_value(o, o->dy, at), part->rows,
                                 stride, part->length, ahead, mean, lanes);
        return;
    }
    const uint8_t *positions = o->positions.mask;
    if (positions) positions += part->row * o->cut->grid.inner + part->offset;
    bnk_gated_row_sums(o, at, part->rows, stride, part->length, positions, ahead, mean, lanes);
}

/* Row by row, or two at once as the leaf takes them: in float64, block by block; and beside another application. */
static void add_by_turns(const bnk_operands *o, const bnk_piece *piece, double mean,
                         bnk_lane_sums *lanes, bnk_application *other)
{
    const int32_t is_double = o->cut->grid.is_double;
    bnk_piece part = *piece;
    for (int64_t row = 0; row < piece->rows; row += part.rows) {
        part.row = piece->row + row;
        part.rows = piece->rows - row >= 2 ? 2 : 1;
        const int64_t ahead = bnk_next_rows(o->cut, piece, part.row, part.rows);
        const int64_t turn = other ? bnk_turn_of(piece->length, part.rows) : piece->length;
        for (int64_t i = 0; i < piece->length; i += part.length) {
            part.offset = piece->offset + i;
            part.length = bnk_block_part(i, bnk_min(i + turn, piece->length), is_double);
            add_rows(o, &part, ahead, mean, lanes);
            const int64_t end = i + part.length;
            if (is_double && (end % BNK_BLOCK_VALUES == 0 || end == piece->length))
                bnk_end_block(lanes);
            if (other) bnk_apply_some(other, part.rows * part.length);
        }
    }
}

void bnk_row_gradients(const bnk_operands *o, const bnk_piece *piece, double mean,
                       bnk_gradients *sums, bnk_application *other)
{
    const int32_t is_double = o->cut->grid.is_double;
    bnk_lane_sums lanes = { .first = { 0 } };
    if (other || is_double)
        add_by_turns(o, piece, mean, &lanes, other);
    else
        add_rows(o, piece, 2 * o->cut->stride, mean, &lanes);
    bnk_lane_totals(&lanes, is_double, &sums->dy, &sums->dy_xmu);
}

/* ---- by columns ---- */

/* Some lines of a piece, and the means of their columns. */
typedef struct line_part {
    const bnk_piece *piece;
    int64_t row, lines, rows_per_line;
    const double *mean;
} line_part;

/* Adds lines some of whose positions may be masked. */
static void add_masked_lines(const bnk_operands *o, const line_part *p, int64_t columns,
                             int64_t stride, double *sum, double *product)
{
    const bnk_piece *piece = p->piece;
    for (int64_t line = 0, together; line < p->lines; line += together) {
        together = bnk_min(4, p->lines - line); /* as the leaf takes them */
        uint8_t positions[4 * BNK_MAX_COLUMNS];
        bool masked = false;
        for (int64_t i = 0; i < together; i++) {
            uint8_t *own = positions + i * BNK_MAX_COLUMNS;
            const int64_t row = p->row + (line + i) * p->rows_per_line;
            if (bnk_positions_of_line(o, row, p->rows_per_line, piece->channels, own))
                masked = true;
            else
                memset(own, 1, (size_t)columns);
        }
        const int64_t at =
            bnk_element_at(o->cut, p->row + line * p->rows_per_line, piece->channel, 0);
        bnk_gated_column_sums(o, at, together, stride, columns, masked ? positions : NULL,
                              BNK_MAX_COLUMNS, p->mean, sum, product);
    }
}

static void add_block(const bnk_operands *o, const line_part *p, double *sum, double *product)
{
    const bnk_cut *cut = o->cut;
    const int64_t stride = cut->stride * p->rows_per_line;
    const int64_t columns = p->piece->channels * cut->grid.inner * p->rows_per_line;
    const int64_t at = bnk_element_at(cut, p->row, p->piece->channel, 0);
    if (sums_are_plain(o))
        o->leaves->column_grad_sums(bnk_value(o, o->x, at), bnk_value(o, o->dy, at), p->lines,
                                    stride, columns, bnk_from_memory(cut), p->mean, sum, product);
    else if (o->positions.mask)
        add_masked_lines(o, p, columns, stride, sum, product);
    else
        bnk_gated_column_sums(o, at, p->lines, stride, columns, NULL, 0, p->mean, sum, product);
}

/* Block by block: see carry.h. */
static void add_lines(const bnk_operands *o, const line_part *p, bnk_column_sums *sums)
{
    line_part block = *p;
    for (int64_t line = 0; line < p->lines; line += block.lines) {
        block.row = p->row + line * p->rows_per_line;
        block.lines = bnk_block_lines(sums, p->lines - line);
        add_block(o, &block, sums->open[0], sums->open[1]);
        bnk_end_lines(sums);
    }
}

void bnk_column_gradients(const bnk_operands *o, const bnk_piece *piece, const double *means,
                          bnk_gradients *sums)
{
    const bnk_cut *cut = o->cut;
    const int64_t inner = cut->grid.inner, channels = piece->channels;
    const int64_t rows_per_line = bnk_rows_per_line(&cut->plan, piece->rows);
    const int64_t lines = piece->rows / rows_per_line, rest = piece->rows % rows_per_line;
    double mean[BNK_MAX_COLUMNS], totals[BNK_MAX_COLUMNS];
    bnk_column_sums columns;
    bnk_expand_double(means, channels, inner, rows_per_line, mean);
    bnk_begin_columns(&columns, channels * inner * rows_per_line, cut->grid.is_double);
    add_lines(o, &(line_part){ piece, piece->row, lines, rows_per_line, mean }, &columns);
    /* The last rows, too few for another line. */
    add_lines(o, &(line_part){ piece, piece->row + lines * rows_per_line, rest, 1, mean },
              &columns);
    bnk_channel_totals(&columns, 0, channels, inner, rows_per_line, totals);
    for (int64_t c = 0; c < channels; c++) sums[c].dy = totals[c];
    bnk_channel_totals(&columns, 1, channels, inner, rows_per_line, totals);
    for (int64_t c = 0; c < channels; c++) sums[c].dy_xmu = totals[c];
}
