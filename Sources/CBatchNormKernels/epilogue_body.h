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

/* The mask's bits: where the output, as it is stored, is not <= 0. */
BNK_INLINE BNK_CHOICE BNK_NAME(let_pass)(BNK_LINE v)
{
    const BNK_LINE zero = { 0 };
    return ~(v <= zero + (BNK_C)BNK_VANISHING);
}

/* What comes after the formula: the residual, the activation, what is masked, the mask's bits. */
BNK_INLINE BNK_LINE BNK_NAME(activate)(const bnk_stretch *s, int64_t i, int64_t count, int masks,
                                       uint8_t *bits, int64_t bit, BNK_LINE v)
{
    const BNK_LINE zero = { 0 };
    if (s->residual) v += BNK_NAME(widen_some)((const BNK_T *)s->residual + i, count);
    v = BNK_NAME(activated)(&s->activation, v);
    if (!masks || !s->positions) {
        if (s->written_activation_mask)
            BNK_NAME(bits_of_choice)(BNK_NAME(let_pass)(v), bits, bit + i);
        return v;
    }
    const BNK_CHOICE takes_part = BNK_NAME(choice_of_bytes)(s->positions + i, count);
    if (s->written_activation_mask)
        BNK_NAME(bits_of_choice)(BNK_NAME(let_pass)(v) & takes_part, bits, bit + i);
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

/* Less than a cache line, of any way: so with ordinary stores. */
BNK_LEAF void BNK_NAME(apply_part)(const bnk_stretch *s, int64_t i, int64_t count, uint8_t *bits,
                                   int64_t bit, const bnk_linears *columns, const bnk_linear *row)
{
    bnk_stretch own = *s;
    own.stream = 0;
    BNK_NAME(apply_some)(&own, i, count, own.way, 1, bits, bit,
                         columns ? BNK_NAME(some_at)(columns, i, count) : BNK_NAME(row_line)(row));
}

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
    int64_t i = head, end = fixed.count;
    if (masks && fixed.positions && !fixed.pass_masked)
        end = bnk_end_taking_part(fixed.positions, fixed.count);
    for (; (!masks || i < end) && i + BNK_LINE_LENGTH <= fixed.count; i += BNK_LINE_LENGTH) {
        if (columns) line = BNK_NAME(line_at)(columns, i);
        BNK_NAME(apply_some)(&fixed, i, BNK_LINE_LENGTH, way, masks, bits, bit, line);
    }
    for (; masks && i + BNK_LINE_LENGTH <= fixed.count; i += BNK_LINE_LENGTH) {
        const BNK_LINE zero = { 0 };
        if (fixed.grad_residual) BNK_NAME(narrow_line)((BNK_T *)fixed.grad_residual + i, zero, 0);
        if (fixed.y) BNK_NAME(narrow_line)((BNK_T *)fixed.y + i, zero, fixed.stream);
    }
    if (i < s.count) BNK_NAME(apply_part)(&s, i, s.count - i, bits, bit, columns, row);
    if (s.written_activation_mask)
        bnk_put_bits(bits, bit, s.count, s.written_activation_mask, s.at);
    if (s.grad_residual != stretch->grad_residual)
        BNK_NAME(stream_copy)(residual, stretch->grad_residual, s.count);
}

/* Compiled by themselves for forward and gradient without masked positions. */
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

/*
 * Whole rows of the usual operations, many in one call and, where they follow one another in memory, from four places at
 * once as without an activation (see apply_body.h). All rows or none: none unless each is whole cache lines, past the
 * caches begins at one, and has whole bytes of the mask.
 */
#if BNK_FOR_SPEED
enum {
    BNK_NAME(usual_residual) = 1, /* a forward adds one */
    BNK_NAME(usual_relu) = 2,     /* a forward has ReLU, and may write its mask */
    BNK_NAME(usual_gradient) = 4  /* a backward through ReLU by its bits; no other */
};

/* Bits of a mask on their way to memory, eight bytes at a time: in caches a store for each cache line of values kept
 * others waiting. (Where rows are taken from four places, memory is slower, and they go one by one.) */
typedef struct BNK_NAME(bits_held) {
    uint8_t *to; /* NULL: there is no mask */
    uint64_t bits;
    int count;
} BNK_NAME(bits_held);

BNK_INLINE BNK_NAME(bits_held) BNK_NAME(hold_bits)(const bnk_stretch *s, int64_t i)
{
    uint8_t *mask = s->written_activation_mask;
    return (BNK_NAME(bits_held)){ mask ? mask + (s->at + i) / 8 : NULL, 0, 0 };
}

BNK_INLINE void BNK_NAME(put_bits_held)(BNK_NAME(bits_held) * held)
{
    for (; held->count > 0; held->count -= 8, held->bits >>= 8) *held->to++ = (uint8_t)held->bits;
}

BNK_INLINE void BNK_NAME(hold_more)(BNK_NAME(bits_held) * held, uint32_t bits)
{
    held->bits |= (uint64_t)bits << held->count;
    held->count += BNK_LINE_LENGTH;
    if (held->count < 64) return;
    memcpy(held->to, &held->bits, 8);
    *held = (BNK_NAME(bits_held)){ held->to + 8, 0, 0 };
}

/* A cache line, from value `i` on. `usual` is a constant. */
BNK_INLINE void BNK_NAME(usual_cache_line)(const bnk_stretch *s, int64_t i, int usual,
                                           const BNK_NAME(line_of) * f, BNK_NAME(bits_held) * held)
{
    const bnk_activation relu = { .kind = BNK_ACTIVATION_RELU };
    const BNK_LINE zero = { 0 };
    BNK_LINE done[BNK_NAME(lines)];
    for (int k = 0; k < BNK_NAME(lines); k++, i += BNK_LINE_LENGTH) {
        const BNK_LINE x = BNK_NAME(widen_line)((const BNK_T *)s->x + i);
        if (usual & BNK_NAME(usual_gradient)) {
            const BNK_LINE dy = BNK_NAME(widen_line)((const BNK_T *)s->dy + i);
            const BNK_LINE z =
                BNK_NAME(let_through)(s->activation_mask, s->at + i, BNK_LINE_LENGTH, dy);
            done[k] = BNK_NAME(apply_values)(x, z, 1, f[k]);
            continue;
        }
        BNK_LINE v = BNK_NAME(apply_values)(x, zero, 0, f[k]);
        if (usual & BNK_NAME(usual_residual))
            v += BNK_NAME(widen_line)((const BNK_T *)s->residual + i);
        if (usual & BNK_NAME(usual_relu)) v = BNK_NAME(activated)(&relu, v);
        if ((usual & BNK_NAME(usual_relu)) && held->to)
            BNK_NAME(hold_more)(held, BNK_NAME(word_of_choice)(BNK_NAME(let_pass)(v)));
        done[k] = v;
    }
    BNK_NAME(store_cache_line)((BNK_T *)s->y + i - BNK_PER_CACHE_LINE, BNK_PACK(done), s->stream);
}

BNK_INLINE void BNK_NAME(usual_lines_of)(const bnk_stretch *s, int64_t rows, int64_t stride,
                                         int usual, const bnk_linears *columns,
                                         const bnk_linear *row)
{
    const int64_t count = s->count;
    const int64_t part = columns ? BNK_NAME(part_rows)(s->y, rows, stride, count, s->stream) : 0;
    BNK_NAME(line_of) f[BNK_NAME(lines)];
    for (int64_t r = 0; r < part; r++)
        for (int64_t i = 0; i < count; i += BNK_PER_CACHE_LINE) {
            BNK_NAME(lines_at)(columns, i, f);
#pragma clang loop unroll(disable)
            for (int p = 0; p < BNK_NAME(streams); p++) {
                const int64_t at = (r + p * part) * stride + i;
                BNK_NAME(bits_held) held = BNK_NAME(hold_bits)(s, at);
                BNK_NAME(usual_cache_line)(s, at, usual, f, &held);
                if (held.to) memcpy(held.to, &held.bits, BNK_PER_CACHE_LINE / 8);
            }
        }
    for (int k = 0; !columns && k < BNK_NAME(lines); k++) f[k] = BNK_NAME(row_line)(row);
    for (int64_t r = BNK_NAME(streams) * part; r < rows; r++) {
        BNK_NAME(bits_held) held = BNK_NAME(hold_bits)(s, r * stride);
        for (int64_t i = 0; i < count; i += BNK_PER_CACHE_LINE) {
            if (columns) BNK_NAME(lines_at)(columns, i, f);
            BNK_NAME(usual_cache_line)(s, r * stride + i, usual, f, &held);
        }
        BNK_NAME(put_bits_held)(&held);
    }
}

/* Whether rows lie so that they can be taken. */
BNK_INLINE int BNK_NAME(lie_well)(const bnk_stretch *s, int64_t stride)
{
    const int64_t bytes = stride * (int64_t)sizeof(BNK_T);
    if (s->count % BNK_PER_CACHE_LINE != 0) return 0;
    if (s->stream && ((uintptr_t)s->y % 64 != 0 || bytes % 64 != 0)) return 0;
    const int has_mask = s->written_activation_mask || s->activation_mask;
    return !has_mask || (s->at % 8 == 0 && stride % 8 == 0);
}

/* What is to be done, as above; -1 if it is not usual. */
BNK_INLINE int BNK_NAME(usual_of)(const bnk_stretch *s)
{
    const int relu = s->activation.kind == BNK_ACTIVATION_RELU;
    if (!s->y || s->grad_residual) return -1;
    if (s->way == BNK_WAY_GRADIENT)
        return relu && s->activation_mask ? BNK_NAME(usual_gradient) : -1;
    if (s->way != BNK_WAY_FORWARD) return -1;
    const int residual = s->residual ? BNK_NAME(usual_residual) : 0;
    if (relu) return residual | BNK_NAME(usual_relu);
    const int linear = s->activation.kind == BNK_ACTIVATION_NONE && !s->written_activation_mask;
    return linear && residual ? residual : -1;
}

/* Returns whether it has taken the rows. */
BNK_INLINE int BNK_NAME(usual_rows)(const bnk_stretch *stretch, int64_t rows, int64_t stride,
                                    const bnk_linears *columns, const bnk_linear *row)
{
    const bnk_stretch s = *stretch; /* which no store below changes */
    if (!BNK_NAME(lie_well)(&s, stride)) return 0;
    switch (BNK_NAME(usual_of)(&s)) {
#define BNK_CASE(usual)                                                    \
    case usual:                                                            \
        BNK_NAME(usual_lines_of)(&s, rows, stride, (usual), columns, row); \
        return 1;
        BNK_CASE(BNK_NAME(usual_residual))
        BNK_CASE(BNK_NAME(usual_relu))
        BNK_CASE(BNK_NAME(usual_residual) | BNK_NAME(usual_relu))
        BNK_CASE(BNK_NAME(usual_gradient))
#undef BNK_CASE
    default:
        return 0;
    }
}

static int BNK_NAME(row_usual)(const bnk_stretch *s, int64_t rows, int64_t stride,
                               const bnk_linear *f)
{
    return BNK_NAME(usual_rows)(s, rows, stride, NULL, f);
}

static int BNK_NAME(column_usual)(const bnk_stretch *s, int64_t rows, int64_t stride,
                                  const bnk_linears *f)
{
    return BNK_NAME(usual_rows)(s, rows, stride, f, NULL);
}
#endif
