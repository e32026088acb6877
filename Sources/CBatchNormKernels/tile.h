/*
 * A tile: the part of a piece that sums in float64 take around one pivot, and merge with the others. Here are its size,
 * which is part of the order of the sums, and pivots, those of chains included, which take a piece whole.
 */
#ifndef BNK_TILE_H
#define BNK_TILE_H

#include <math.h>
#include <stdbool.h>

#include "positions.h"
#include "halves.h"

/* Four rows of at most BNK_TILE values, or more and shorter ones; of float64 tensors at least a sixteenth of a piece,
 * for merging many tiles is a chain of additions as well. */
enum { BNK_TILE = 16384, BNK_TILES = 16 };
static inline int64_t bnk_tile_share(int64_t size, int64_t step)
{
    return bnk_ceil_div(bnk_ceil_div(size, BNK_TILES), step) * step;
}

/* So many values make a pivot that is within a deviation of the mean but once in ten thousand times. */
enum { BNK_LOOKED_AT = 16 };

/*
 * The mean of the first few values of a channel that take part, of which `found` has the first: in rows up to `end`, of
 * which `length` values from `offset` on are looked at. Of equal values it is that value.
 */
static inline double bnk_mean_of_first(const bnk_operands *o, int64_t channel,
                                       bnk_taking_part found, int64_t end, int64_t offset,
                                       int64_t length)
{
    const bnk_cut *cut = o->cut;
    const bnk_grid *grid = &cut->grid;
    const uint8_t *mask = o->positions.mask;
    int64_t row = found.row, at = found.offset;
    const double first = bnk_element(grid, o->x, bnk_element_at(cut, row, channel, at));
    double sum = 0; /* of distances */
    int taken = 0;
    for (int i = 0; i < BNK_LOOKED_AT && row < end; i++) {
        if (!mask || mask[row * grid->inner + at]) {
            sum += bnk_element(grid, o->x, bnk_element_at(cut, row, channel, at)) - first;
            taken++;
        }
        if (++at == offset + length) {
            at = offset;
            row++;
        }
    }
    return first + sum / taken;
}

/* A pivot for wide sums. For float64 results that mean, for the first value alone is as far from the mean of all as it happens
 * to be. Where computing in float the first value, with which masked ones are filled up. */
static inline double bnk_wide_pivot(const bnk_operands *o, int64_t channel, bnk_taking_part found,
                                    int64_t end, int64_t offset, int64_t length)
{
    if (o->cut->grid.is_double) return bnk_mean_of_first(o, channel, found, end, offset, length);
    return bnk_element(&o->cut->grid, o->x,
                       bnk_element_at(o->cut, found.row, channel, found.offset));
}

#endif
