/* The moments of a piece by rows: the values of one channel fill the vectors. */
#include "piece_moments.h"
#include "tile.h"

/* Adds a tile of `piece` to sums around a pivot, or around none; `other`, if not NULL, goes on meanwhile. */
static void add_rows(const bnk_operands *o, const bnk_piece *piece, const bnk_piece *tile,
                     const double *pivot, bnk_lane_sums *sums, bnk_application *other)
{
    const bnk_cut *cut = o->cut;
    const int32_t is_double = cut->grid.is_double;
    const int64_t start = bnk_first_element(cut, tile);
    /* Four rows at once or one, as the leaf takes them; all in one call where nothing else goes on. */
    for (int64_t row = 0, together; row < tile->rows; row += together) {
        together = tile->rows - row >= 4 ? 4 : 1;
        const int64_t ahead = bnk_next_rows(cut, piece, tile->row + row, together);
        if (!other && !is_double) together = tile->rows;
        const int64_t turn = other ? bnk_turn_of(tile->length, together) : tile->length;
        for (int64_t at = 0, count; at < tile->length; at += count) {
            count = bnk_block_part(at, bnk_min(at + turn, tile->length), is_double);
            const void *x = bnk_value(o, o->x, start + row * cut->stride + at);
            if (pivot)
                o->leaves->row_sums(x, together, cut->stride, count, *pivot, sums);
            else
                o->leaves->row_squares(x, together, cut->stride, count, ahead, sums);
            if (is_double && ((at + count) % BNK_BLOCK_VALUES == 0 || at + count == tile->length))
                bnk_end_block(sums);
            if (other) bnk_apply_some(other, together * count);
        }
    }
}

/* The same where positions are masked; rows of which only the first values take part, as those of padded
 * sequences, go the straight way. */
static void add_masked_rows(const bnk_operands *o, const bnk_piece *tile, const double *pivot,
                            bnk_lane_sums *sums, bnk_application *other)
{
    const bnk_cut *cut = o->cut;
    for (int64_t row = tile->row; row < tile->row + tile->rows; row++) {
        const uint8_t *positions = bnk_positions_of_row(o, row, tile->offset, tile->length);
        const int64_t prefix =
            positions ? bnk_prefix_taking_part(positions, tile->length) : tile->length;
        const int64_t start = bnk_element_at(cut, row, tile->channel, tile->offset);
        for (int64_t i = 0; i < tile->length; i += BNK_STRETCH) {
            const int64_t count = bnk_min(BNK_STRETCH, tile->length - i);
            const int64_t straight = bnk_min(count, prefix - i);
            const void *x = bnk_value(o, o->x, start + i);
            if (prefix < 0)
                bnk_masked_row_sums(o, start + i, count, positions + i, pivot, sums);
            else if (straight > 0 && pivot)
                o->leaves->row_sums(x, 1, 0, straight, *pivot, sums);
            else if (straight > 0)
                o->leaves->row_squares(x, 1, 0, straight, cut->stride, sums);
            if (cut->grid.is_double) bnk_end_block(sums);
            if (other) bnk_apply_some(other, count);
        }
    }
}

/* The sums of a tile, some of whose positions may be masked. */
typedef struct tile_sums {
    double sum, squares;
} tile_sums;

static tile_sums sums_of(const bnk_operands *o, const bnk_piece *piece, const bnk_piece *tile,
                         bool masked, const double *pivot, bnk_application *other)
{
    tile_sums sums;
    bnk_lane_sums lanes = { .first = { 0 } };
    if (masked)
        add_masked_rows(o, tile, pivot, &lanes, other);
    else
        add_rows(o, piece, tile, pivot, &lanes, other);
    bnk_lane_totals(&lanes, o->cut->grid.is_double, &sums.sum, &sums.squares);
    return sums;
}

/* Of the tile's values that take part, and how many these are. */
static bnk_moments tile_moments(const bnk_operands *o, const bnk_piece *piece,
                                const bnk_piece *tile, double *count, bnk_application *other)
{
    const bnk_grid *grid = &o->cut->grid;
    const bnk_taking_part found =
        bnk_taking_part_in(o, tile->row, tile->rows, tile->offset, tile->length);
    const double n = *count = (double)found.count;
    if (n == 0) return (bnk_moments){ 0, 0, 0 };
    const bool masked = found.count < tile->rows * tile->length;
    if (!grid->is_double) {
        const tile_sums s = sums_of(o, piece, tile, masked, NULL, other);
        if (bnk_needs_no_pivot(grid, n, s.sum, s.squares))
            return bnk_moments_of_sums(n, 0, s.sum, s.squares);
        other = NULL; /* it has gone on as far as it should */
    }
    double pivot =
        bnk_pivot_of(o, tile->channel, found, tile->row + tile->rows, tile->offset, tile->length);
    tile_sums s = sums_of(o, piece, tile, masked, &pivot, other);
    if (grid->is_double && !bnk_is_near(n, s.sum, s.squares)) {
        pivot += s.sum / n;
        s = sums_of(o, piece, tile, masked, &pivot, NULL);
    }
    return bnk_moments_of_sums(n, pivot, s.sum, s.squares);
}

static int64_t tile_width(int64_t length, int32_t is_double)
{
    return is_double ? bnk_max(BNK_TILE, bnk_tile_share(length, BNK_BLOCK_VALUES)) : BNK_TILE;
}

static int64_t tile_height(const bnk_piece *piece, int64_t width, int64_t length, int32_t is_double)
{
    const int64_t fit = bnk_max(4, BNK_TILE / length / 4 * 4);
    if (!is_double) return fit;
    return bnk_max(fit, bnk_tile_share(piece->rows * bnk_ceil_div(piece->length, width), 4));
}

double bnk_row_moments(const bnk_operands *o, const bnk_piece *piece, bnk_moments *moments,
                       bnk_application *other)
{
    double count = 0;
    *moments = (bnk_moments){ 0, 0, 0 };
    const int32_t is_double = o->cut->grid.is_double;
    const int64_t width = tile_width(piece->length, is_double);
    bnk_piece tile = *piece;
    for (int64_t at = 0; at < piece->length; at += width) {
        tile.offset = piece->offset + at;
        tile.length = bnk_min(width, piece->length - at);
        const int64_t height = tile_height(piece, width, tile.length, is_double);
        for (int64_t row = 0; row < piece->rows; row += height) {
            tile.row = piece->row + row;
            tile.rows = bnk_min(height, piece->rows - row);
            double n;
            const bnk_moments own = tile_moments(o, piece, &tile, &n, other);
            bnk_moments_add(moments, count, &own, n, 1);
            count += n;
        }
    }
    return count;
}
