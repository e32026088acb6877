/* The moments of a piece by rows: the values of one channel fill the vectors. */
#include "piece_moments.h"
#include "tile.h"

/* ---- sums around a pivot ---- */

/* Adds `rows` rows of `length` values. */
static void add_values(const bnk_operands *o, int64_t at, int64_t rows, int64_t length,
                       bnk_row_sums *sums)
{
    const void *x = bnk_value(o, o->x, at);
    const int64_t stride = o->cut->stride;
    if (sums->in_chains)
        o->leaves->row_chains(x, rows, stride, length, (float)sums->pivot, &sums->chains);
    else
        o->leaves->row_sums(x, rows, stride, length, sums->pivot, &sums->wide);
}

/* Adds a tile; `other`, if not NULL, goes on meanwhile. */
static void add_rows(const bnk_operands *o, const bnk_piece *tile, bnk_row_sums *sums,
                     bnk_application *other)
{
    const bnk_cut *cut = o->cut;
    const int32_t is_double = cut->grid.is_double;
    const int64_t start = bnk_first_element(cut, tile);
    /* Four rows at once or one, as the leaf takes them; all in one call where nothing else goes on. */
    for (int64_t row = 0, together; row < tile->rows; row += together) {
        together = tile->rows - row >= 4 ? 4 : 1;
        if (!other && !is_double) together = tile->rows;
        const int64_t turn = other ? bnk_turn_of(tile->length, together) : tile->length;
        for (int64_t at = 0, count; at < tile->length; at += count) {
            count = bnk_block_part(at, bnk_min(at + turn, tile->length), is_double);
            add_values(o, start + row * cut->stride + at, together, count, sums);
            if (is_double && ((at + count) % BNK_BLOCK_VALUES == 0 || at + count == tile->length))
                bnk_end_block(&sums->wide);
            if (other) bnk_apply_some(other, together * count);
        }
    }
}

/* The same where positions are masked; rows of which only the first values take part, as those of padded
 * sequences, go the straight way. */
static void add_masked_rows(const bnk_operands *o, const bnk_piece *tile, bnk_row_sums *sums,
                            bnk_application *other)
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
            if (prefix < 0)
                bnk_masked_row_sums(o, start + i, count, positions + i, sums);
            else if (straight > 0)
                add_values(o, start + i, 1, straight, sums);
            if (cut->grid.is_double) bnk_end_block(&sums->wide);
            if (other) bnk_apply_some(other, count);
        }
    }
}

/* The sums of a tile, some of whose positions may be masked. */
static bnk_totals sums_of(const bnk_operands *o, const bnk_piece *tile, bool masked, bool in_chains,
                          double pivot, bnk_application *other)
{
    bnk_row_sums sums;
    bnk_begin_row_sums(&sums, in_chains, pivot);
    if (masked)
        add_masked_rows(o, tile, &sums, other);
    else
        add_rows(o, tile, &sums, other);
    return bnk_row_totals(&sums, o->cut->grid.is_double);
}

static bool is_masked(const bnk_piece *piece, bnk_taking_part found)
{
    return found.count < piece->rows * piece->length;
}

/* ---- wide sums, tile by tile ---- */

/* Of the tile's values that take part, and how many these are. */
static bnk_moments tile_moments(const bnk_operands *o, const bnk_piece *tile, double *count,
                                bnk_application *other)
{
    const bnk_taking_part found =
        bnk_taking_part_in(o, tile->row, tile->rows, tile->offset, tile->length);
    const double n = *count = (double)found.count;
    if (n == 0) return (bnk_moments){ 0, 0, 0 };
    const bool masked = is_masked(tile, found);
    double pivot =
        bnk_wide_pivot(o, tile->channel, found, tile->row + tile->rows, tile->offset, tile->length);
    bnk_totals t = sums_of(o, tile, masked, false, pivot, other);
    if (o->cut->grid.is_double && !bnk_is_near(n, t)) {
        pivot += t.first / n;
        t = sums_of(o, tile, masked, false, pivot, NULL);
    }
    return bnk_moments_of_sums(n, pivot, t.first, t.second);
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

static void wide_moments(const bnk_operands *o, const bnk_piece *piece, bnk_moments *moments,
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
            const bnk_moments own = tile_moments(o, &tile, &n, other);
            bnk_moments_add(moments, count, &own, n, 1);
            count += n;
        }
    }
}

/* ---- chains, all of a piece around one pivot ---- */

/* The mean of the first few values. */
static double first_pivot(const bnk_operands *o, const bnk_piece *piece, bnk_taking_part found)
{
    const int64_t looked_at = 64;
    if (is_masked(piece, found) || piece->length < looked_at)
        return bnk_round(bnk_mean_of_first(o, piece->channel, found, piece->row + piece->rows,
                                           piece->offset, piece->length),
                         false);
    const int64_t at = bnk_first_element(o->cut, piece);
    const double first = bnk_element(&o->cut->grid, o->x, at);
    bnk_row_sums sums;
    bnk_begin_row_sums(&sums, true, first);
    add_values(o, at, 1, looked_at, &sums);
    const bnk_totals t = bnk_row_totals(&sums, false);
    return bnk_round(first + t.first / (double)looked_at, false);
}

/* Returns false where chains do not do. A pivot that proves far from the mean is replaced by what its sums say. */
static bool chain_moments(const bnk_operands *o, const bnk_piece *piece, bnk_taking_part found,
                          bnk_moments *moments, bnk_application *other)
{
    const double n = (double)found.count;
    double pivot = first_pivot(o, piece, found);
    for (int tries = 0; tries < BNK_PIVOTS; tries++) {
        const bnk_totals t = sums_of(o, piece, is_masked(piece, found), true, pivot, other);
        if (!bnk_chains_hold(n, t)) return false;
        if (bnk_is_near(n, t)) {
            *moments = bnk_moments_of_sums(n, pivot, t.first, t.second);
            return true;
        }
        pivot = bnk_round(pivot + t.first / n, false);
        other = NULL; /* it has gone on as far as it should */
    }
    return false;
}

double bnk_row_moments(const bnk_operands *o, const bnk_piece *piece, bnk_moments *moments,
                       bnk_application *other)
{
    const bnk_taking_part found =
        bnk_taking_part_in(o, piece->row, piece->rows, piece->offset, piece->length);
    if (bnk_has_many(&o->cut->grid, (double)found.count, BNK_MANY_MOMENTS)) {
        if (chain_moments(o, piece, found, moments, other)) return (double)found.count;
        other = NULL;
    }
    wide_moments(o, piece, moments, other);
    return (double)found.count;
}
