/*
 * Applying with an activation, a residual or masked positions. Included by leaves_body.h.
 *
 * What a stretch does not have is skipped by branches that go the same way all along it.
 */

/* ---- the way of a line ---- */

#define CHOOSE(which, yes, no) BNK_NAME(choose)(which, yes, no)

BNK_INLINE BNK_LINE BNK_NAME(activated)(const bnk_activation *a, BNK_LINE v)
{
    const BNK_C slope = (BNK_C)a->slope;
    const BNK_LINE zero = { 0 };
    switch (a->kind) {
#define ROW(kind, forward, blocked) \
    case BNK_ACTIVATION_##kind:     \
        return forward;
        BNK_ACTIVATIONS(ROW)
#undef ROW
    default:
        return v;
    }
}

BNK_INLINE BNK_LINE BNK_NAME(blocked_gradient)(const bnk_activation *a, BNK_LINE dy)
{
    const BNK_C slope = (BNK_C)a->slope;
    const BNK_LINE zero = { 0 };
    switch (a->kind) {
#define ROW(kind, forward, blocked) \
    case BNK_ACTIVATION_##kind:     \
        return blocked;
        BNK_ACTIVATIONS(ROW)
#undef ROW
    default:
        return dy;
    }
}

#undef CHOOSE

/* What comes after the formula: the residual, the activation, what is masked, the mask's bits. */
BNK_INLINE BNK_LINE BNK_NAME(activate)(const bnk_stretch *s, int64_t i, int64_t count, int masks,
                                       uint8_t *bits, int64_t bit, BNK_LINE v)
{
    const BNK_LINE zero = { 0 };
    if (s->residual) v += BNK_NAME(widen_some)((const BNK_T *)s->residual + i, count);
    v = BNK_NAME(activated)(&s->activation, v);
    const BNK_LINE vanishing = zero + (BNK_C)BNK_VANISHING;
    if (!masks || !s->positions) {
        if (s->written_activation_mask) BNK_NAME(bits_of_choice)(~(v <= vanishing), bits, bit + i);
        return v;
    }
    const BNK_CHOICE takes_part = BNK_NAME(choice_of_bytes)(s->positions + i, count);
    if (s->written_activation_mask)
        BNK_NAME(bits_of_choice)(~(v <= vanishing) & takes_part, bits, bit + i);
    return BNK_NAME(choose)(takes_part, v,
                            s->pass_masked ? BNK_NAME(widen_some)((const BNK_T *)s->x + i, count)
                                           : zero);
}

/* dy back through the activation, 0 where masked. */
BNK_INLINE BNK_LINE BNK_NAME(gate)(const bnk_stretch *s, int64_t i, int64_t count, int masks)
{
    const BNK_LINE zero = { 0 };
    BNK_LINE z = BNK_NAME(widen_some)((const BNK_T *)s->dy + i, count);
    /* Each case by itself, for a choice that comes from either would travel as bytes. */
    if (s->activation_mask) {
        const BNK_LINE other = BNK_NAME(blocked_gradient)(&s->activation, z);
        z = BNK_NAME(choose)(BNK_NAME(choice_of_bits)(s->activation_mask, s->at + i, count), z,
                             other);
    } else if (s->output) {
        const BNK_LINE other = BNK_NAME(blocked_gradient)(&s->activation, z);
        const BNK_LINE y = BNK_NAME(widen_some)((const BNK_T *)s->output + i, count);
        z = BNK_NAME(choose)(y <= zero, other, z);
    }
    if (masks && s->positions)
        z = BNK_NAME(choose)(BNK_NAME(choice_of_bytes)(s->positions + i, count), z, zero);
    return z;
}

/* ---- application ---- */

BNK_INLINE void BNK_NAME(apply_some)(const bnk_stretch *s, int64_t i, int64_t count, int way,
                                     int masks, uint8_t *bits, int64_t bit, BNK_NAME(line_of) f)
{
    BNK_LINE v, z = { 0 };
    if (way == BNK_WAY_FORWARD) {
        const BNK_LINE x = BNK_NAME(widen_some)((const BNK_T *)s->x + i, count);
        v = BNK_FMA(BNK_FMA(x, f.scale, f.center), f.slope, f.offset);
        v = BNK_NAME(activate)(s, i, count, masks, bits, bit, v);
    } else {
        z = BNK_NAME(gate)(s, i, count, masks);
        if (way == BNK_WAY_FROZEN) {
            v = BNK_FMA(BNK_FMA(z, f.scale, f.center), f.slope, f.offset);
        } else {
            const BNK_LINE x = BNK_NAME(widen_some)((const BNK_T *)s->x + i, count);
            const BNK_LINE t = BNK_FMA(x, f.scale, f.center);
            v = BNK_FMA(z, f.factor, BNK_FMA(t, f.slope, BNK_FMA(t, f.slope_rest, f.offset)));
        }
        if (masks && s->positions) {
            const BNK_LINE zero = { 0 };
            v = BNK_NAME(choose)(
                BNK_NAME(choice_of_bytes)(s->positions + i, count), v,
                s->pass_masked ? BNK_NAME(widen_some)((const BNK_T *)s->dy + i, count) : zero);
        }
        if (s->grad_residual) BNK_NAME(narrow_some)((BNK_T *)s->grad_residual + i, z, count, 0);
    }
    if (s->y) BNK_NAME(narrow_some)((BNK_T *)s->y + i, v, count, s->stream);
}

/* The coefficients from column `i` on; those of one channel for rows. */
BNK_INLINE BNK_NAME(line_of) BNK_NAME(some_at)(const bnk_linears *f, int64_t i, int64_t count)
{
    if (count == BNK_LINE_LENGTH) return BNK_NAME(line_at)(f, i);
#define BNK_AT(values) BNK_NAME(take_some)((const BNK_C *)(values) + i, count)
    const BNK_NAME(line_of) line = { BNK_AT(f->scale),      BNK_AT(f->center), BNK_AT(f->slope),
                                     BNK_AT(f->slope_rest), BNK_AT(f->offset), BNK_AT(f->factor) };
#undef BNK_AT
    return line;
}

/* The coefficients of one channel. */
BNK_INLINE BNK_NAME(line_of) BNK_NAME(row_line)(const bnk_linear *f)
{
    const BNK_NAME(line_of)
        line = { BNK_NAME(broadcast)((BNK_C)f->scale),  BNK_NAME(broadcast)((BNK_C)f->center),
                 BNK_NAME(broadcast)((BNK_C)f->slope),  BNK_NAME(broadcast)((BNK_C)f->slope_rest),
                 BNK_NAME(broadcast)((BNK_C)f->offset), BNK_NAME(broadcast)((BNK_C)f->factor) };
    return line;
}

/* Less than a cache line, of any way: so with ordinary stores. */
BNK_LEAF void BNK_NAME(apply_part)(const bnk_stretch *s, int64_t i, int64_t count, uint8_t *bits,
                                   int64_t bit, const bnk_linears *columns, const bnk_linear *row)
{
    bnk_stretch own = *s;
    own.stream = 0;
    BNK_NAME(apply_some)(&own, i, count, own.way, 1, bits, bit,
                         columns ? BNK_NAME(some_at)(columns, i, count) : BNK_NAME(row_line)(row));
}

/*
 * Whole lines of the usual operations, whose branches the compiler decides: a forward with ReLU, and a backward through
 * one by the bits of its mask; nothing is masked. Return where they end.
 */
#if BNK_HAS_USUAL_LINES
BNK_INLINE int64_t BNK_NAME(relu_lines)(const bnk_stretch *s, int64_t i, uint8_t *bits, int64_t bit,
                                        const bnk_linears *columns, BNK_NAME(line_of) line,
                                        int has_residual, int has_mask)
{
    const BNK_T *x = s->x, *residual = s->residual;
    BNK_T *y = s->y;
    const int64_t count = s->count;
    const int stream = s->stream;
    const BNK_LINE zero = { 0 }, vanishing = zero + (BNK_C)BNK_VANISHING;
    for (; i + BNK_LINE_LENGTH <= count; i += BNK_LINE_LENGTH) {
        if (columns) line = BNK_NAME(line_at)(columns, i);
        BNK_LINE v = BNK_NAME(apply_line)(x + i, NULL, line);
        if (has_residual) v += BNK_NAME(widen_line)(residual + i);
        v = BNK_NAME(choose)(v <= zero, zero, v);
        if (has_mask) BNK_NAME(bits_of_choice)(~(v <= vanishing), bits, bit + i);
        BNK_NAME(narrow_line)(y + i, v, stream);
    }
    return i;
}

BNK_INLINE int64_t BNK_NAME(relu_gradient_lines)(const bnk_stretch *s, int64_t i,
                                                 const bnk_linears *columns, BNK_NAME(line_of) f,
                                                 int has_residual)
{
    const BNK_T *x = s->x, *dy = s->dy;
    BNK_T *y = s->y, *residual = s->grad_residual;
    const int64_t count = s->count, at = s->at;
    const uint8_t *bits = s->activation_mask;
    const int stream = s->stream;
    for (; i + BNK_LINE_LENGTH <= count; i += BNK_LINE_LENGTH) {
        if (columns) f = BNK_NAME(line_at)(columns, i);
        const BNK_LINE z =
            BNK_NAME(let_through)(bits, at + i, BNK_LINE_LENGTH, BNK_NAME(widen_line)(dy + i));
        const BNK_LINE t = BNK_FMA(BNK_NAME(widen_line)(x + i), f.scale, f.center);
        const BNK_LINE v =
            BNK_FMA(z, f.factor, BNK_FMA(t, f.slope, BNK_FMA(t, f.slope_rest, f.offset)));
        if (has_residual) BNK_NAME(narrow_line)(residual + i, z, 0);
        BNK_NAME(narrow_line)(y + i, v, stream);
    }
    return i;
}

BNK_INLINE int64_t BNK_NAME(usual_lines)(const bnk_stretch *s, int way, int64_t i, uint8_t *bits,
                                         int64_t bit, const bnk_linears *columns,
                                         BNK_NAME(line_of) line)
{
    if (s->activation.kind != BNK_ACTIVATION_RELU || !s->y) return i;
    if (way == BNK_WAY_FORWARD) {
        if (s->residual && s->written_activation_mask)
            return BNK_NAME(relu_lines)(s, i, bits, bit, columns, line, 1, 1);
        if (s->residual) return BNK_NAME(relu_lines)(s, i, bits, bit, columns, line, 1, 0);
        if (s->written_activation_mask)
            return BNK_NAME(relu_lines)(s, i, bits, bit, columns, line, 0, 1);
        return BNK_NAME(relu_lines)(s, i, bits, bit, columns, line, 0, 0);
    }
    if (way != BNK_WAY_GRADIENT || !s->activation_mask) return i;
    if (s->grad_residual) return BNK_NAME(relu_gradient_lines)(s, i, columns, line, 1);
    return BNK_NAME(relu_gradient_lines)(s, i, columns, line, 0);
}
#endif

/* A row with coefficients of its own, or a line of columns with one each. */
BNK_INLINE void BNK_NAME(stretch)(const bnk_stretch *stretch, int way, int masks,
                                  const bnk_linears *columns, const bnk_linear *row)
{
    bnk_stretch s = *stretch;
    uint8_t bits[BNK_MAX_COLUMNS / 8 + 8];
    /* Two outputs past the caches, line by line in turn, would take several times as long. */
    BNK_T residual[BNK_MAX_COLUMNS] __attribute__((aligned(64)));
    if (s.stream && s.y && s.grad_residual) s.grad_residual = residual;
    const int64_t head = s.y ? BNK_NAME(head)(s.y, s.count, s.stream) : 0;
    const int64_t bit = -head & 7; /* so that lines after the head begin at whole bytes */
    if (s.written_activation_mask) memset(bits, 0, (size_t)((bit + s.count) / 8 + 5));
    for (int64_t i = 0; i < head; i += BNK_LINE_LENGTH) /* of halves, up to two lines */
        BNK_NAME(apply_part)(&s, i, head - i < BNK_LINE_LENGTH ? head - i : BNK_LINE_LENGTH, bits,
                             bit, columns, row);
    const bnk_stretch fixed = s; /* which no store below changes */
    BNK_NAME(line_of) line = { .scale = { 0 } };
    if (!columns) line = BNK_NAME(row_line)(row);
    int64_t i = head;
#if BNK_HAS_USUAL_LINES
    if (!masks) i = BNK_NAME(usual_lines)(&fixed, way, i, bits, bit, columns, line);
#endif
    for (; i + BNK_LINE_LENGTH <= fixed.count; i += BNK_LINE_LENGTH) {
        if (columns) line = BNK_NAME(line_at)(columns, i);
        BNK_NAME(apply_some)(&fixed, i, BNK_LINE_LENGTH, way, masks, bits, bit, line);
    }
    if (i < s.count) BNK_NAME(apply_part)(&s, i, s.count - i, bits, bit, columns, row);
    if (s.written_activation_mask)
        bnk_put_bits(bits, bit, s.count, s.written_activation_mask, s.at);
    if (s.grad_residual != stretch->grad_residual)
        BNK_NAME(stream_copy)(residual, stretch->grad_residual, s.count);
}

/* Compiled for the usual cases, which have no masks. */
BNK_INLINE void BNK_NAME(any_stretch)(const bnk_stretch *s, const bnk_linears *columns,
                                      const bnk_linear *row)
{
    if (s->way == BNK_WAY_FORWARD && !s->positions)
        BNK_NAME(stretch)(s, BNK_WAY_FORWARD, 0, columns, row);
    else if (s->way == BNK_WAY_GRADIENT && !s->positions)
        BNK_NAME(stretch)(s, BNK_WAY_GRADIENT, 0, columns, row);
    else
        BNK_NAME(stretch)(s, s->way, 1, columns, row);
}

static void BNK_NAME(row_stretch)(const bnk_stretch *s, const bnk_linear *f)
{
    BNK_NAME(any_stretch)(s, NULL, f);
}

static void BNK_NAME(column_stretch)(const bnk_stretch *s, const bnk_linears *f)
{
    BNK_NAME(any_stretch)(s, f, NULL);
}
