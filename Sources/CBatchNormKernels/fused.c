/* Which leaf takes a stretch of values: see fused.h. */
#include "fused.h"

#include <string.h>

int bnk_applies_plainly(const bnk_operands *o)
{
    const bnk_extras *e = o->extras;
    if (!e) return 1;
    return e->activation.kind == BNK_ACTIVATION_NONE && !e->residual &&
           !e->written_activation_mask && !e->grad_residual;
}

int bnk_sums_plainly(const bnk_operands *o)
{
    return !o->extras || o->extras->activation.kind == BNK_ACTIVATION_NONE;
}

/* ---- masks ---- */

int64_t bnk_count_kept(const uint8_t *positions, int64_t count)
{
    typedef uint8_t bytes __attribute__((vector_size(16)));
    int64_t kept = 0, i = 0;
    while (count - i >= 16) {
        /* Sixteen counts side by side, for as long as they fit in a byte. */
        bytes part = { 0 };
        const int64_t end = i + bnk_min(255, (count - i) / 16) * 16;
        for (; i < end; i += 16) {
            bytes own;
            memcpy(&own, positions + i, sizeof own);
            part -= (bytes)(own != 0); /* of all ones, -1 */
        }
        for (int k = 0; k < 16; k++) kept += part[k];
    }
    for (; i < count; i++) kept += positions[i] != 0;
    return kept;
}

const uint8_t *bnk_keep_row(const bnk_operands *o, int64_t row, int64_t offset, int64_t length)
{
    if (!o->extras || !o->extras->positions) return NULL;
    const uint8_t *keep = o->extras->positions + row * o->cut->grid.inner + offset;
    return bnk_count_kept(keep, length) == length ? NULL : keep;
}

int64_t bnk_kept_prefix(const uint8_t *keep, int64_t length)
{
    const int64_t kept = bnk_count_kept(keep, length);
    return bnk_count_kept(keep, kept) == kept ? kept : -1;
}

const uint8_t *bnk_keep_line(const bnk_operands *o, int64_t row, int64_t fold, int64_t channels,
                             uint8_t *columns)
{
    const int64_t inner = o->cut->grid.inner;
    if (!bnk_keep_row(o, row, 0, fold * inner)) return NULL;
    const uint8_t *positions = o->extras->positions + row * inner;
    uint8_t *to = columns;
    if (inner == 1) /* fold rows of channels */
        for (int64_t f = 0; f < fold; f++, to += channels)
            memset(to, positions[f], (size_t)channels);
    else
        for (int64_t c = 0; c < channels; c++, to += inner) memcpy(to, positions, (size_t)inner);
    return columns;
}

bnk_kept bnk_kept_in(const bnk_operands *o, int64_t row, int64_t rows, int64_t offset,
                     int64_t length)
{
    const int64_t inner = o->cut->grid.inner;
    bnk_kept kept = { rows * length, row, offset };
    if (!o->extras || !o->extras->positions) return kept;
    kept.count = 0;
    for (int64_t r = row; r < row + rows; r++) {
        const uint8_t *keep = o->extras->positions + r * inner + offset;
        const int64_t own = bnk_count_kept(keep, length);
        if (own > 0 && kept.count == 0) {
            int64_t first = 0;
            while (!keep[first]) first++;
            kept.row = r;
            kept.offset = offset + first;
        }
        kept.count += own;
    }
    return kept;
}

/* ---- stretches ---- */

static bnk_stretch stretch_at(const bnk_operands *o, int64_t at, int64_t count, const uint8_t *keep)
{
    const bnk_extras *e = o->extras;
    bnk_stretch s = {
        .way = !o->dy      ? BNK_WAY_FORWARD
               : o->frozen ? BNK_WAY_FROZEN
                           : BNK_WAY_GRADIENT,
        .stream = o->cut->plan.nontemporal,
        .at = at,
        .count = count,
        .x = bnk_value(o, o->x, at),
        .dy = bnk_value(o, o->dy, at),
        .y = bnk_value(o, o->y, at),
        .activation = e->activation,
        .pass_masked = e->pass_masked,
        .keep = keep,
    };
    if (!o->dy) {
        s.residual = bnk_value(o, e->residual, at);
        s.written_activation_mask = e->written_activation_mask;
    } else {
        s.grad_residual = bnk_value(o, e->grad_residual, at);
        if (e->activation.kind != BNK_ACTIVATION_NONE) {
            s.activation_mask = e->activation_mask;
            s.output = s.activation_mask ? NULL : bnk_value(o, e->output, at);
        }
    }
    return s;
}

/* How much of a row is taken at once. All but the last ends where a cache line of y does. */
static int64_t share(const bnk_operands *o, int64_t at, int64_t left)
{
    if (left <= BNK_STRETCH) return left;
    const char *end = bnk_value(o, bnk_written(o), at + BNK_STRETCH);
    return BNK_STRETCH - (int64_t)((uintptr_t)end % 64) / o->cut->element;
}

void bnk_fused_row(const bnk_operands *o, int64_t at, int64_t count, const uint8_t *keep,
                   const bnk_linear *f)
{
    for (int64_t i = 0, n; i < count; i += n) {
        n = share(o, at + i, count - i);
        const bnk_stretch s = stretch_at(o, at + i, n, keep ? keep + i : NULL);
        o->leaves->row_stretch(&s, f);
    }
}

void bnk_fused_line(const bnk_operands *o, int64_t at, int64_t count, const uint8_t *keep,
                    const bnk_linears *f)
{
    const bnk_stretch s = stretch_at(o, at, count, keep);
    o->leaves->column_stretch(&s, f);
}

void bnk_gated_row_sums(const bnk_operands *o, int64_t at, int64_t rows, int64_t stride,
                        int64_t count, const uint8_t *keep, int64_t ahead, double mean,
                        bnk_lane_sums *sums)
{
    const bnk_stretch s = stretch_at(o, at, count, keep);
    o->leaves->row_gated_sums(&s, rows, stride, o->cut->grid.inner, ahead, mean, sums);
}

void bnk_gated_column_sums(const bnk_operands *o, int64_t at, int64_t lines, int64_t stride,
                           int64_t count, const uint8_t *keep, int64_t keep_stride,
                           const double *mean, double *sum, double *product)
{
    const bnk_stretch s = stretch_at(o, at, count, keep);
    o->leaves->column_gated_sums(&s, lines, stride, keep_stride, mean, sum, product);
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

void bnk_masked_row_sums(const bnk_operands *o, int64_t at, int64_t count, const uint8_t *keep,
                         const double *pivot, bnk_lane_sums *sums)
{
    buffer x;
    double filler;
    /* What adds nothing: the pivot itself, or 0. */
    bnk_set(&filler, o->cut->grid.is_double, 0, pivot ? *pivot : 0);
    o->leaves->fill_masked(bnk_value(o, o->x, at), keep, &filler, 0, x.values, count);
    if (pivot)
        computing_leaves(o)->row_sums(x.values, 1, 0, count, *pivot, sums);
    else
        computing_leaves(o)->row_squares(x.values, 1, 0, count, 0, sums);
}

void bnk_masked_line_sums(const bnk_operands *o, int64_t at, int64_t count, const uint8_t *keep,
                          const double *pivot, double *sum, double *squares)
{
    buffer x, fillers;
    for (int64_t j = 0; j < count; j++)
        bnk_set(fillers.values, o->cut->grid.is_double, j, pivot ? pivot[j] : 0);
    o->leaves->fill_masked(bnk_value(o, o->x, at), keep, fillers.values, 1, x.values, count);
    if (pivot)
        computing_leaves(o)->column_sums(x.values, 1, 0, count, 0, pivot, sum, squares);
    else
        computing_leaves(o)->column_squares(x.values, 1, 0, count, 0, sum, squares);
}
