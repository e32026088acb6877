/* The moments of a piece by columns: neighbouring channels fill the vectors. */
#include "columns.h"
#include "piece_moments.h"
#include "tile.h"

/* ---- sums around pivots ---- */

/* Some lines of a run of channels. */
typedef struct line_tile {
    int64_t channel, channels;
    int64_t row, lines, rows_per_line;
} line_tile;

static int64_t columns_of(const bnk_operands *o, const line_tile *tile)
{
    return tile->channels * o->cut->grid.inner * tile->rows_per_line;
}

static int64_t line_start(const bnk_operands *o, const line_tile *tile, int64_t line)
{
    return bnk_element_at(o->cut, tile->row + line * tile->rows_per_line, tile->channel, 0);
}

/* Adds some lines of a tile. */
static void add_lines(const bnk_operands *o, const line_tile *tile, int64_t begin, int64_t end,
                      bnk_column_sums *sums)
{
    const bnk_cut *cut = o->cut;
    const int64_t lines = end - begin, columns = columns_of(o, tile);
    const int64_t stride = cut->stride * tile->rows_per_line;
    const void *x = bnk_value(o, o->x, line_start(o, tile, begin));
    if (sums->in_chains)
        o->leaves->column_chains(x, lines, stride, columns, sums->chains.pivot, &sums->chains.sums);
    else
        o->leaves->column_sums(x, lines, stride, columns, bnk_from_memory(cut), sums->wide.pivot,
                               sums->wide.open[0], sums->wide.open[1]);
}

/* The same where positions are masked: lines that are not go the straight way. */
static void add_masked_lines(const bnk_operands *o, const line_tile *tile, int64_t first,
                             int64_t last, bnk_column_sums *sums)
{
    const int64_t columns = columns_of(o, tile);
    uint8_t mask[BNK_MAX_COLUMNS];
    const uint8_t *positions = NULL;
    for (int64_t line = first, begin = first; line < last; begin = ++line) {
        while (line < last &&
               !(positions = bnk_positions_of_line(o, tile->row + line * tile->rows_per_line,
                                                   tile->rows_per_line, tile->channels, mask)))
            line++;
        if (line > begin) add_lines(o, tile, begin, line, sums);
        if (line < last && bnk_count_taking_part(positions, columns) > 0)
            bnk_masked_line_sums(o, line_start(o, tile, line), columns, positions, sums);
    }
}

static void add_tile(const bnk_operands *o, const line_tile *tile, bool masked,
                     bnk_column_sums *sums)
{
    for (int64_t line = 0, end; line < tile->lines; line = end) {
        end = line + bnk_block_lines(sums, tile->lines - line);
        (masked ? add_masked_lines : add_lines)(o, tile, line, end, sums);
        bnk_end_lines(sums);
    }
}

/* A tile's channels: around which pivots their sums are, and these. */
typedef struct channel_sums {
    double pivot[BNK_MAX_COLUMNS];
    bnk_totals totals[BNK_MAX_COLUMNS];
} channel_sums;

static void begin_tile(const bnk_operands *o, const line_tile *tile, bool in_chains,
                       const channel_sums *s, bnk_column_sums *columns)
{
    bnk_begin_column_sums(columns, in_chains, o->cut->grid.is_double, s->pivot, tile->channels,
                          o->cut->grid.inner, tile->rows_per_line);
}

static void end_tile(const bnk_operands *o, const line_tile *tile, bnk_column_sums *columns,
                     channel_sums *s)
{
    bnk_column_totals(columns, tile->channels, o->cut->grid.inner, tile->rows_per_line, s->totals);
}

static bnk_moments moments_of(const channel_sums *s, int64_t channel, double n)
{
    const bnk_totals t = s->totals[channel];
    return bnk_moments_of_sums(n, s->pivot[channel], t.first, t.second);
}

/* ---- wide sums, tile by tile ---- */

static void wide_sums(const bnk_operands *o, const line_tile *tile, bool masked, channel_sums *s)
{
    bnk_column_sums columns;
    begin_tile(o, tile, false, s, &columns);
    add_tile(o, tile, masked, &columns);
    end_tile(o, tile, &columns, s);
}

/* Of the tile's values that take part; returns how many of each channel these are. */
static double tile_moments(const bnk_operands *o, const line_tile *tile, bnk_moments *moments)
{
    const bnk_grid *grid = &o->cut->grid;
    const int64_t rows = tile->lines * tile->rows_per_line;
    const bnk_taking_part found = bnk_taking_part_in(o, tile->row, rows, 0, grid->inner);
    const double n = (double)found.count;
    if (n == 0) return 0;
    const bool masked = found.count < rows * grid->inner;
    channel_sums s;
    bool near[BNK_MAX_COLUMNS], all_near = true;
    for (int64_t c = 0; c < tile->channels; c++)
        s.pivot[c] = bnk_wide_pivot(o, tile->channel + c, found, tile->row + rows, 0, grid->inner);
    wide_sums(o, tile, masked, &s);
    for (int64_t c = 0; c < tile->channels; c++) {
        moments[c] = moments_of(&s, c, n);
        near[c] = !grid->is_double || bnk_is_near(n, s.totals[c]);
        all_near = all_near && near[c];
        if (!near[c]) s.pivot[c] += s.totals[c].first / n;
    }
    if (all_near) return n;
    wide_sums(o, tile, masked, &s);
    for (int64_t c = 0; c < tile->channels; c++)
        if (!near[c]) moments[c] = moments_of(&s, c, n);
    return n;
}

/* The tile of a piece that begins at a row. */
static line_tile tile_at(const bnk_cut *cut, const bnk_piece *piece, int64_t row)
{
    const int64_t rows_left = piece->row + piece->rows - row;
    line_tile tile = { .channel = piece->channel,
                       .channels = piece->channels,
                       .row = row,
                       .rows_per_line = bnk_rows_per_line(&cut->plan, rows_left) };
    int64_t fit = bnk_max(16, BNK_TILE / (cut->grid.inner * tile.rows_per_line));
    if (cut->grid.is_double)
        fit = bnk_max(fit, bnk_tile_share(piece->rows / tile.rows_per_line, BNK_BLOCK_LINES));
    tile.lines = bnk_min(rows_left / tile.rows_per_line, fit);
    return tile;
}

static void wide_moments(const bnk_operands *o, const bnk_piece *piece, bnk_moments *moments)
{
    bnk_moments own[BNK_MAX_COLUMNS];
    double count = 0;
    for (int64_t row = piece->row; row < piece->row + piece->rows;) {
        const line_tile tile = tile_at(o->cut, piece, row);
        const double n = tile_moments(o, &tile, own);
        bnk_moments_add(moments, count, own, n, piece->channels);
        count += n;
        row += tile.lines * tile.rows_per_line;
    }
}

/* ---- chains, all of a piece around one pivot a channel ---- */

/* A piece as lines: those of rows_per_line rows, and the last rows, too few for another. */
typedef struct piece_lines {
    line_tile whole, rest;
} piece_lines;

static piece_lines lines_of(const bnk_cut *cut, const bnk_piece *piece)
{
    const int64_t rows_per_line = bnk_rows_per_line(&cut->plan, piece->rows);
    const int64_t lines = piece->rows / rows_per_line, taken = lines * rows_per_line;
    return (piece_lines){
        .whole = { piece->channel, piece->channels, piece->row, lines, rows_per_line },
        .rest = { piece->channel, piece->channels, piece->row + taken, piece->rows - taken, 1 }
    };
}

static void chain_sums(const bnk_operands *o, const piece_lines *lines, bool masked,
                       channel_sums *s)
{
    bnk_column_sums columns;
    begin_tile(o, &lines->whole, true, s, &columns);
    add_tile(o, &lines->whole, masked, &columns);
    add_tile(o, &lines->rest, masked, &columns);
    end_tile(o, &lines->whole, &columns, s);
}

/* The means of each channel's first few values; of many channels with short rows by lines, as that is faster. */
static void find_pivots(const bnk_operands *o, const piece_lines *lines, bnk_taking_part found,
                        bool masked, channel_sums *s)
{
    enum { FEW_CHANNELS = 32 };
    const int64_t inner = o->cut->grid.inner;
    const line_tile *tile = &lines->whole;
    if (masked || inner >= BNK_LOOKED_AT || tile->channels <= FEW_CHANNELS) {
        const int64_t end = tile->row + tile->lines * tile->rows_per_line + lines->rest.lines;
        for (int64_t c = 0; c < tile->channels; c++)
            s->pivot[c] =
                bnk_round(bnk_mean_of_first(o, tile->channel + c, found, end, 0, inner), false);
        return;
    }
    const int64_t in_line = tile->rows_per_line * inner;
    piece_lines first = { .whole = *tile, .rest = { .rows_per_line = 1 } };
    first.whole.lines = bnk_min(bnk_ceil_div(BNK_LOOKED_AT, in_line), tile->lines);
    for (int64_t c = 0; c < tile->channels; c++) s->pivot[c] = 0;
    chain_sums(o, &first, false, s);
    const double n = (double)(first.whole.lines * in_line);
    for (int64_t c = 0; c < tile->channels; c++)
        s->pivot[c] = bnk_round(s->totals[c].first / n, false);
}

/* Returns false where chains do not do for some channels, which are not marked as served. Pivots that prove far from the
 * mean are replaced by what their sums say. */
static bool chain_moments(const bnk_operands *o, const bnk_piece *piece, bnk_taking_part found,
                          bnk_moments *moments, bool *served)
{
    const double n = (double)found.count;
    const bool masked = found.count < piece->rows * o->cut->grid.inner;
    const piece_lines lines = lines_of(o->cut, piece);
    channel_sums s;
    find_pivots(o, &lines, found, masked, &s);
    int64_t left = piece->channels;
    bool more = true;
    for (int tries = 0; tries < BNK_PIVOTS && more; tries++) {
        more = false;
        chain_sums(o, &lines, masked, &s);
        for (int64_t c = 0; c < piece->channels; c++) {
            if (served[c] || !bnk_chains_hold(n, s.totals[c])) continue;
            served[c] = bnk_is_near(n, s.totals[c]);
            if (served[c]) {
                moments[c] = moments_of(&s, c, n);
                left--;
            } else {
                s.pivot[c] = bnk_round(s.pivot[c] + s.totals[c].first / n, false);
                more = true;
            }
        }
    }
    return left == 0;
}

double bnk_column_moments(const bnk_operands *o, const bnk_piece *piece, bnk_moments *moments)
{
    const bnk_taking_part found =
        bnk_taking_part_in(o, piece->row, piece->rows, 0, o->cut->grid.inner);
    if (!bnk_has_many(&o->cut->grid, (double)found.count, BNK_MANY_MOMENTS)) {
        wide_moments(o, piece, moments);
        return (double)found.count;
    }
    bool served[BNK_MAX_COLUMNS] = { false };
    if (chain_moments(o, piece, found, moments, served)) return (double)found.count;
    bnk_moments wide[BNK_MAX_COLUMNS];
    wide_moments(o, piece, wide);
    for (int64_t c = 0; c < piece->channels; c++)
        if (!served[c]) moments[c] = wide[c];
    return (double)found.count;
}
