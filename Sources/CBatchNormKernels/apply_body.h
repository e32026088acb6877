/*
 * The algorithm of the leaves that apply coefficients, once. Included by leaves_body.h.
 *
 * Non-temporal stores want whole cache lines, each written at once: in halves between rows they took ten times
 * as long (AMD Zen 3). By columns, several rows share what is loaded of the coefficients. Where lines follow one
 * another in memory, most are taken from four places at once: four streams keep memory half again as busy as one.
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

enum { BNK_NAME(lines) = BNK_PER_CACHE_LINE / BNK_LINE_LENGTH }; /* in a cache line */

BNK_INLINE void BNK_NAME(store_cache_line)(BNK_T *p, BNK_CACHE_LINE v, int stream)
{
    if (stream)
        __builtin_nontemporal_store(v, (BNK_CACHE_LINE_ALIGNED *)p);
    else
        *(BNK_CACHE_LINE_AT *)p = v;
}

/* The coefficients of a line of values, and of one value. */
typedef struct BNK_NAME(line_of) {
    BNK_LINE scale, center, slope, slope_rest, offset, factor;
} BNK_NAME(line_of);

typedef struct BNK_NAME(one_of) {
    BNK_C scale, center, slope, slope_rest, offset, factor;
} BNK_NAME(one_of);

/* p + i, or NULL where there is no p */
#define BNK_PLUS(p, i) ((p) ? (p) + (i) : (p))

/* y, or dx if there is dy: see leaves.h. */
#define BNK_FORMULA(FMA, f, x, dy, with_dy, result)                                                \
    do {                                                                                           \
        const __typeof__(x) t = FMA(x, (f).scale, (f).center);                                     \
        if (with_dy)                                                                               \
            (result) = FMA(dy, (f).factor, FMA(t, (f).slope, FMA(t, (f).slope_rest, (f).offset))); \
        else                                                                                       \
            (result) = FMA(t, (f).slope, (f).offset);                                              \
    } while (0)

BNK_INLINE BNK_LINE BNK_NAME(apply_values)(BNK_LINE x, BNK_LINE dy, int with_dy,
                                           BNK_NAME(line_of) f)
{
    BNK_LINE result;
    BNK_FORMULA(BNK_FMA, f, x, dy, with_dy, result);
    return result;
}

BNK_INLINE BNK_LINE BNK_NAME(apply_line)(const BNK_T *x, const BNK_T *dy, BNK_NAME(line_of) f)
{
    const BNK_LINE none = { 0 };
    return BNK_NAME(apply_values)(BNK_NAME(widen_line)(x), dy ? BNK_NAME(widen_line)(dy) : none,
                                  dy != NULL, f);
}

/* A cache line, whose lines have coefficients of their own. */
BNK_INLINE BNK_CACHE_LINE BNK_NAME(apply_cache_line)(const BNK_T *x, const BNK_T *dy,
                                                     const BNK_NAME(line_of) * f)
{
    BNK_LINE done[BNK_NAME(lines)];
    for (int k = 0; k < BNK_NAME(lines); k++)
        done[k] =
            BNK_NAME(apply_line)(x + k * BNK_LINE_LENGTH, BNK_PLUS(dy, k * BNK_LINE_LENGTH), f[k]);
    return BNK_PACK(done);
}

/* A cache line of one channel. */
BNK_INLINE BNK_CACHE_LINE BNK_NAME(apply_to_one)(const BNK_T *x, const BNK_T *dy,
                                                 BNK_NAME(line_of) f)
{
#if BNK_SPLITS
    BNK_LINE from[2], gradient[2] = { { 0 }, { 0 } };
    bnk_split_bf16(*(const BNK_CACHE_LINE_AT *)x, &from[0], &from[1]);
    if (dy) bnk_split_bf16(*(const BNK_CACHE_LINE_AT *)dy, &gradient[0], &gradient[1]);
    return bnk_join_bf16(BNK_NAME(apply_values)(from[0], gradient[0], dy != NULL, f),
                         BNK_NAME(apply_values)(from[1], gradient[1], dy != NULL, f));
#else
    BNK_NAME(line_of) each[BNK_NAME(lines)];
    for (int k = 0; k < BNK_NAME(lines); k++) each[k] = f;
    return BNK_NAME(apply_cache_line)(x, dy, each);
#endif
}

BNK_INLINE BNK_T BNK_NAME(apply_one)(const BNK_T *x, const BNK_T *dy, BNK_NAME(one_of) f)
{
    BNK_C result;
    const BNK_C from = BNK_WIDEN_ONE(*x);
    BNK_FORMULA(BNK_FMA_ONE, f, from, BNK_WIDEN_ONE(*dy), dy, result);
    return BNK_NARROW_ONE(result);
}

#undef BNK_FORMULA

/* How many values lie before the first cache line that starts within p[0..length), if that matters. */
BNK_INLINE int64_t BNK_NAME(head)(const BNK_T *p, int64_t length, int stream)
{
    if (!stream) return 0;
    const int64_t past = (int64_t)(((uintptr_t)p % 64) / sizeof(BNK_T));
    const int64_t head = past == 0 ? 0 : BNK_PER_CACHE_LINE - past;
    return head < length ? head : length;
}

/* How many of some units of memory, one behind the other, each of the streams takes; 0 if they cannot be cut so. Streams
 * must not begin at the same place of a memory page, for there a core takes loads and stores for one another. */
enum { BNK_NAME(streams) = 4 };
BNK_INLINE int64_t BNK_NAME(part_of)(int64_t units, int64_t bytes)
{
    if (bytes % 4096 == 0) return 0;
    for (int64_t part = units / BNK_NAME(streams); part > units / 8; part--) {
        const int64_t in_page = part * bytes % 4096;
        if (in_page >= 1024 && in_page <= 3072) return part;
    }
    return 0;
}

/* ---- by rows ---- */

BNK_INLINE BNK_LINE BNK_NAME(broadcast)(BNK_C value)
{
    return value - (BNK_LINE){ 0 };
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

/* Less than a cache line, so with ordinary stores. */
BNK_LEAF void BNK_NAME(apply_few)(const BNK_T *x, const BNK_T *dy, BNK_T *y, int64_t count,
                                  const bnk_linear *f)
{
    const BNK_NAME(one_of) one = { (BNK_C)f->scale,      (BNK_C)f->center, (BNK_C)f->slope,
                                   (BNK_C)f->slope_rest, (BNK_C)f->offset, (BNK_C)f->factor };
    int64_t i = 0;
    for (; i + BNK_LINE_LENGTH <= count; i += BNK_LINE_LENGTH)
        BNK_NAME(narrow_line)(
            y + i, BNK_NAME(apply_line)(x + i, BNK_PLUS(dy, i), BNK_NAME(row_line)(f)), 0);
#pragma clang loop unroll(disable) vectorize(disable)
    for (; i < count; i++) y[i] = BNK_NAME(apply_one)(x + i, BNK_PLUS(dy, i), one);
}

/* Most of a row, past the caches, if it is long enough; returns how many values. (A backward's values come from L2, and
 * gain nothing.) */
BNK_INLINE int64_t BNK_NAME(stream_row)(const BNK_T *x, BNK_T *y, int64_t length,
                                        BNK_NAME(line_of) f)
{
    enum { LONG = 16384 / sizeof(BNK_T) };
    if (!BNK_FOR_SPEED || length < LONG) return 0;
    const int64_t part = BNK_NAME(part_of)(length / BNK_PER_CACHE_LINE, 64) * BNK_PER_CACHE_LINE;
    for (int64_t i = 0; i < part; i += BNK_PER_CACHE_LINE)
#pragma clang loop unroll(disable) /* memory is slower */
        for (int p = 0; p < BNK_NAME(streams); p++) {
            const int64_t at = p * part + i;
            BNK_NAME(store_cache_line)(y + at, BNK_NAME(apply_to_one)(x + at, NULL, f), 1);
        }
    return BNK_NAME(streams) * part;
}

BNK_INLINE void BNK_NAME(apply_rows)(const BNK_T *x, const BNK_T *dy, BNK_T *y, int64_t rows,
                                     int64_t stride, int64_t length, const bnk_linear *f,
                                     int stream)
{
    const BNK_NAME(line_of) line = BNK_NAME(row_line)(f);
    for (int64_t row = 0; row < rows; row++, x += stride, dy = BNK_PLUS(dy, stride), y += stride) {
        int64_t i = BNK_NAME(head)(y, length, stream);
        if (i > 0) BNK_NAME(apply_few)(x, dy, y, i, f);
        if (stream && !dy) i += BNK_NAME(stream_row)(x + i, y + i, length - i, line);
        for (; i + BNK_PER_CACHE_LINE <= length; i += BNK_PER_CACHE_LINE)
            BNK_NAME(store_cache_line)(y + i, BNK_NAME(apply_to_one)(x + i, BNK_PLUS(dy, i), line),
                                       stream);
        if (i < length) BNK_NAME(apply_few)(x + i, BNK_PLUS(dy, i), y + i, length - i, f);
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

/* The coefficients of a cache line from column `i` on. */
BNK_INLINE void BNK_NAME(lines_at)(const bnk_linears *f, int64_t i, BNK_NAME(line_of) * lines)
{
    for (int k = 0; k < BNK_NAME(lines); k++)
        lines[k] = BNK_NAME(line_at)(f, i + k * BNK_LINE_LENGTH);
}

/* Less than a cache line, from column `at` on, so with ordinary stores. */
BNK_LEAF void BNK_NAME(apply_few_columns)(const BNK_T *x, const BNK_T *dy, BNK_T *y, int64_t count,
                                          const bnk_linears *f, int64_t at)
{
    int64_t i = 0;
    for (; i + BNK_LINE_LENGTH <= count; i += BNK_LINE_LENGTH)
        BNK_NAME(narrow_line)(
            y + i, BNK_NAME(apply_line)(x + i, BNK_PLUS(dy, i), BNK_NAME(line_at)(f, at + i)), 0);
#pragma clang loop unroll(disable) vectorize(disable)
    for (; i < count; i++)
        y[i] = BNK_NAME(apply_one)(x + i, BNK_PLUS(dy, i), BNK_NAME(one_at)(f, at + i));
}

/* Some rows side by side; past the caches one, for the head is the first row's. */
BNK_INLINE void BNK_NAME(apply_columns)(const BNK_T *x, const BNK_T *dy, BNK_T *y, int rows,
                                        int64_t stride, int64_t columns, const bnk_linears *f,
                                        int stream)
{
    int64_t i = BNK_NAME(head)(y, columns, stream);
    for (int r = 0; i > 0 && r < rows; r++)
        BNK_NAME(apply_few_columns)(x + r * stride, BNK_PLUS(dy, r * stride), y + r * stride, i, f,
                                    0);
    for (; i + BNK_PER_CACHE_LINE <= columns; i += BNK_PER_CACHE_LINE) {
        BNK_NAME(line_of) own[BNK_NAME(lines)];
        BNK_NAME(lines_at)(f, i, own);
        for (int r = 0; r < rows; r++) {
            const int64_t at = r * stride + i;
            BNK_NAME(store_cache_line)(
                y + at, BNK_NAME(apply_cache_line)(x + at, BNK_PLUS(dy, at), own), stream);
        }
    }
    for (int r = 0; i < columns && r < rows; r++) {
        const int64_t at = r * stride + i;
        BNK_NAME(apply_few_columns)(x + at, BNK_PLUS(dy, at), y + at, columns - i, f, i);
    }
}

BNK_INLINE void BNK_NAME(stream_copy)(const BNK_T *from, BNK_T *to, int64_t length)
{
    int64_t i = 0;
#pragma clang loop unroll(disable) vectorize(disable)
    for (const int64_t head = BNK_NAME(head)(to, length, 1); i < head; i++) to[i] = from[i];
    for (; i + BNK_PER_CACHE_LINE <= length; i += BNK_PER_CACHE_LINE)
        BNK_NAME(store_cache_line)(to + i, *(const BNK_CACHE_LINE_AT *)(from + i), 1);
#pragma clang loop unroll(disable) vectorize(disable)
    for (; i < length; i++) to[i] = from[i];
}

/* Streams, each of `rows` rows that are whole cache lines and follow one another in memory. */
BNK_INLINE void BNK_NAME(stream_parts)(const BNK_T *x, const BNK_T *dy, BNK_T *y, int64_t rows,
                                       int64_t columns, const bnk_linears *f, int stream)
{
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < columns; i += BNK_PER_CACHE_LINE) {
            BNK_NAME(line_of) own[BNK_NAME(lines)];
            BNK_NAME(lines_at)(f, i, own);
#pragma clang loop unroll(disable) /* memory is slower, and this is long code */
            for (int part = 0; part < BNK_NAME(streams); part++) {
                const int64_t at = (row + part * rows) * columns + i;
                BNK_NAME(store_cache_line)(
                    y + at, BNK_NAME(apply_cache_line)(x + at, BNK_PLUS(dy, at), own), stream);
            }
        }
}

/* How many rows lie in each stream, if that is possible; else 0. */
BNK_INLINE int64_t BNK_NAME(part_rows)(const BNK_T *y, int64_t rows, int64_t stride,
                                       int64_t columns, int stream)
{
    const int64_t bytes = columns * (int64_t)sizeof(BNK_T);
    if (!BNK_FOR_SPEED || stride != columns || bytes % 64 != 0) return 0;
    if (stream && (uintptr_t)y % 64 != 0) return 0;
    return BNK_NAME(part_of)(rows, bytes);
}

BNK_INLINE void BNK_NAME(apply_lines)(const BNK_T *x, const BNK_T *dy, BNK_T *y, int64_t rows,
                                      int64_t stride, int64_t columns, const bnk_linears *f,
                                      int stream)
{
    /* Rows at once; more would be more streams than a core follows. Past the caches, even two are. */
    const int together = stream || !BNK_FOR_SPEED ? 1 : 4;
    const int64_t part = BNK_NAME(part_rows)(y, rows, stride, columns, stream);
    if (part > 0) {
        const int64_t taken = BNK_NAME(streams) * part;
        BNK_NAME(stream_parts)(x, dy, y, part, columns, f, stream);
        rows -= taken;
        x += taken * stride;
        dy = BNK_PLUS(dy, taken * stride);
        y += taken * stride;
    }
    while (rows > 0) {
        const int taken = rows >= together ? together : 1;
        if (taken > 1)
            BNK_NAME(apply_columns)(x, dy, y, together, stride, columns, f, 0);
        else
            BNK_NAME(apply_columns)(x, dy, y, 1, stride, columns, f, stream);
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
