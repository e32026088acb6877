/*
 * The algorithm of the stages, once: stretches of a row on their way between tensors and buffers of
 * computing type, where an operation has an activation, a residual or a mask. Included by leaves_body.h;
 * called by stage.c.
 *
 * Each pass is one sweep over values in L1. The last line of a stretch, and the first one before a cache
 * line begins, hold fewer values than a vector and go through padded copies.
 */

/* ---- lanes that count ---- */

BNK_INLINE BNK_LINE BNK_NAME(choose)(BNK_CHOICE which, BNK_LINE yes, BNK_LINE no)
{
    return (BNK_LINE)((which & (BNK_CHOICE)yes) | (~which & (BNK_CHOICE)no));
}

/* Those whose byte is not 0; the lanes beyond `count` do not. */
BNK_INLINE BNK_CHOICE BNK_NAME(choice_of_bytes)(const uint8_t *keep, int64_t count)
{
    typedef int8_t bytes __attribute__((vector_size(BNK_LINE_LENGTH)));
    bytes from = { 0 };
    memcpy(&from, keep, (size_t)count);
    return __builtin_convertvector(from != 0, BNK_CHOICE);
}

/* Those whose bit is set, from bit `at` on. Reads up to three bytes more than it needs. */
BNK_INLINE BNK_CHOICE BNK_NAME(choice_of_bits)(const uint8_t *bits, int64_t at)
{
    uint32_t word;
    memcpy(&word, bits + at / 8, sizeof word);
    BNK_CHOICE lane = { 0 };
    for (int i = 0; i < BNK_LINE_LENGTH; i++) lane[i] = 1 << i;
    return (((BNK_CHOICE){ 0 } + (int32_t)(word >> at % 8)) & lane) != 0;
}

/* Sets the bits of lanes that count, from bit `at` on; all were 0. Touches up to three bytes more. */
BNK_INLINE void BNK_NAME(bits_of_choice)(BNK_CHOICE which, uint8_t *bits, int64_t at)
{
    typedef _Bool flags __attribute__((ext_vector_type(BNK_LINE_LENGTH)));
    const flags packed = __builtin_convertvector(which, flags);
    uint32_t word, own = 0;
    memcpy(&own, &packed, BNK_LINE_LENGTH / 8);
    memcpy(&word, bits + at / 8, sizeof word);
    word |= own << at % 8;
    memcpy(bits + at / 8, &word, sizeof word);
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

/* ---- values ---- */

BNK_INLINE void BNK_NAME(stage_line)(const bnk_value_stage *s, int64_t i, int64_t count)
{
    const BNK_LINE x = BNK_NAME(widen_some)((const BNK_T *)s->x + i, count);
    const BNK_C *filler = s->filler;
    BNK_LINE v = x;
    if (s->keep) {
        const BNK_LINE other =
            s->filler_step ? BNK_NAME(take_some)(filler + i, count) : *filler - (BNK_LINE){ 0 };
        v = BNK_NAME(choose)(BNK_NAME(choice_of_bytes)(s->keep + i, count), x, other);
    }
    memcpy((BNK_C *)s->to + i, &v, (size_t)count * sizeof(BNK_C));
}

static void BNK_NAME(stage_values)(const bnk_value_stage *stage, int64_t count)
{
    const bnk_value_stage s = *stage;
    int64_t i = 0;
    for (; i + BNK_LINE_LENGTH <= count; i += BNK_LINE_LENGTH)
        BNK_NAME(stage_line)(&s, i, BNK_LINE_LENGTH);
    if (i < count) BNK_NAME(stage_line)(&s, i, count - i);
}

/* ---- gradients ---- */

BNK_INLINE void BNK_NAME(gate_line)(const bnk_gradient_stage *s, int64_t i, int64_t count)
{
    const BNK_LINE dy = BNK_NAME(widen_some)((const BNK_T *)s->dy + i, count);
    const BNK_C slope = (BNK_C)s->negative_slope;
    const BNK_LINE zero = { 0 };
    BNK_LINE z = dy;
    if (s->output || s->bits) {
        BNK_CHOICE passes;
        if (s->output)
            passes = ~(BNK_NAME(widen_some)((const BNK_T *)s->output + i, count) <= zero);
        else
            passes = BNK_NAME(choice_of_bits)(s->bits, i);
        z = BNK_NAME(choose)(passes, dy, slope == 0 ? zero : dy * slope);
    }
    if (s->keep) z = BNK_NAME(choose)(BNK_NAME(choice_of_bytes)(s->keep + i, count), z, zero);
    memcpy((BNK_C *)s->to + i, &z, (size_t)count * sizeof(BNK_C));
}

static void BNK_NAME(stage_gradient)(const bnk_gradient_stage *stage, int64_t count)
{
    const bnk_gradient_stage s = *stage;
    int64_t i = 0;
    for (; i + BNK_LINE_LENGTH <= count; i += BNK_LINE_LENGTH) {
        for (int p = 0; p < 3; p++)
            if (s.next[p]) BNK_PREFETCH_LANES((const BNK_T *)s.next[p] + i);
        BNK_NAME(gate_line)(&s, i, BNK_LINE_LENGTH);
    }
    if (i < count) BNK_NAME(gate_line)(&s, i, count - i);
}

/* ---- outputs ---- */

BNK_INLINE void BNK_NAME(finish_line)(const bnk_output_stage *s, int64_t i, int64_t count)
{
    const BNK_C slope = (BNK_C)s->negative_slope;
    const BNK_LINE zero = { 0 };
    BNK_LINE v = BNK_NAME(take_some)((const BNK_C *)s->values + i, count);
    if (s->residual) v += BNK_NAME(widen_some)((const BNK_T *)s->residual + i, count);
    /* Written so that NaN passes. */
    if (slope != 1) v = BNK_NAME(choose)(v <= zero, slope == 0 ? zero : v * slope, v);
    BNK_CHOICE passes = ~(v <= zero + (BNK_C)BNK_VANISHING);
    if (s->keep) {
        const BNK_CHOICE kept = BNK_NAME(choice_of_bytes)(s->keep + i, count);
        v = BNK_NAME(choose)(
            kept, v, s->passed ? BNK_NAME(widen_some)((const BNK_T *)s->passed + i, count) : zero);
        passes &= kept;
    }
    if (s->bits) BNK_NAME(bits_of_choice)(passes, s->bits, i);
    BNK_NAME(narrow_some)((BNK_T *)s->y + i, v, count, s->stream);
}

static void BNK_NAME(finish_output)(const bnk_output_stage *stage, int64_t count)
{
    const bnk_output_stage s = *stage;
    int64_t i = BNK_NAME(head)(s.y, count, s.stream);
    for (int64_t at = 0; at < i; at += BNK_LINE_LENGTH) /* of halves there are two lines in 64 bytes */
        BNK_NAME(finish_line)(&s, at, i - at < BNK_LINE_LENGTH ? i - at : BNK_LINE_LENGTH);
    for (; i + BNK_LINE_LENGTH <= count; i += BNK_LINE_LENGTH)
        BNK_NAME(finish_line)(&s, i, BNK_LINE_LENGTH);
    if (i < count) BNK_NAME(finish_line)(&s, i, count - i);
}
