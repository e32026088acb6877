/*
 * The algorithm of the leaves that apply coefficients, once. Included by leaves_body.h.
 */

BNK_INLINE BNK_LINE BNK_NAME(broadcast)(BNK_T value)
{
    return value - (BNK_LINE){ 0 };
}

BNK_INLINE void BNK_NAME(store)(BNK_T *p, BNK_LINE v, int stream)
{
    if (stream)
        __builtin_nontemporal_store(v, (BNK_LINE_ALIGNED *)p);
    else
        *(BNK_LINE_AT *)p = v;
}

/* How many values lie before the first cache line that starts within p[0..length). */
BNK_INLINE int64_t BNK_NAME(head)(const BNK_T *p, int64_t length)
{
    const int64_t past = (int64_t)(((uintptr_t)p % 64) / sizeof(BNK_T));
    const int64_t head = past == 0 ? 0 : BNK_LINE_LENGTH - past;
    return head < length ? head : length;
}

/*
 * Applies to one row: what lies before the first cache line of y, whole lines, the rest. x, dy and y
 * point at the row's first value, f at a bnk_linear or bnk_linears. Rows are taken one after
 * another: walking several at once gained nothing where the reduction has left x in cache, and
 * non-temporal stores that alternate between rows took ten times as long (AMD Zen 3).
 */
typedef void BNK_NAME(apply_row)(const BNK_T *x, const BNK_T *dy, BNK_T *y, int64_t length,
                                 int64_t ahead, const void *f, int stream);

#define BNK_AT(p) (*(const BNK_LINE_AT *)((p) + i))

BNK_INLINE void BNK_NAME(apply_row_values)(const BNK_T *x, const BNK_T *dy, BNK_T *y,
                                           int64_t length, int64_t ahead, const void *linear,
                                           int stream)
{
    (void)dy;
    (void)ahead;
    const bnk_linear *f = linear;
    const BNK_T scale = (BNK_T)f->scale, center = (BNK_T)f->center, slope = (BNK_T)f->slope,
                offset = (BNK_T)f->offset;
    const BNK_LINE s = BNK_NAME(broadcast)(scale), c = BNK_NAME(broadcast)(center),
                   a = BNK_NAME(broadcast)(slope), b = BNK_NAME(broadcast)(offset);
    int64_t i = 0;
    for (const int64_t head = stream ? BNK_NAME(head)(y, length) : 0; i < head; i++)
        y[i] = BNK_FMA_ONE(BNK_FMA_ONE(x[i], scale, center), slope, offset);
    for (; i + BNK_LINE_LENGTH <= length; i += BNK_LINE_LENGTH) {
        BNK_NAME(store)(y + i, BNK_FMA(BNK_FMA(BNK_AT(x), s, c), a, b), stream);
    }
    for (; i < length; i++) y[i] = BNK_FMA_ONE(BNK_FMA_ONE(x[i], scale, center), slope, offset);
}

BNK_INLINE void BNK_NAME(apply_row_gradients)(const BNK_T *x, const BNK_T *dy, BNK_T *dx,
                                              int64_t length, int64_t ahead, const void *linear,
                                              int stream)
{
    (void)ahead;
    const bnk_linear *f = linear;
    const BNK_T scale = (BNK_T)f->scale, center = (BNK_T)f->center, slope = (BNK_T)f->slope,
                slope_rest = (BNK_T)f->slope_rest, offset = (BNK_T)f->offset,
                factor = (BNK_T)f->factor;
    const BNK_LINE s = BNK_NAME(broadcast)(scale), c = BNK_NAME(broadcast)(center),
                   a = BNK_NAME(broadcast)(slope), r = BNK_NAME(broadcast)(slope_rest),
                   b = BNK_NAME(broadcast)(offset), g = BNK_NAME(broadcast)(factor);
#define BNK_ONE()                                                                     \
    do {                                                                              \
        const BNK_T t = BNK_FMA_ONE(x[i], scale, center);                             \
        const BNK_T rest = BNK_FMA_ONE(t, slope, BNK_FMA_ONE(t, slope_rest, offset)); \
        dx[i] = BNK_FMA_ONE(dy[i], factor, rest);                                     \
    } while (0)
    int64_t i = 0;
    for (const int64_t head = stream ? BNK_NAME(head)(dx, length) : 0; i < head; i++) BNK_ONE();
    for (; i + BNK_LINE_LENGTH <= length; i += BNK_LINE_LENGTH) {
        const BNK_LINE t = BNK_FMA(BNK_AT(x), s, c);
        const BNK_LINE rest = BNK_FMA(t, a, BNK_FMA(t, r, b));
        BNK_NAME(store)(dx + i, BNK_FMA(BNK_AT(dy), g, rest), stream);
    }
    for (; i < length; i++) BNK_ONE();
#undef BNK_ONE
}

BNK_INLINE void BNK_NAME(apply_column_values)(const BNK_T *x, const BNK_T *dy, BNK_T *y,
                                              int64_t length, int64_t ahead, const void *linears,
                                              int stream)
{
    (void)dy;
    const bnk_linears *f = linears;
    const BNK_T *scale = f->scale, *center = f->center, *slope = f->slope, *offset = f->offset;
#define BNK_ONE() y[i] = BNK_FMA_ONE(BNK_FMA_ONE(x[i], scale[i], center[i]), slope[i], offset[i])
    int64_t i = 0;
    for (const int64_t head = stream ? BNK_NAME(head)(y, length) : 0; i < head; i++) BNK_ONE();
    for (; i + BNK_LINE_LENGTH <= length; i += BNK_LINE_LENGTH) {
        BNK_PREFETCH(x + i + ahead);
        const BNK_LINE t = BNK_FMA(BNK_AT(x), BNK_AT(scale), BNK_AT(center));
        BNK_NAME(store)(y + i, BNK_FMA(t, BNK_AT(slope), BNK_AT(offset)), stream);
    }
    for (; i < length; i++) BNK_ONE();
#undef BNK_ONE
}

BNK_INLINE void BNK_NAME(apply_column_gradients)(const BNK_T *x, const BNK_T *dy, BNK_T *dx,
                                                 int64_t length, int64_t ahead, const void *linears,
                                                 int stream)
{
    const bnk_linears *f = linears;
    const BNK_T *scale = f->scale, *center = f->center, *slope = f->slope,
                *slope_rest = f->slope_rest, *offset = f->offset, *factor = f->factor;
#define BNK_ONE()                                                                              \
    do {                                                                                       \
        const BNK_T t = BNK_FMA_ONE(x[i], scale[i], center[i]);                                \
        const BNK_T rest = BNK_FMA_ONE(t, slope[i], BNK_FMA_ONE(t, slope_rest[i], offset[i])); \
        dx[i] = BNK_FMA_ONE(dy[i], factor[i], rest);                                           \
    } while (0)
    int64_t i = 0;
    for (const int64_t head = stream ? BNK_NAME(head)(dx, length) : 0; i < head; i++) BNK_ONE();
    for (; i + BNK_LINE_LENGTH <= length; i += BNK_LINE_LENGTH) {
        BNK_PREFETCH(x + i + ahead);
        BNK_PREFETCH(dy + i + ahead);
        const BNK_LINE t = BNK_FMA(BNK_AT(x), BNK_AT(scale), BNK_AT(center));
        const BNK_LINE tail = BNK_FMA(t, BNK_AT(slope_rest), BNK_AT(offset));
        const BNK_LINE rest = BNK_FMA(t, BNK_AT(slope), tail);
        BNK_NAME(store)(dx + i, BNK_FMA(BNK_AT(dy), BNK_AT(factor), rest), stream);
    }
    for (; i < length; i++) BNK_ONE();
#undef BNK_ONE
}

BNK_INLINE void BNK_NAME(apply_rows)(BNK_NAME(apply_row) * apply, const BNK_T *x, const BNK_T *dy,
                                     BNK_T *y, int64_t rows, int64_t stride, int64_t length,
                                     int64_t ahead, const void *f, int stream)
{
    for (int64_t row = 0; row < rows; row++, x += stride, dy += stride, y += stride)
        apply(x, dy, y, length, ahead, f, stream);
}

static void BNK_NAME(row_apply)(const void *x, void *y, int64_t rows, int64_t stride,
                                int64_t length, const bnk_linear *f, int stream)
{
    if (stream)
        BNK_NAME(apply_rows)(BNK_NAME(apply_row_values), x, x, y, rows, stride, length, 0, f, 1);
    else
        BNK_NAME(apply_rows)(BNK_NAME(apply_row_values), x, x, y, rows, stride, length, 0, f, 0);
}

static void BNK_NAME(row_grad_apply)(const void *x, const void *dy, void *dx, int64_t rows,
                                     int64_t stride, int64_t length, const bnk_linear *f,
                                     int stream)
{
    if (stream)
        BNK_NAME(apply_rows)(BNK_NAME(apply_row_gradients), x, dy, dx, rows, stride, length, 0, f,
                             1);
    else
        BNK_NAME(apply_rows)(BNK_NAME(apply_row_gradients), x, dy, dx, rows, stride, length, 0, f,
                             0);
}

static void BNK_NAME(column_apply)(const void *x, void *y, int64_t rows, int64_t stride,
                                   int64_t columns, int64_t ahead, const bnk_linears *f, int stream)
{
    if (stream)
        BNK_NAME(apply_rows)(BNK_NAME(apply_column_values), x, x, y, rows, stride, columns, ahead,
                             f, 1);
    else
        BNK_NAME(apply_rows)(BNK_NAME(apply_column_values), x, x, y, rows, stride, columns, ahead,
                             f, 0);
}

static void BNK_NAME(column_grad_apply)(const void *x, const void *dy, void *dx, int64_t rows,
                                        int64_t stride, int64_t columns, int64_t ahead,
                                        const bnk_linears *f, int stream)
{
    if (stream)
        BNK_NAME(apply_rows)(BNK_NAME(apply_column_gradients), x, dy, dx, rows, stride, columns,
                             ahead, f, 1);
    else
        BNK_NAME(apply_rows)(BNK_NAME(apply_column_gradients), x, dy, dx, rows, stride, columns,
                             ahead, f, 0);
}

#undef BNK_AT
