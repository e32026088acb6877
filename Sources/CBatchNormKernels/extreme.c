/* Applies the coefficients of an extreme channel, value by value: see extreme.h. */
#include "extreme.h"

#include "activations.h"
#include "apply.h"
#include "bits.h"
#include "halves.h"

/* What float64 holds of a coefficient that meets float32 values: beyond, every result overflows, or is 0, alike. */
static double bounded(bnk_scaled s)
{
    enum { ROOM = 800 };
    return s.exponent > ROOM ? ldexp(s.number, ROOM) : bnk_scaled_value(s);
}

/* The coefficients as numbers of float64, for tensors that are computed with in float32. */
typedef struct numbers {
    double gain, offset, factor;
} numbers;

/* Whether a term is there does not hang on its coefficient: 0 times NaN or infinity is NaN. */
typedef struct terms {
    bool x, dy;
} terms;

/* Not rounded to the element type yet. */
static double of_floats(const bnk_extreme *e, numbers n, terms has, double x, double dy)
{
    double result = n.offset;
    if (has.x) result += ((x - e->mean) - e->mean_rest) * n.gain;
    if (has.dy) result += dy * n.factor;
    return result;
}

static double of_doubles(const bnk_extreme *e, terms has, double x, double dy)
{
    bnk_scaled result = e->offset;
    if (has.dy) result = bnk_scaled_sum(bnk_scaled_product(bnk_scaled_of(dy), e->factor), result);
    if (has.x) {
        const bnk_scaled whole = bnk_scaled_sum(bnk_scaled_of(x), bnk_scaled_of(-e->mean));
        const bnk_scaled centered = bnk_scaled_sum(whole, bnk_scaled_of(-e->mean_rest));
        result = bnk_scaled_sum(bnk_scaled_product(centered, e->gain), result);
    }
    return bnk_scaled_value(result);
}

static double result_of(const bnk_operands *o, const bnk_extreme *e, numbers n, double x, double dy)
{
    const terms has = { !o->frozen, o->dy != NULL };
    return o->cut->grid.is_double ? of_doubles(e, has, x, dy) : of_floats(e, n, has, x, dy);
}

static void put(const bnk_grid *grid, void *tensor, int64_t i, double value)
{
    value = bnk_plain(value);
    switch (grid->half) {
    case BNK_HALF_BFLOAT16:
        ((bnk_bf16 *)tensor)[i] = bnk_narrow_one_bf16((float)value);
        break;
    case BNK_HALF_FLOAT16:
        ((bnk_f16 *)tensor)[i] = bnk_narrow_one_f16((float)value);
        break;
    default:
        bnk_set(tensor, grid->is_double, i, value);
    }
}

/* The epilogue: that of epilogue_body.h, for one value. */

#define CHOOSE(which, yes, no) ((which) ? (yes) : (no))

static double activated(const bnk_activation *a, double v, int32_t is_double)
{
    const double slope = bnk_round(a->slope, is_double), zero = 0;
    switch (a->kind) {
#define ROW(kind, forward, blocked) \
    case BNK_ACTIVATION_##kind:     \
        return bnk_round(forward, is_double);
        BNK_ACTIVATIONS(ROW)
#undef ROW
    default:
        return v;
    }
}

static double blocked_gradient(const bnk_activation *a, double dy, int32_t is_double)
{
    const double slope = bnk_round(a->slope, is_double), zero = 0;
    switch (a->kind) {
#define ROW(kind, forward, blocked) \
    case BNK_ACTIVATION_##kind:     \
        return bnk_round(blocked, is_double);
        BNK_ACTIVATIONS(ROW)
#undef ROW
    default:
        return dy;
    }
}
#undef CHOOSE

static void forward_one(const bnk_operands *o, const bnk_extreme *e, numbers n, int64_t i,
                        bool masked)
{
    const bnk_grid *grid = &o->cut->grid;
    const bnk_epilogue *p = &o->epilogue;
    const double x = bnk_element(grid, o->x, i);
    double v = bnk_round(result_of(o, e, n, x, 0), grid->is_double);
    if (p->residual) v = bnk_round(v + bnk_element(grid, p->residual, i), grid->is_double);
    v = activated(&p->activation, v, grid->is_double);
    if (masked) v = o->positions.pass_masked ? x : 0;
    put(grid, o->y, i, v);
    if (p->written_activation_mask) {
        const bool passed = !masked && !(bnk_element(grid, o->y, i) <= 0);
        bnk_put_some_bits(p->written_activation_mask + i / 8, 1 << i % 8, passed << i % 8);
    }
}

static void gradient_one(const bnk_operands *o, const bnk_extreme *e, numbers n, int64_t i,
                         bool masked)
{
    const bnk_grid *grid = &o->cut->grid;
    const bnk_epilogue *p = &o->epilogue;
    const double dy = bnk_element(grid, o->dy, i);
    const double x = o->frozen ? 0 : bnk_element(grid, o->x, i);
    double z = dy;
    const uint8_t *bits = p->activation_mask;
    if (p->activation.kind != BNK_ACTIVATION_NONE &&
        (bits ? !(bits[i / 8] >> i % 8 & 1) : bnk_element(grid, p->output, i) <= 0))
        z = blocked_gradient(&p->activation, dy, grid->is_double);
    if (masked) z = 0;
    if (p->grad_residual) put(grid, p->grad_residual, i, z);
    if (!o->y) return;
    double v = result_of(o, e, n, x, z);
    if (masked) v = o->positions.pass_masked ? dy : 0;
    put(grid, o->y, i, v);
}

void bnk_apply_extreme(const bnk_operands *o, const bnk_piece *piece, int64_t channel,
                       const bnk_extreme *e)
{
    const bnk_cut *cut = o->cut;
    const int64_t inner = cut->grid.inner;
    const numbers n = { bounded(e->gain), bounded(e->offset), bounded(e->factor) };
    const uint8_t *positions = o->positions.mask;
    for (int64_t row = piece->row; row < piece->row + piece->rows; row++)
        for (int64_t at = piece->offset; at < piece->offset + piece->length; at++) {
            const bool masked = positions && !positions[row * inner + at];
            (o->dy ? gradient_one : forward_one)(o, e, n, row * cut->stride + channel * inner + at,
                                                 masked);
        }
}
