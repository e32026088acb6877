/*
 * The algorithm of the leaves that apply coefficients, once. Included by leaves_body.h.
 *
 * Non-temporal stores want whole cache lines, each written at once: in halves between rows they took ten times
 * as long (AMD Zen 3). By columns, several rows share what is loaded of the coefficients. Where lines follow one
 * another in memory, most are taken from four places at once: four streams keep memory half again as busy as one. Others
 * go through a buffer.
 */

/* ---- stored values and lines of computing type ---- */

BNK_INLINE void BNK_NAME(store)(BNK_T *p, BNK_STORED v, int stream)
{
    if (stream)
        __builtin_nontemporal_store(v, (BNK_STORED_ALIGNED *)p);
    else
        *(BNK_STORED_AT *)p = v;
}

BNK_INLINE BNK_LINE BNK_NAME(widen_line)(const BNK_T *p)
{
    return BNK_WIDEN(*(const BNK_STORED_AT *)p);
}

BNK_INLINE void BNK_NAME(narrow_line)(BNK_T *p, BNK_LINE v, int stream)
{
    BNK_NAME(store)(p, BNK_NARROW(v), stream);
}

/* The coefficients of a line of values, and of one value. */
typedef struct BNK_NAME(line_of) {
    BNK_LINE scale, center, slope, slope_rest, offset, factor;
} BNK_NAME(line_of);

typedef struct BNK_NAME(one_of) {
    BNK_C scale, center, slope, slope_rest, offset, factor;
} BNK_NAME(one_of);

/* y, or dx if there is dy: see leaves.h. */
#define BNK_FORMULA(FMA, f, x, dy, with_dy, result)                                                \
    do {                                                                                           \
        const __typeof__(x) t = FMA(x, (f).scale, (f).center);                                     \
        if (with_dy)                                                                               \
            (result) = FMA(dy, (f).factor, FMA(t, (f).slope, FMA(t, (f).slope_rest, (f).offset))); \
        else                                                                                       \
            (result) = FMA(t, (f).slope, (f).offset);                                              \
    } while (0)

BNK_INLINE BNK_LINE BNK_NAME(apply_line)(const BNK_T *x, const BNK_T *dy, BNK_NAME(line_of) f)
{
    BNK_LINE result;
    const BNK_LINE from = BNK_NAME(widen_line)(x);
    BNK_FORMULA(BNK_FMA, f, from, BNK_NAME(widen_line)(dy), dy, result);
    return result;
}

BNK_INLINE BNK_T BNK_NAME(apply_one)(const BNK_T *x, const BNK_T *dy, BNK_NAME(one_of) f)
{
    BNK_C result;
    const BNK_C from = BNK_WIDEN_ONE(*x);
    BNK_FORMULA(BNK_FMA_ONE, f, from, BNK_WIDEN_ONE(*dy), dy, result);
    return BNK_NARROW_ONE(result);
}

#undef BNK_FORMULA

/* p + i, or NULL where there is no p */
#define BNK_PLUS(p, i) ((p) ? (p) + (i) : (p))

/* How many values lie before the first cache line that starts within p[0..length), if that matters. */
BNK_INLINE int64_t BNK_NAME(head)(const BNK_T *p, int64_t length, int stream)
{
    if (!stream) return 0;
    const int64_t past = (int64_t)(((uintptr_t)p % 64) / sizeof(BNK_T));
    const int64_t head = past == 0 ? 0 : BNK_PER_CACHE_LINE - past;
    return head < length ? head : length;
}

/* ---- by rows ---- */

BNK_INLINE BNK_LINE BNK_NAME(broadcast)(BNK_C value)
{
    return value - (BNK_LINE){ 0 };
}

BNK_INLINE void BNK_NAME(apply_rows)(const BNK_T *x, const BNK_T *dy, BNK_T *y, int64_t rows,
                                     int64_t stride, int64_t length, const bnk_linear *f,
                                     int stream)
{
    const BNK_NAME(one_of) one = { (BNK_C)f->scale,      (BNK_C)f->center, (BNK_C)f->slope,
                                   (BNK_C)f->slope_rest, (BNK_C)f->offset, (BNK_C)f->factor };
    const BNK_NAME(line_of)
        line = { BNK_NAME(broadcast)(one.scale),  BNK_NAME(broadcast)(one.center),
                 BNK_NAME(broadcast)(one.slope),  BNK_NAME(broadcast)(one.slope_rest),
                 BNK_NAME(broadcast)(one.offset), BNK_NAME(broadcast)(one.factor) };
    for (int64_t row = 0; row < rows; row++, x += stride, dy = BNK_PLUS(dy, stride), y += stride) {
        int64_t i = 0;
#pragma clang loop unroll(disable) vectorize(disable)
        for (const int64_t head = BNK_NAME(head)(y, length, stream); i < head; i++)
            y[i] = BNK_NAME(apply_one)(x + i, BNK_PLUS(dy, i), one);
        for (; i + BNK_LINE_LENGTH <= length; i += BNK_LINE_LENGTH)
            BNK_NAME(narrow_line)(y + i, BNK_NAME(apply_line)(x + i, BNK_PLUS(dy, i), line),
                                  stream);
#pragma clang loop unroll(disable) vectorize(disable)
        for (; i < length; i++) y[i] = BNK_NAME(apply_one)(x + i, BNK_PLUS(dy, i), one);
    }
}

static void BNK_NAME(row_apply)(const void *x, void *y, int64_t rows, int64_t stride,
                                int64_t length, const bnk_linear *f, int stream)
{
    if (stream)
        BNK_NAME(apply_rows)(x, NULL, y, rows, stride, length, f, 1);
    else
        BNK_NAME(apply_rows)(x, NULL, y, rows, stride, length, f, 0);
}

static void BNK_NAME(row_grad_apply)(const void *x, const void *dy, void *dx, int64_t rows,
                                     int64_t stride, int64_t length, const bnk_linear *f,
                                     int stream)
{
    if (stream)
        BNK_NAME(apply_rows)(x, dy, dx, rows, stride, length, f, 1);
    else
        BNK_NAME(apply_rows)(x, dy, dx, rows, stride, length, f, 0);
}

/* ---- by columns ---- */

BNK_INLINE BNK_NAME(line_of) BNK_NAME(line_at)(const bnk_linears *f, int64_t i)
{
#define BNK_AT(values) (*(const BNK_LINE_AT *)((const BNK_C *)(values) + i))
    const BNK_NAME(line_of) line = { BNK_AT(f->scale),      BNK_AT(f->center), BNK_AT(f->slope),
                                     BNK_AT(f->slope_rest), BNK_AT(f->offset), BNK_AT(f->factor) };
#undef BNK_AT
    return line;
}

BNK_INLINE BNK_NAME(one_of) BNK_NAME(one_at)(const bnk_linears *f, int64_t i)
{
#define BNK_AT(values) (((const BNK_C *)(values))[i])
    const BNK_NAME(one_of) one = { BNK_AT(f->scale),      BNK_AT(f->center), BNK_AT(f->slope),
                                   BNK_AT(f->slope_rest), BNK_AT(f->offset), BNK_AT(f->factor) };
#undef BNK_AT
    return one;
}

/* Columns begin..<end of some rows of x (and dy), to the same rows of y, whose first column is
 * `begin`. With ordinary stores. */
BNK_INLINE void BNK_NAME(apply_columns)(const BNK_T *x, const BNK_T *dy, BNK_T *y, int rows,
                                        int64_t stride, int64_t y_stride, int64_t begin,
                                        int64_t end, const bnk_linears *f)
{
    int64_t i = begin;
    for (; i + BNK_LINE_LENGTH <= end; i += BNK_LINE_LENGTH) {
        const BNK_NAME(line_of) line = BNK_NAME(line_at)(f, i);
        for (int r = 0; r < rows; r++)
            BNK_NAME(narrow_line)(
                y + r * y_stride + i - begin,
                BNK_NAME(apply_line)(x + r * stride + i, BNK_PLUS(dy, r * stride + i), line), 0);
    }
#pragma clang loop unroll(disable) vectorize(disable)
    for (; i < end; i++)
        for (int r = 0; r < rows; r++)
            y[r * y_stride + i - begin] = BNK_NAME(apply_one)(
                x + r * stride + i, BNK_PLUS(dy, r * stride + i), BNK_NAME(one_at)(f, i));
}

/* One row, past the caches. */
BNK_INLINE void BNK_NAME(stream_row)(const BNK_T *x, const BNK_T *dy, BNK_T *y, int64_t columns,
                                     const bnk_linears *f)
{
    int64_t i = 0;
#pragma clang loop unroll(disable) vectorize(disable)
    for (const int64_t head = BNK_NAME(head)(y, columns, 1); i < head; i++)
        y[i] = BNK_NAME(apply_one)(x + i, BNK_PLUS(dy, i), BNK_NAME(one_at)(f, i));
    for (; i + BNK_LINE_LENGTH <= columns; i += BNK_LINE_LENGTH)
        BNK_NAME(narrow_line)(
            y + i, BNK_NAME(apply_line)(x + i, BNK_PLUS(dy, i), BNK_NAME(line_at)(f, i)), 1);
#pragma clang loop unroll(disable) vectorize(disable)
    for (; i < columns; i++)
        y[i] = BNK_NAME(apply_one)(x + i, BNK_PLUS(dy, i), BNK_NAME(one_at)(f, i));
}

BNK_INLINE void BNK_NAME(stream_copy)(const BNK_T *from, BNK_T *to, int64_t length)
{
    int64_t i = 0;
#pragma clang loop unroll(disable) vectorize(disable)
    for (const int64_t head = BNK_NAME(head)(to, length, 1); i < head; i++) to[i] = from[i];
    for (; i + BNK_LINE_LENGTH <= length; i += BNK_LINE_LENGTH)
        BNK_NAME(store)(to + i, *(const BNK_STORED_AT *)(from + i), 1);
#pragma clang loop unroll(disable) vectorize(disable)
    for (; i < length; i++) to[i] = from[i];
}

/* BNK_ROWS rows, past the caches, each in as long a stretch as an L1-sized buffer allows. */
BNK_INLINE void BNK_NAME(stream_rows)(const BNK_T *x, const BNK_T *dy, BNK_T *y, int64_t stride,
                                      int64_t columns, const bnk_linears *f)
{
    enum { WIDTH = 1024 / sizeof(BNK_T) };
    BNK_T buffer[BNK_ROWS * WIDTH] __attribute__((aligned(64)));
    for (int64_t begin = 0, end; begin < columns; begin = end) {
        end = begin + WIDTH < columns ? begin + WIDTH : columns;
        if (begin == 0 && end < columns)
            end -= (int64_t)((uintptr_t)(y + end) % 64 / sizeof(BNK_T));
        BNK_NAME(apply_columns)(x, dy, buffer, BNK_ROWS, stride, WIDTH, begin, end, f);
        for (int r = 0; r < BNK_ROWS; r++)
            BNK_NAME(stream_copy)(buffer + r * WIDTH, y + r * stride + begin, end - begin);
    }
}

/* So many streams, each of `rows` rows that are whole cache lines and follow one another in memory. */
enum { BNK_NAME(streams) = 4 };
BNK_INLINE void BNK_NAME(stream_parts)(const BNK_T *x, const BNK_T *dy, BNK_T *y, int64_t rows,
                                       int64_t columns, const bnk_linears *f, int stream)
{
    enum { LINES = BNK_PER_CACHE_LINE / BNK_LINE_LENGTH };
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < columns; i += BNK_PER_CACHE_LINE) {
            BNK_NAME(line_of) own[LINES];
            for (int k = 0; k < LINES; k++) own[k] = BNK_NAME(line_at)(f, i + k * BNK_LINE_LENGTH);
#pragma clang loop unroll(disable) /* memory is slower, and this is long code */
            for (int part = 0; part < BNK_NAME(streams); part++) {
                const int64_t at = (row + part * rows) * columns + i;
                BNK_STORED done[LINES];
                for (int k = 0; k < LINES; k++) {
                    const int64_t j = at + k * BNK_LINE_LENGTH;
                    done[k] = BNK_NARROW(BNK_NAME(apply_line)(x + j, BNK_PLUS(dy, j), own[k]));
                }
                for (int k = 0; k < LINES; k++)
                    BNK_NAME(store)(y + at + k * BNK_LINE_LENGTH, done[k], stream);
            }
        }
}

/* How many rows lie in each stream, if that is possible; else 0. Streams must not begin at the same place of a memory
 * page, for there a core takes loads and stores for one another. */
BNK_INLINE int64_t BNK_NAME(part_rows)(const BNK_T *y, int64_t rows, int64_t stride,
                                       int64_t columns, int stream)
{
    const int64_t bytes = columns * (int64_t)sizeof(BNK_T);
    if (stride != columns || bytes % 64 != 0 || bytes % 4096 == 0) return 0;
    if (stream && (uintptr_t)y % 64 != 0) return 0;
    for (int64_t part = rows / BNK_NAME(streams); part > rows / 8; part--) {
        const int64_t in_page = part * bytes % 4096;
        if (in_page >= 1024 && in_page <= 3072) return part;
    }
    return 0;
}

BNK_INLINE void BNK_NAME(apply_lines)(const BNK_T *x, const BNK_T *dy, BNK_T *y, int64_t rows,
                                      int64_t stride, int64_t columns, const bnk_linears *f,
                                      int stream)
{
    enum { ORDINARY = 4 }; /* rows at once; more would be more streams than a core follows */
    const int64_t part = BNK_NAME(part_rows)(y, rows, stride, columns, stream);
    if (part > 0) {
        const int64_t taken = BNK_NAME(streams) * part;
        BNK_NAME(stream_parts)(x, dy, y, part, columns, f, stream);
        rows -= taken;
        x += taken * stride;
        dy = BNK_PLUS(dy, taken * stride);
        y += taken * stride;
    }
    /* With dy, rows through a buffer are more streams than a core follows. */
    const int through_buffer = stream && !dy && bnk_streams_rows(stride, columns, sizeof(BNK_T));
    const int together = through_buffer ? BNK_ROWS : stream ? 1 : ORDINARY;
    while (rows > 0) {
        const int taken = rows >= together ? together : 1;
        if (taken == BNK_ROWS)
            BNK_NAME(stream_rows)(x, dy, y, stride, columns, f);
        else if (taken == ORDINARY)
            BNK_NAME(apply_columns)(x, dy, y, ORDINARY, stride, stride, 0, columns, f);
        else if (stream)
            BNK_NAME(stream_row)(x, dy, y, columns, f);
        else
            BNK_NAME(apply_columns)(x, dy, y, 1, stride, stride, 0, columns, f);
        rows -= taken;
        x += taken * stride;
        dy = BNK_PLUS(dy, taken * stride);
        y += taken * stride;
    }
}

static void BNK_NAME(column_apply)(const void *x, void *y, int64_t rows, int64_t stride,
                                   int64_t columns, const bnk_linears *f, int stream)
{
    if (stream)
        BNK_NAME(apply_lines)(x, NULL, y, rows, stride, columns, f, 1);
    else
        BNK_NAME(apply_lines)(x, NULL, y, rows, stride, columns, f, 0);
}

static void BNK_NAME(column_grad_apply)(const void *x, const void *dy, void *dx, int64_t rows,
                                        int64_t stride, int64_t columns, const bnk_linears *f,
                                        int stream)
{
    if (stream)
        BNK_NAME(apply_lines)(x, dy, dx, rows, stride, columns, f, 1);
    else
        BNK_NAME(apply_lines)(x, dy, dx, rows, stride, columns, f, 0);
}

#undef BNK_PLUS
