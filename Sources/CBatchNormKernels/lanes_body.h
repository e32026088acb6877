/*
 * Lines of which some lanes do not count: because a mask says so, or because fewer values than a vector are left, which
 * go through padded copies. Included by leaves_body.h.
 */

/* ---- lanes that count ---- */

BNK_INLINE BNK_LINE BNK_NAME(choose)(BNK_CHOICE which, BNK_LINE yes, BNK_LINE no)
{
    return (BNK_LINE)((which & (BNK_CHOICE)yes) | (~which & (BNK_CHOICE)no));
}

/* Those whose byte is not 0; lanes beyond `count` do not. */
BNK_INLINE BNK_CHOICE BNK_NAME(choice_of_bytes)(const uint8_t *positions, int64_t count)
{
    typedef int8_t bytes __attribute__((vector_size(BNK_LINE_LENGTH)));
    bytes from = { 0 };
    memcpy(&from, positions, (size_t)count);
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

/* v, or 0 where its bit is not set. */
BNK_INLINE BNK_LINE BNK_NAME(let_through)(const uint8_t *bits, int64_t at, int64_t count,
                                          BNK_LINE v)
{
    return (BNK_LINE)(BNK_NAME(choice_of_bits)(bits, at, count) & (BNK_CHOICE)v);
}

BNK_INLINE uint32_t BNK_NAME(word_of_choice)(BNK_CHOICE which)
{
    typedef _Bool flags __attribute__((ext_vector_type(BNK_LINE_LENGTH)));
    const flags packed = __builtin_convertvector(which, flags);
    uint32_t word = 0;
    memcpy(&word, &packed, BNK_LINE_LENGTH / 8);
    return word;
}

/* Sets the bits of lanes that count, from bit `at` on, of a mask that is 0 there and beyond. */
BNK_INLINE void BNK_NAME(bits_of_choice)(BNK_CHOICE which, uint8_t *bits, int64_t at)
{
    const uint32_t own = BNK_NAME(word_of_choice)(which);
    uint32_t word;
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
