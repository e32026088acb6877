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

/* Whether they came back through a ReLU alone, by its bits, and there are leaves for just that. */
static bool sums_are_of_relu(const bnk_operands *o)
{
    return o->leaves->row_relu_chains && o->epilogue.activation.kind == BNK_ACTIVATION_RELU &&
           o->epilogue.activation_mask && !o->positions.mask;
}

static bool has_many(const bnk_operands *o, const bnk_piece *piece)
{
    return bnk_has_many(&o->cut->grid, (double)(piece->rows * piece->length), BNK_MANY_GRADIENTS);
}

static bool hold(const bnk_piece *piece, bnk_totals t)
{
    return bnk_chains_hold((double)(piece->rows * piece->length), t);
}

/* Chains subtract a mean of float32: what that lacks of the mean comes afterwards. */
static bnk_gradients gradients_of(bnk_totals t, double lacking)
{
    return (bnk_gradients){ t.first, t.second - lacking * t.first };
}

/* ---- by rows ---- */

/* Adds the rows of a part of a piece. */
static void add_rows(const bnk_operands *o, const bnk_piece *part, int64_t ahead,
                     bnk_row_sums *sums)
{
    const int64_t stride = o->cut->stride, at = bnk_first_element(o->cut, part);
    const void *x = bnk_value(o, o->x, at), *dy = bnk_value(o, o->dy, at);
    const uint8_t *positions = o->positions.mask;
    if (positions) positions += part->row * o->cut->grid.inner + part->offset;
    if (sums->in_chains && sums_are_of_relu(o))
        o->leaves->row_relu_chains(x, dy, o->epilogue.activation_mask, at, part->rows, stride,
                                   part->length, (float)sums->pivot, &sums->chains);
    else if (!sums_are_plain(o))
        bnk_gated_row_sums(o, at, part->rows, stride, part->length, positions, ahead, sums);
    else if (sums->in_chains)
        o->leaves->row_grad_chains(x, dy, part->rows, stride, part->length, (float)sums->pivot,
                                   &sums->chains);
    else
        o->leaves->row_grad_sums(x, dy, part->rows, stride, part->length, ahead, sums->pivot,
                                 &sums->wide);
}

/* Row by row, or two at once, as the leaf takes them: in float64, block by block; and beside another application. */
static void add_by_turns(const bnk_operands *o, const bnk_piece *piece, bnk_row_sums *sums,
                         bnk_application *other)
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
            add_rows(o, &part, ahead, sums);
            const int64_t end = i + part.length;
            if (is_double && (end % BNK_BLOCK_VALUES == 0 || end == piece->length))
                bnk_end_block(&sums->wide);
            if (other) bnk_apply_some(other, part.rows * part.length);
        }
    }
}

static bnk_totals row_sums(const bnk_operands *o, const bnk_piece *piece, bool in_chains,
                           double mean, bnk_application *other)
{
    const int32_t is_double = o->cut->grid.is_double;
    bnk_row_sums sums;
    bnk_begin_row_sums(&sums, in_chains, mean);
    if (other || is_double)
        add_by_turns(o, piece, &sums, other);
    else
        add_rows(o, piece, 2 * o->cut->stride, &sums);
    return bnk_row_totals(&sums, is_double);
}

void bnk_row_gradients(const bnk_operands *o, const bnk_piece *piece, double mean,
                       bnk_gradients *sums, bnk_application *other)
{
    if (has_many(o, piece)) {
        const double rounded = bnk_round(mean, false);
        const bnk_totals t = row_sums(o, piece, true, rounded, other);
        *sums = gradients_of(t, mean - rounded);
        if (hold(piece, t)) return;
        other = NULL; /* it has gone on as far as it should */
    }
    *sums = gradients_of(row_sums(o, piece, false, mean, other), 0);
}

/* ---- by columns ---- */

/* Some lines of a piece. */
typedef struct line_part {
    const bnk_piece *piece;
    int64_t row, lines, rows_per_line;
} line_part;

/* Lines that a leaf takes together: four, or a group of two chains. */
typedef struct line_group {
    int64_t first, lines;
    int64_t distance; /* lines from one to the next; of a chain */
    int64_t second;   /* lines from one chain to the other */
} line_group;

static line_group group_at(const bnk_column_sums *sums, int64_t lines, int64_t taken)
{
    const int64_t quarter = bnk_quarter_of(lines);
    if (!sums->in_chains) return (line_group){ taken, bnk_min(4, lines - taken), 1, 0 };
    if (taken < 4 * quarter) return (line_group){ taken / BNK_GROUP * 2, BNK_GROUP, quarter, 1 };
    return (line_group){ taken, lines - taken, 1, BNK_CHAIN };
}

/* Writes which positions of a group's lines take part, a line every BNK_MAX_COLUMNS bytes; returns NULL if all do. */
static const uint8_t *positions_of_group(const bnk_operands *o, const line_part *p,
                                         const line_group *group, int64_t columns,
                                         uint8_t *positions)
{
    bool masked = false;
    for (int64_t i = 0; o->positions.mask && i < group->lines; i++) {
        uint8_t *own = positions + i * BNK_MAX_COLUMNS;
        const int64_t line =
            group->first + i % BNK_CHAIN * group->distance + i / BNK_CHAIN * group->second;
        const int64_t row = p->row + line * p->rows_per_line;
        if (bnk_positions_of_line(o, row, p->rows_per_line, p->piece->channels, own))
            masked = true;
        else
            memset(own, 1, (size_t)columns);
    }
    return masked ? positions : NULL;
}

/* Adds lines some of whose positions may be masked, or that came back through an activation. */
static void add_gated_lines(const bnk_operands *o, const line_part *p, int64_t columns,
                            int64_t stride, bnk_column_sums *sums)
{
    uint8_t memory[BNK_GROUP * BNK_MAX_COLUMNS];
    line_group group;
    for (int64_t taken = 0; taken < p->lines; taken += group.lines) {
        group = group_at(sums, p->lines, taken);
        const uint8_t *positions = positions_of_group(o, p, &group, columns, memory);
        const int64_t at =
            bnk_element_at(o->cut, p->row + group.first * p->rows_per_line, p->piece->channel, 0);
        if (sums->in_chains)
            bnk_gated_column_chains(o, at, (int)group.lines, group.distance * stride,
                                    group.second * stride, columns, positions, BNK_MAX_COLUMNS,
                                    sums);
        else
            bnk_gated_column_sums(o, at, group.lines, stride, columns, positions, BNK_MAX_COLUMNS,
                                  sums);
    }
}

static void add_block(const bnk_operands *o, const line_part *p, bnk_column_sums *sums)
{
    const bnk_cut *cut = o->cut;
    const int64_t stride = cut->stride * p->rows_per_line;
    const int64_t columns = p->piece->channels * cut->grid.inner * p->rows_per_line;
    const int64_t at = bnk_element_at(cut, p->row, p->piece->channel, 0);
    const void *x = bnk_value(o, o->x, at), *dy = bnk_value(o, o->dy, at);
    if (sums->in_chains && sums_are_of_relu(o))
        o->leaves->column_relu_chains(x, dy, o->epilogue.activation_mask, at, p->lines, stride,
                                      columns, sums->chains.pivot, &sums->chains.sums);
    else if (!sums_are_plain(o))
        add_gated_lines(o, p, columns, stride, sums);
    else if (sums->in_chains)
        o->leaves->column_grad_chains(x, dy, p->lines, stride, columns, sums->chains.pivot,
                                      &sums->chains.sums);
    else
        o->leaves->column_grad_sums(x, dy, p->lines, stride, columns, bnk_from_memory(cut),
                                    sums->wide.pivot, sums->wide.open[0], sums->wide.open[1]);
}

/* Block by block: see carry.h. */
static void add_lines(const bnk_operands *o, line_part block, bnk_column_sums *sums)
{
    const int64_t lines = block.lines;
    for (int64_t line = 0; line < lines; line += block.lines) {
        block.lines = bnk_block_lines(sums, lines - line);
        add_block(o, &block, sums);
        bnk_end_lines(sums);
        block.row += block.lines * block.rows_per_line;
    }
}

static void column_sums(const bnk_operands *o, const bnk_piece *piece, bool in_chains,
                        const double *means, bnk_totals *totals)
{
    const bnk_grid *grid = &o->cut->grid;
    const int64_t inner = grid->inner, channels = piece->channels;
    const int64_t rows_per_line = bnk_rows_per_line(&o->cut->plan, piece->rows);
    const int64_t lines = piece->rows / rows_per_line, taken = lines * rows_per_line;
    bnk_column_sums sums;
    bnk_begin_column_sums(&sums, in_chains, grid->is_double, means, channels, inner, rows_per_line);
    add_lines(o, (line_part){ piece, piece->row, lines, rows_per_line }, &sums);
    /* The last rows, too few for another line. */
    add_lines(o, (line_part){ piece, piece->row + taken, piece->rows - taken, 1 }, &sums);
    bnk_column_totals(&sums, channels, inner, rows_per_line, totals);
}

static void wide_gradients(const bnk_operands *o, const bnk_piece *piece, const double *means,
                           const bool *served, bnk_gradients *sums)
{
    bnk_totals totals[BNK_MAX_COLUMNS];
    column_sums(o, piece, false, means, totals);
    for (int64_t c = 0; c < piece->channels; c++)
        if (!served || !served[c]) sums[c] = gradients_of(totals[c], 0);
}

void bnk_column_gradients(const bnk_operands *o, const bnk_piece *piece, const double *means,
                          bnk_gradients *sums)
{
    if (!has_many(o, piece)) {
        wide_gradients(o, piece, means, NULL, sums);
        return;
    }
    double rounded[BNK_MAX_COLUMNS];
    bnk_totals totals[BNK_MAX_COLUMNS];
    bool served[BNK_MAX_COLUMNS], all_served = true;
    for (int64_t c = 0; c < piece->channels; c++) rounded[c] = bnk_round(means[c], false);
    column_sums(o, piece, true, rounded, totals);
    for (int64_t c = 0; c < piece->channels; c++) {
        served[c] = hold(piece, totals[c]);
        all_served = all_served && served[c];
        sums[c] = gradients_of(totals[c], means[c] - rounded[c]);
    }
    if (!all_served) wide_gradients(o, piece, means, served, sums);
}
