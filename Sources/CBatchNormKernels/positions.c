/* Which positions take part, and sums over these: see positions.h. */
#include "positions.h"

#include <string.h>

int64_t bnk_count_taking_part(const uint8_t *mask, int64_t count)
{
    typedef uint8_t bytes __attribute__((vector_size(16)));
    int64_t taking_part = 0, i = 0;
    while (count - i >= 16) {
        /* Sixteen counts side by side, for as long as they fit in a byte. */
        bytes part = { 0 };
        const int64_t end = i + bnk_min(255, (count - i) / 16) * 16;
        for (; i < end; i += 16) {
            bytes own;
            memcpy(&own, mask + i, sizeof own);
            part -= (bytes)(own != 0); /* of all ones, -1 */
        }
        for (int k = 0; k < 16; k++) taking_part += part[k];
    }
    for (; i < count; i++) taking_part += mask[i] != 0;
    return taking_part;
}

int64_t bnk_end_taking_part(const uint8_t *positions, int64_t count)
{
    for (uint64_t eight; count >= 8; count -= 8) {
        memcpy(&eight, positions + count - 8, 8);
        if (eight) break;
    }
    while (count > 0 && !positions[count - 1]) count--;
    return count;
}

const uint8_t *bnk_positions_of_row(const bnk_operands *o, int64_t row, int64_t offset,
                                    int64_t length)
{
    if (!o->positions.mask) return NULL;
    const uint8_t *positions = o->positions.mask + row * o->cut->grid.inner + offset;
    return memchr(positions, 0, (size_t)length) ? positions : NULL;
}

int64_t bnk_prefix_taking_part(const uint8_t *positions, int64_t length)
{
    const uint8_t *first_masked = memchr(positions, 0, (size_t)length);
    const int64_t prefix = first_masked ? first_masked - positions : length;
    return bnk_count_taking_part(positions + prefix, length - prefix) == 0 ? prefix : -1;
}

const uint8_t *bnk_positions_of_line(const bnk_operands *o, int64_t row, int64_t rows,
                                     int64_t channels, uint8_t *columns)
{
    const int64_t inner = o->cut->grid.inner;
    if (!bnk_positions_of_row(o, row, 0, rows * inner)) return NULL;
    const uint8_t *positions = o->positions.mask + row * inner;
    uint8_t *to = columns;
    if (inner == 1) /* rows of channels */
        for (int64_t r = 0; r < rows; r++, to += channels)
            memset(to, positions[r], (size_t)channels);
    else
        for (int64_t c = 0; c < channels; c++, to += inner) memcpy(to, positions, (size_t)inner);
    return columns;
}

bnk_taking_part bnk_taking_part_in(const bnk_operands *o, int64_t row, int64_t rows, int64_t offset,
                                   int64_t length)
{
    const int64_t inner = o->cut->grid.inner;
    bnk_taking_part found = { rows * length, row, offset };
    if (!o->positions.mask) return found;
    found.count = 0;
    for (int64_t r = row; r < row + rows; r++) {
        const uint8_t *positions = o->positions.mask + r * inner + offset;
        const int64_t own = bnk_count_taking_part(positions, length);
        if (own > 0 && found.count == 0) {
            int64_t first = 0;
            while (!positions[first]) first++;
            found.row = r;
            found.offset = offset + first;
        }
        found.count += own;
    }
    return found;
}

/* ---- masked values ---- */

/* A line or a stretch in computing type. */
typedef struct buffer {
    _Alignas(64) double values[BNK_MAX_COLUMNS];
} buffer;

/* The leaves that work on such. */
static const bnk_leaves *computing_leaves(const bnk_operands *o)
{
    return bnk_computing_leaves_for(o->cut->plan.isa, &o->cut->grid);
}

void bnk_masked_row_sums(const bnk_operands *o, int64_t at, int64_t count, const uint8_t *positions,
                         bnk_row_sums *sums)
{
    const bnk_leaves *leaves = computing_leaves(o);
    buffer x;
    double filler; /* the pivot itself adds nothing */
    bnk_set(&filler, o->cut->grid.is_double, 0, sums->pivot);
    o->leaves->fill_masked(bnk_value(o, o->x, at), positions, &filler, 0, x.values, count);
    if (sums->in_chains)
        leaves->row_chains(x.values, 1, 0, count, (float)sums->pivot, &sums->chains);
    else
        leaves->row_sums(x.values, 1, 0, count, sums->pivot, &sums->wide);
}

void bnk_masked_line_sums(const bnk_operands *o, int64_t at, int64_t count,
                          const uint8_t *positions, bnk_column_sums *sums)
{
    const bnk_leaves *leaves = computing_leaves(o);
    buffer x, fillers;
    if (sums->in_chains) {
        o->leaves->fill_masked(bnk_value(o, o->x, at), positions, sums->chains.pivot, 1, x.values,
                               count);
        leaves->column_chains(x.values, 1, 0, count, sums->chains.pivot, &sums->chains.sums);
        return;
    }
    for (int64_t j = 0; j < count; j++)
        bnk_set(fillers.values, o->cut->grid.is_double, j, sums->wide.pivot[j]);
    o->leaves->fill_masked(bnk_value(o, o->x, at), positions, fillers.values, 1, x.values, count);
    leaves->column_sums(x.values, 1, 0, count, 0, sums->wide.pivot, sums->wide.open[0],
                        sums->wide.open[1]);
}
