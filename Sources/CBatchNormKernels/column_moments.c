/* The moments of a piece by columns: neighbouring channels fill the vectors. */
#include "columns.h"
#include "piece_moments.h"
#include "tile.h"

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

/* Adds some lines of a tile to its columns' sums around pivots, or around none. */
static void add_lines(const bnk_operands *o, const line_tile *tile, int64_t begin, int64_t end,
                      const double *pivot, double *sum, double *squares)
{
    const int64_t columns = columns_of(o, tile);
    const int64_t stride = o->cut->stride * tile->rows_per_line;
    const int ahead = bnk_from_memory(o->cut);
    const void *x = bnk_value(o, o->x, line_start(o, tile, begin));
    if (pivot)
        o->leaves->column_sums(x, end - begin, stride, columns, ahead, pivot, sum, squares);
    else
        o->leaves->column_squares(x, end - begin, stride, columns, ahead, sum, squares);
}

/* The same where positions are masked: lines that are not go the straight way. */
static void add_masked_lines(const bnk_operands *o, const line_tile *tile, int64_t first,
                             int64_t last, const double *pivot, double *sum, double *squares)
{
    const int64_t columns = columns_of(o, tile);
    uint8_t mask[BNK_MAX_COLUMNS];
    const uint8_t *positions = NULL;
    for (int64_t line = first, begin = first; line < last; begin = ++line) {
        while (line < last &&
               !(positions = bnk_positions_of_line(o, tile->row + line * tile->rows_per_line,
                                                   tile->rows_per_line, tile->channels, mask)))
            line++;
        if (line > begin) add_lines(o, tile, begin, line, pivot, sum, squares);
        if (line < last && bnk_count_taking_part(positions, columns) > 0)
            bnk_masked_line_sums(o, line_start(o, tile, line), columns, positions, pivot, sum,
                                 squares);
    }
}

/* The sums of a tile's channels around pivots, or around none. */
static void channel_sums(const bnk_operands *o, const line_tile *tile, bool masked,
                         const double *pivot, double *sum, double *squares)
{
    const int64_t inner = o->cut->grid.inner;
    double column_pivot[BNK_MAX_COLUMNS];
    bnk_column_sums sums;
    bnk_begin_columns(&sums, columns_of(o, tile), o->cut->grid.is_double);
    if (pivot) {
        bnk_expand_double(pivot, tile->channels, inner, tile->rows_per_line, column_pivot);
        pivot = column_pivot;
    }
    for (int64_t line = 0, end; line < tile->lines; line = end) {
        end = line + bnk_block_lines(&sums, tile->lines - line);
        (masked ? add_masked_lines : add_lines)(o, tile, line, end, pivot, sums.open[0],
                                                sums.open[1]);
        bnk_end_lines(&sums);
    }
    bnk_channel_totals(&sums, 0, tile->channels, inner, tile->rows_per_line, sum);
    bnk_channel_totals(&sums, 1, tile->channels, inner, tile->rows_per_line, squares);
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
    double sum[BNK_MAX_COLUMNS], squares[BNK_MAX_COLUMNS], pivot[BNK_MAX_COLUMNS];
    bool done[BNK_MAX_COLUMNS] = { false };
    if (!grid->is_double) {
        channel_sums(o, tile, masked, NULL, sum, squares);
        bool all_done = true;
        for (int64_t c = 0; c < tile->channels; c++) {
            moments[c] = bnk_moments_of_sums(n, 0, sum[c], squares[c]);
            done[c] = bnk_needs_no_pivot(grid, n, sum[c], squares[c]);
            all_done = all_done && done[c];
        }
        if (all_done) return n;
    }
    for (int64_t c = 0; c < tile->channels; c++)
        pivot[c] = bnk_pivot_of(o, tile->channel + c, found, tile->row + rows, 0, grid->inner);
    channel_sums(o, tile, masked, pivot, sum, squares);
    bool all_near = true;
    for (int64_t c = 0; c < tile->channels; c++) {
        if (done[c]) continue;
        moments[c] = bnk_moments_of_sums(n, pivot[c], sum[c], squares[c]);
        done[c] = !grid->is_double || bnk_is_near(n, sum[c], squares[c]);
        all_near = all_near && done[c];
        if (!done[c]) pivot[c] += sum[c] / n;
    }
    if (all_near) return n;
    channel_sums(o, tile, masked, pivot, sum, squares);
    for (int64_t c = 0; c < tile->channels; c++)
        if (!done[c]) moments[c] = bnk_moments_of_sums(n, pivot[c], sum[c], squares[c]);
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

double bnk_column_moments(const bnk_operands *o, const bnk_piece *piece, bnk_moments *moments)
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
    return count;
}
