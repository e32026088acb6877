/*
 * A tile: the part of a piece whose moments are taken around one pivot. Here are its size, which is part of the order
 * of the sums, and the pivot.
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

/*
 * Whether sums without a pivot are good enough. With a mean of at most 256 deviations the subtraction costs
 * 16 of float64's 53 bits, beside what adding up has cost; float32 results need 29. Sums of the 16-bit types are
 * good to 22 bits, of which a mean of 4 deviations leaves 18; squares below 2^-100 may be gone, and those of
 * bfloat16 be infinite, for they are added up in float. Not where a value is NaN or infinite. A channel of zeros
 * has a mean of none.
 */
static inline bool bnk_needs_no_pivot(const bnk_grid *grid, double count, double sum,
                                      double squares)
{
    const double mean = sum / count, m2 = squares - sum * mean;
    if (grid->half == BNK_HALF_NONE) return sum * mean <= 0x1p16 * m2;
    return sum * mean <= 0x1p4 * m2 && squares >= count * 0x1p-100 && isfinite(squares);
}

/*
 * Whether a pivot is near enough to the mean for a float64 result, which has no bits to spare: one that is far
 * from it costs up to log2(n) of them, one within a deviation 1. The mean that its sums give is nearer.
 */
static inline bool bnk_is_near(double count, double sum, double squares)
{
    const double shift = sum / count, m2 = squares - sum * shift;
    return sum * shift <= m2;
}

/*
 * A pivot for the values of a channel that take part, of which `found` has the first: in rows up to `end`, of which
 * `length` values from `offset` on are looked at. In float64 the mean of the first few, for the first alone is as far
 * from the mean as it happens to be. Where computing in float a value of that type, with which masked values are filled
 * up.
 */
static inline double bnk_pivot_of(const bnk_operands *o, int64_t channel, bnk_taking_part found,
                                  int64_t end, int64_t offset, int64_t length)
{
    enum { LOOKED_AT = 16 };
    const bnk_cut *cut = o->cut;
    const bnk_grid *grid = &cut->grid;
    const uint8_t *mask = o->positions.mask;
    int64_t row = found.row, at = found.offset;
    const double first = bnk_element(grid, o->x, bnk_element_at(cut, row, channel, at));
    if (!grid->is_double) return first;
    double sum = 0; /* of distances, so that the mean of equal values is that value */
    int taken = 0;
    for (int i = 0; i < LOOKED_AT && row < end; i++) {
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

#endif
