/* Which leaf takes a stretch of values: see epilogue.h. */
#include "epilogue.h"

int bnk_sums_plainly(const bnk_operands *o)
{
    return o->epilogue.activation.kind == BNK_ACTIVATION_NONE;
}

/* ---- stretches ---- */

static bnk_stretch stretch_at(const bnk_operands *o, int64_t at, int64_t count,
                              const uint8_t *positions)
{
    const bnk_epilogue *e = &o->epilogue;
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
        .pass_masked = o->positions.pass_masked,
        .positions = positions,
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

void bnk_epilogue_row(const bnk_operands *o, int64_t at, int64_t count, const uint8_t *positions,
                      const bnk_linear *f)
{
    for (int64_t i = 0, n; i < count; i += n) {
        n = share(o, at + i, count - i);
        const bnk_stretch s = stretch_at(o, at + i, n, positions ? positions + i : NULL);
        o->leaves->row_stretch(&s, f);
    }
}

void bnk_epilogue_line(const bnk_operands *o, int64_t at, int64_t count, const uint8_t *positions,
                       const bnk_linears *f)
{
    const bnk_stretch s = stretch_at(o, at, count, positions);
    o->leaves->column_stretch(&s, f);
}

int bnk_usual_rows(const bnk_operands *o, int64_t at, int64_t rows, int64_t stride, int64_t count,
                   const bnk_linear *f)
{
    const bnk_stretch s = stretch_at(o, at, count, NULL);
    return o->leaves->row_usual && !o->positions.mask && o->leaves->row_usual(&s, rows, stride, f);
}

int bnk_usual_lines(const bnk_operands *o, int64_t at, int64_t lines, int64_t stride, int64_t count,
                    const bnk_linears *f)
{
    const bnk_stretch s = stretch_at(o, at, count, NULL);
    return o->leaves->column_usual && !o->positions.mask &&
           o->leaves->column_usual(&s, lines, stride, f);
}

void bnk_gated_row_sums(const bnk_operands *o, int64_t at, int64_t rows, int64_t stride,
                        int64_t count, const uint8_t *positions, int64_t ahead, bnk_row_sums *sums)
{
    const int64_t positions_stride = o->cut->grid.inner;
    const bnk_stretch s = stretch_at(o, at, count, positions);
    if (sums->in_chains)
        o->leaves->row_gated_chains(&s, rows, stride, positions_stride, (float)sums->pivot,
                                    &sums->chains);
    else
        o->leaves->row_gated_sums(&s, rows, stride, positions_stride, ahead, sums->pivot,
                                  &sums->wide);
}

void bnk_gated_column_sums(const bnk_operands *o, int64_t at, int64_t lines, int64_t stride,
                           int64_t count, const uint8_t *positions, int64_t positions_stride,
                           bnk_column_sums *sums)
{
    const bnk_stretch s = stretch_at(o, at, count, positions);
    o->leaves->column_gated_sums(&s, lines, stride, positions_stride, sums->wide.pivot,
                                 sums->wide.open[0], sums->wide.open[1]);
}

void bnk_gated_column_chains(const bnk_operands *o, int64_t at, int lines, int64_t stride,
                             int64_t second, int64_t count, const uint8_t *positions,
                             int64_t positions_stride, bnk_column_sums *sums)
{
    const bnk_stretch s = stretch_at(o, at, count, positions);
    o->leaves->column_gated_chains(&s, lines, stride, second, positions_stride, sums->chains.pivot,
                                   &sums->chains.sums);
}
