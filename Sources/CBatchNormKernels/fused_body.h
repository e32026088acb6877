/*
 * The leaves of operations with an activation, a residual or masked positions, once. Included by
 * leaves_body.h.
 *
 * What a stretch does not have is skipped by branches that go the same way all along it. The last values
 * of one, and the first up to a cache line's begin, are fewer than a vector and go through padded copies.
 */

/* ---- lanes that count ---- */

BNK_INLINE BNK_LINE BNK_NAME(choose)(BNK_CHOICE which, BNK_LINE yes, BNK_LINE no)
{
    return (BNK_LINE)((which & (BNK_CHOICE)yes) | (~which & (BNK_CHOICE)no));
}

/* Those whose byte is not 0; lanes beyond `count` do not. */
BNK_INLINE BNK_CHOICE BNK_NAME(choice_of_bytes)(const uint8_t *keep, int64_t count)
{
    typedef int8_t bytes __attribute__((vector_size(BNK_LINE_LENGTH)));
    bytes from = { 0 };
    memcpy(&from, keep, (size_t)count);
    return __builtin_convertvector(from != 0, BNK_CHOICE);
}

/* Those whose bit is set, from bit `at` on; no byte is read that holds none of them. */
BNK_INLINE BNK_CHOICE BNK_NAME(choice_of_bits)(const uint8_t *bits, int64_t at, int64_t count)
{
    const uint8_t *from = bits + (at >> 3);
    const int shift = (int)(at & 7);
    uint32_t word = 0;
    if (count == BNK_LINE_LENGTH) {
        memcpy(&word, from, BNK_LINE_LENGTH / 8);
        if (shift) word |= (uint32_t)from[BNK_LINE_LENGTH / 8] << BNK_LINE_LENGTH;
    } else {
        memcpy(&word, from, (size_t)((shift + count + 7) / 8));
    }
    BNK_CHOICE lane = { 0 };
    for (int i = 0; i < BNK_LINE_LENGTH; i++) lane[i] = 1 << i;
    return (((BNK_CHOICE){ 0 } + (int32_t)(word >> shift)) & lane) != 0;
}

/* Sets the bits of lanes that count, from bit `at` on, of a mask that is 0 there and beyond. */
BNK_INLINE void BNK_NAME(bits_of_choice)(BNK_CHOICE which, uint8_t *bits, int64_t at)
{
    typedef _Bool flags __attribute__((ext_vector_type(BNK_LINE_LENGTH)));
    const flags packed = __builtin_convertvector(which, flags);
    uint32_t own = 0, word;
    memcpy(&own, &packed, BNK_LINE_LENGTH / 8);
    bits += at >> 3;
    if ((at & 7) == 0) { /* reading what was just written in another width would take longer */
        memcpy(bits, &own, BNK_LINE_LENGTH / 8);
    } else {
        memcpy(&word, bits, sizeof word);
        word |= own << (at & 7);
        memcpy(bits, &word, sizeof word);
    }
}

/* ---- lines with fewer values ---- */

BNK_INLINE BNK_LINE BNK_NAME(widen_some)(const BNK_T *p, int64_t count)
{
    if (count == BNK_LINE_LENGTH) return BNK_NAME(widen_line)(p);
    BNK_T padded[BNK_LINE_LENGTH] = { 0 };
    memcpy(padded, p, (size_t)count * sizeof *p);
    return BNK_NAME(widen_line)(padded);
}

BNK_INLINE void BNK_NAME(narrow_some)(BNK_T *p, BNK_LINE v, int64_t count, int stream)
{
    if (count == BNK_LINE_LENGTH) {
        BNK_NAME(narrow_line)(p, v, stream);
        return;
    }
    BNK_T padded[BNK_LINE_LENGTH];
    BNK_NAME(narrow_line)(padded, v, 0);
    memcpy(p, padded, (size_t)count * sizeof *p);
}

BNK_INLINE BNK_LINE BNK_NAME(take_some)(const BNK_C *p, int64_t count)
{
    BNK_LINE v = { 0 };
    memcpy(&v, p, (size_t)count * sizeof *p);
    return v;
}

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
    if (!masks || !s->keep) {
        if (s->written_activation_mask) BNK_NAME(bits_of_choice)(~(v <= vanishing), bits, bit + i);
        return v;
    }
    const BNK_CHOICE kept = BNK_NAME(choice_of_bytes)(s->keep + i, count);
    if (s->written_activation_mask)
        BNK_NAME(bits_of_choice)(~(v <= vanishing) & kept, bits, bit + i);
    return BNK_NAME(choose)(
        kept, v, s->pass_masked ? BNK_NAME(widen_some)((const BNK_T *)s->x + i, count) : zero);
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
    if (masks && s->keep)
        z = BNK_NAME(choose)(BNK_NAME(choice_of_bytes)(s->keep + i, count), z, zero);
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
        if (masks && s->keep) {
            const BNK_LINE zero = { 0 };
            v = BNK_NAME(choose)(
                BNK_NAME(choice_of_bytes)(s->keep + i, count), v,
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
    BNK_NAME(line_of) line;
    if (!columns) line = BNK_NAME(row_line)(row);
    int64_t i = head;
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
    if (s->way == BNK_WAY_FORWARD && !s->keep)
        BNK_NAME(stretch)(s, BNK_WAY_FORWARD, 0, columns, row);
    else if (s->way == BNK_WAY_GRADIENT && !s->keep)
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

/* ---- sums ---- */

/* `count` values from dy on their way back, and of x, in float64. */
BNK_INLINE void BNK_NAME(gated_some)(const bnk_stretch *s, int64_t i, int64_t count,
                                     double *gradient, double *x)
{
    typedef double part __attribute__((vector_size(8 * BNK_LINE_LENGTH)));
    const BNK_LINE zero = { 0 };
    const BNK_LINE z = BNK_NAME(gate)(s, i, count, 1);
    BNK_LINE v = BNK_NAME(widen_some)((const BNK_T *)s->x + i, count);
    /* What is masked may be infinite, and 0 times it must be 0. */
    if (s->keep) v = BNK_NAME(choose)(BNK_NAME(choice_of_bytes)(s->keep + i, count), v, zero);
    const part zd = __builtin_convertvector(z, part), vd = __builtin_convertvector(v, part);
    memcpy(gradient, &zd, sizeof zd);
    memcpy(x, &vd, sizeof vd);
}

/* Less than sixteen; zeros follow. */
BNK_LEAF void BNK_NAME(gated_part)(const bnk_stretch *s, int64_t i, int64_t count,
                                   bnk_double16 *gradient, bnk_double16 *x)
{
    *gradient = *x = (bnk_double16){ 0 };
    for (int64_t h = 0; h < count; h += BNK_LINE_LENGTH)
        BNK_NAME(gated_some)(s, i + h, count - h < BNK_LINE_LENGTH ? count - h : BNK_LINE_LENGTH,
                             (double *)gradient + h, (double *)x + h);
}

BNK_INLINE void BNK_NAME(gated_lanes)(const bnk_stretch *s, int64_t i, bnk_double16 *gradient,
                                      bnk_double16 *x)
{
    for (int h = 0; h < BNK_LANES; h += BNK_LINE_LENGTH)
        BNK_NAME(gated_some)(s, i + h, BNK_LINE_LENGTH, (double *)gradient + h, (double *)x + h);
}

/* Row `row` of stretches that lie `stride` elements apart. */
BNK_INLINE bnk_stretch BNK_NAME(row_of)(const bnk_stretch *s, int64_t row, int64_t stride,
                                        int64_t keep_stride)
{
    bnk_stretch own = *s;
    own.x = (const BNK_T *)s->x + row * stride;
    own.dy = (const BNK_T *)s->dy + row * stride;
    own.output = s->output ? (const BNK_T *)s->output + row * stride : NULL;
    own.at = s->at + row * stride;
    own.keep = s->keep ? s->keep + row * keep_stride : NULL;
    return own;
}

/* As add_grad_rows: the sums are those of a gradient that came back before. */
BNK_INLINE void BNK_NAME(add_gated_rows)(const bnk_stretch *first, int together, int64_t stride,
                                         int64_t keep_stride, int64_t ahead, double mean,
                                         bnk_lane_sums *sums)
{
    const bnk_double16 m = mean - (bnk_double16){ 0 }, one = BNK_ONES(bnk_double16);
    const bnk_stretch a = *first, b = BNK_NAME(row_of)(first, together - 1, stride, keep_stride);
    bnk_double16 s = *(bnk_double16_at *)sums->first, q = *(bnk_double16_at *)sums->second;
    int64_t i = 0;
#define BNK_FETCH(row)                                                                 \
    do {                                                                               \
        BNK_PREFETCH_LANES((const BNK_T *)(row).x + i + ahead);                        \
        BNK_PREFETCH_LANES((const BNK_T *)(row).dy + i + ahead);                       \
        if ((row).output) BNK_PREFETCH_LANES((const BNK_T *)(row).output + i + ahead); \
    } while (0)
    bnk_double16 held_g[4], held_p[4];
#define BNK_ADD(r, take)                                                  \
    do {                                                                  \
        bnk_double16 g, x;                                                \
        take;                                                             \
        BNK_ADD_ROW(s, held_g, r, together, g);                           \
        BNK_ADD_ROW(q, held_p, r, together, g * BNK_SUBTRACT(x, m, one)); \
    } while (0)
    for (; i + BNK_LANES <= a.count; i += BNK_LANES) {
        BNK_FETCH(a);
        BNK_ADD(0, BNK_NAME(gated_lanes)(&a, i, &g, &x));
        if (together == 2) {
            BNK_FETCH(b);
            BNK_ADD(1, BNK_NAME(gated_lanes)(&b, i, &g, &x));
        }
    }
    if (i < a.count) {
        BNK_ADD(0, BNK_NAME(gated_part)(&a, i, a.count - i, &g, &x));
        if (together == 2) BNK_ADD(1, BNK_NAME(gated_part)(&b, i, a.count - i, &g, &x));
    }
#undef BNK_FETCH
#undef BNK_ADD
    *(bnk_double16_at *)sums->first = s;
    *(bnk_double16_at *)sums->second = q;
}

static void BNK_NAME(row_gated_sums)(const bnk_stretch *s, int64_t rows, int64_t stride,
                                     int64_t keep_stride, int64_t ahead, double mean,
                                     bnk_lane_sums *sums)
{
    int64_t row = 0;
    for (; row + 2 <= rows; row += 2) {
        const bnk_stretch own = BNK_NAME(row_of)(s, row, stride, keep_stride);
        BNK_NAME(add_gated_rows)(&own, 2, stride, keep_stride, ahead, mean, sums);
    }
    if (row < rows) {
        const bnk_stretch own = BNK_NAME(row_of)(s, row, stride, keep_stride);
        BNK_NAME(add_gated_rows)(&own, 1, stride, keep_stride, ahead, mean, sums);
    }
}

/* Sixteen columns of some rows; each column adds them as BNK_ADD_ROW says. */
BNK_INLINE void BNK_NAME(add_gated_columns)(const bnk_stretch *first, int64_t together,
                                            int64_t stride, int64_t keep_stride, int64_t j,
                                            int64_t count, const double *mean, double *sum,
                                            double *product)
{
    bnk_double16 m = { 0 }, s = { 0 }, q = { 0 };
    const bnk_double16 one = BNK_ONES(bnk_double16);
    const size_t bytes = (size_t)count * sizeof(double);
    memcpy(&m, mean + j, bytes);
    memcpy(&s, sum + j, bytes);
    memcpy(&q, product + j, bytes);
    bnk_double16 held_g[4], held_p[4];
#pragma clang loop unroll(disable) /* a row is long code */
    for (int64_t r = 0; r < together; r++) {
        const bnk_stretch own = BNK_NAME(row_of)(first, r, stride, keep_stride);
        bnk_double16 g, x;
        if (count == BNK_LANES)
            BNK_NAME(gated_lanes)(&own, j, &g, &x);
        else
            BNK_NAME(gated_part)(&own, j, count, &g, &x);
        BNK_ADD_ROW(s, held_g, r, together, g);
        BNK_ADD_ROW(q, held_p, r, together, g * BNK_SUBTRACT(x, m, one));
    }
    memcpy(sum + j, &s, bytes);
    memcpy(product + j, &q, bytes);
}

static void BNK_NAME(column_gated_sums)(const bnk_stretch *stretch, int64_t rows, int64_t stride,
                                        int64_t keep_stride, const double *mean, double *sum,
                                        double *product)
{
    enum { TOGETHER = 4 };
    for (int64_t row = 0, together; row < rows; row += together) {
        together = rows - row < TOGETHER ? 1 : TOGETHER; /* as the plain leaf takes them */
        const bnk_stretch own = BNK_NAME(row_of)(stretch, row, stride, keep_stride);
        int64_t j = 0;
        for (; j + BNK_LANES <= own.count; j += BNK_LANES)
            BNK_NAME(add_gated_columns)(&own, together, stride, keep_stride, j, BNK_LANES, mean,
                                        sum, product);
        if (j < own.count)
            BNK_NAME(add_gated_columns)(&own, together, stride, keep_stride, j, own.count - j, mean,
                                        sum, product);
    }
}

/* ---- masked values ---- */

BNK_INLINE void BNK_NAME(fill_some)(const BNK_T *x, const uint8_t *keep, const BNK_C *filler,
                                    int64_t step, BNK_C *to, int64_t count)
{
    const BNK_LINE other = step ? BNK_NAME(take_some)(filler, count) : *filler - (BNK_LINE){ 0 };
    const BNK_LINE v = BNK_NAME(choose)(BNK_NAME(choice_of_bytes)(keep, count),
                                        BNK_NAME(widen_some)(x, count), other);
    memcpy(to, &v, (size_t)count * sizeof *to);
}

/* to = x in computing type, where masked a filler. */
static void BNK_NAME(fill_masked)(const void *x, const uint8_t *keep, const void *filler,
                                  int64_t filler_step, void *to, int64_t count)
{
    const BNK_T *from = x;
    const BNK_C *other = filler;
    BNK_C *values = to;
    int64_t i = 0;
    for (; i + BNK_LINE_LENGTH <= count; i += BNK_LINE_LENGTH)
        BNK_NAME(fill_some)(from + i, keep + i, other + i * filler_step, filler_step, values + i,
                            BNK_LINE_LENGTH);
    if (i < count)
        BNK_NAME(fill_some)(from + i, keep + i, other + i * filler_step, filler_step, values + i,
                            count - i);
}
