/* Stored values in computing type and back. */
BNK_INLINE BNK_LINE BNK_NAME(widen_line)(const BNK_T *p)
{
    return *(const BNK_LINE_AT *)p;
}

BNK_INLINE void BNK_NAME(narrow_line)(BNK_T *p, BNK_LINE v, int stream)
{
    BNK_NAME(store)(p, v, stream);
}
