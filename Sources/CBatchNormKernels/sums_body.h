/*
 * The algorithm of the sums, once. Included by leaves_body.h.
 *
 * Wide sums walk four rows side by side: four streams keep a core's memory busier than one. They are float64: a product of
 * float32 differences is then exact, squares cannot overflow, and a pivot taken from the data bounds the
 * cancellation (see moments.h). Multiply and add stay apart (no FMA); the files are compiled with -ffp-contract=off.
 */

BNK_INLINE bnk_f64x16 BNK_NAME(lanes_at)(const BNK_T *p)
{
    return __builtin_convertvector(BNK_WIDEN_LANES(*(const BNK_LANES_AT *)p), bnk_f64x16);
}

BNK_INLINE bnk_f64x8 BNK_NAME(half_at)(const BNK_T *p)
{
    return __builtin_convertvector(BNK_WIDEN_HALF(*(const BNK_HALF_AT *)p), bnk_f64x8);
}

/*
 * total += value, of row r of `together` at one place; row after row, but in float64 tensors, of which four or two rows
 * are first added among themselves: that makes chains of additions shorter (see carry.h) and costs nothing.
 */
#if BNK_COMPUTES_FLOAT
#define BNK_ADD_ROW(total, held, r, together, value) ((void)(held), (total) += (value))
#else
#define BNK_ADD_ROW(total, held, r, together, value)                                     \
    do {                                                                                 \
        (held)[r] = (value);                                                             \
        if ((r) + 1 < (together)) break;                                                 \
        (total) += (together) == 4   ? ((held)[0] + (held)[1]) + ((held)[2] + (held)[3]) \
                   : (together) == 2 ? (held)[0] + (held)[1]                             \
                                     : (held)[0];                                        \
    } while (0)
#endif

/* ---- by rows ---- */

/* `count` values of each of some rows, made a full vector with a value that adds nothing. */
BNK_LEAF void BNK_NAME(pad)(BNK_T *padded, const BNK_T *row, int together, int64_t stride,
                            int64_t count, double filler)
{
    for (int r = 0; r < together; r++)
#pragma clang loop unroll(disable) vectorize(disable)
        for (int64_t i = 0; i < BNK_LANES; i++)
            padded[r * BNK_LANES + i] =
                i < count ? row[r * stride + i] : BNK_NARROW_ONE((BNK_C)filler);
}

/*
 * The inner loops of the sums, in functions of their own so that all sums stay in registers.
 * length is a multiple of 16.
 */
#if BNK_COMPUTES_FLOAT
BNK_INLINE void BNK_NAME(add_rows)(const BNK_T *x, int together, int64_t stride, int64_t length,
                                   double pivot, bnk_lane_sums *sums)
{
    const bnk_f64x16 p = pivot - (bnk_f64x16){ 0 }, one = BNK_ONES(bnk_f64x16);
    bnk_f64x16 s = *(bnk_f64x16_at *)sums->first, q = *(bnk_f64x16_at *)sums->second;
    for (int64_t i = 0; i < length; i += BNK_LANES)
        for (int r = 0; r < together; r++) {
            const bnk_f64x16 c = BNK_SUBTRACT(BNK_NAME(lanes_at)(x + r * stride + i), p, one);
            s += c;
            q += c * c;
        }
    *(bnk_f64x16_at *)sums->first = s;
    *(bnk_f64x16_at *)sums->second = q;
}
#else
/* Eight lanes at a time, so that the differences of four rows stay in registers. */
BNK_INLINE void BNK_NAME(add_rows)(const BNK_T *x, int together, int64_t stride, int64_t length,
                                   double pivot, bnk_lane_sums *sums)
{
    const bnk_f64x8 p = pivot - (bnk_f64x8){ 0 }, one = BNK_ONES(bnk_f64x8);
    bnk_f64x8 s[2], q[2];
    for (int h = 0; h < 2; h++) {
        s[h] = *(bnk_f64x8_at *)(sums->first + 8 * h);
        q[h] = *(bnk_f64x8_at *)(sums->second + 8 * h);
    }
    for (int64_t i = 0; i < length; i += BNK_LANES)
        for (int h = 0; h < 2; h++) {
            bnk_f64x8 held_c[4], held_d[4];
            for (int r = 0; r < together; r++) {
                const bnk_f64x8 c =
                    BNK_SUBTRACT(BNK_NAME(half_at)(x + r * stride + i + 8 * h), p, one);
                BNK_ADD_ROW(s[h], held_c, r, together, c);
                BNK_ADD_ROW(q[h], held_d, r, together, c * c);
            }
        }
    for (int h = 0; h < 2; h++) {
        *(bnk_f64x8_at *)(sums->first + 8 * h) = s[h];
        *(bnk_f64x8_at *)(sums->second + 8 * h) = q[h];
    }
}
#endif

BNK_LEAF void BNK_NAME(add_four_rows)(const BNK_T *x, int64_t stride, int64_t length, double pivot,
                                      bnk_lane_sums *sums)
{
    BNK_NAME(add_rows)(x, 4, stride, length, pivot, sums);
}

BNK_LEAF void BNK_NAME(add_one_row)(const BNK_T *x, int64_t length, double pivot,
                                    bnk_lane_sums *sums)
{
    BNK_NAME(add_rows)(x, 1, 0, length, pivot, sums);
}

static void BNK_NAME(row_sums)(const void *x, int64_t rows, int64_t stride, int64_t length,
                               double pivot, bnk_lane_sums *sums)
{
    BNK_T padded[4 * BNK_LANES];
    const int64_t tail = length % BNK_LANES, whole = length - tail;
    const BNK_T *row = x;
    for (; rows >= 4; rows -= 4, row += 4 * stride) {
        BNK_NAME(add_four_rows)(row, stride, whole, pivot, sums);
        if (tail == 0) continue;
        BNK_NAME(pad)(padded, row + whole, 4, stride, tail, pivot);
        BNK_NAME(add_four_rows)(padded, BNK_LANES, BNK_LANES, pivot, sums);
    }
    for (; rows > 0; rows--, row += stride) {
        BNK_NAME(add_one_row)(row, whole, pivot, sums);
        if (tail == 0) continue;
        BNK_NAME(pad)(padded, row + whole, 1, stride, tail, pivot);
        BNK_NAME(add_one_row)(padded, BNK_LANES, pivot, sums);
    }
}

/* length is a multiple of 16. */
BNK_INLINE void BNK_NAME(add_grad_rows)(const BNK_T *x, const BNK_T *dy, int together,
                                        int64_t stride, int64_t length, int64_t ahead, double mean,
                                        bnk_lane_sums *sums)
{
    const bnk_f64x16 m = mean - (bnk_f64x16){ 0 }, one = BNK_ONES(bnk_f64x16);
    bnk_f64x16 s = *(bnk_f64x16_at *)sums->first, q = *(bnk_f64x16_at *)sums->second;
    for (int64_t i = 0; i < length; i += BNK_LANES) {
        bnk_f64x16 held_g[4], held_p[4];
        for (int r = 0; r < together; r++) {
            BNK_PREFETCH_LANES(x + r * stride + i + ahead);
            BNK_PREFETCH_LANES(dy + r * stride + i + ahead);
            const bnk_f64x16 g = BNK_NAME(lanes_at)(dy + r * stride + i);
            BNK_ADD_ROW(s, held_g, r, together, g);
            BNK_ADD_ROW(q, held_p, r, together,
                        g * BNK_SUBTRACT(BNK_NAME(lanes_at)(x + r * stride + i), m, one));
        }
    }
    *(bnk_f64x16_at *)sums->first = s;
    *(bnk_f64x16_at *)sums->second = q;
}

BNK_LEAF void BNK_NAME(add_two_grad_rows)(const BNK_T *x, const BNK_T *dy, int64_t stride,
                                          int64_t length, int64_t ahead, double mean,
                                          bnk_lane_sums *sums)
{
    BNK_NAME(add_grad_rows)(x, dy, 2, stride, length, ahead, mean, sums);
}

BNK_LEAF void BNK_NAME(add_one_grad_row)(const BNK_T *x, const BNK_T *dy, int64_t length,
                                         int64_t ahead, double mean, bnk_lane_sums *sums)
{
    BNK_NAME(add_grad_rows)(x, dy, 1, 0, length, ahead, mean, sums);
}

static void BNK_NAME(row_grad_sums)(const void *x, const void *dy, int64_t rows, int64_t stride,
                                    int64_t length, int64_t ahead, double mean, bnk_lane_sums *sums)
{
    BNK_T padded_x[2 * BNK_LANES], padded_dy[2 * BNK_LANES];
    const int64_t tail = length % BNK_LANES, whole = length - tail;
    const BNK_T *xr = x, *gr = dy;
    for (; rows >= 2; rows -= 2, xr += 2 * stride, gr += 2 * stride) {
        BNK_NAME(add_two_grad_rows)(xr, gr, stride, whole, ahead, mean, sums);
        if (tail == 0) continue;
        BNK_NAME(pad)(padded_x, xr + whole, 2, stride, tail, 0);
        BNK_NAME(pad)(padded_dy, gr + whole, 2, stride, tail, 0);
        BNK_NAME(add_two_grad_rows)(padded_x, padded_dy, BNK_LANES, BNK_LANES, 0, mean, sums);
    }
    for (; rows > 0; rows--, xr += stride, gr += stride) {
        BNK_NAME(add_one_grad_row)(xr, gr, whole, ahead, mean, sums);
        if (tail == 0) continue;
        BNK_NAME(pad)(padded_x, xr + whole, 1, stride, tail, 0);
        BNK_NAME(pad)(padded_dy, gr + whole, 1, stride, tail, 0);
        BNK_NAME(add_one_grad_row)(padded_x, padded_dy, BNK_LANES, 0, mean, sums);
    }
}

/* ---- by columns ---- */

/*
 * Which cache line to prefetch next: those of the rows after the ones that are being read, in the order
 * of memory. The hardware, seeing lines too short for its streams, fetches them late.
 */
typedef struct BNK_NAME(fetcher) {
    int64_t row, column; /* both in elements */
    int64_t stride, columns;
} BNK_NAME(fetcher);

BNK_INLINE int64_t BNK_NAME(next_line)(BNK_NAME(fetcher) * fetch)
{
    const int64_t at = fetch->row + fetch->column;
    fetch->column += BNK_PER_CACHE_LINE;
    if (fetch->column >= fetch->columns) {
        fetch->column = 0;
        fetch->row += fetch->stride;
    }
    return at;
}

/* Eight columns of `together` rows; each column adds them as BNK_ADD_ROW says. */
BNK_INLINE void BNK_NAME(add_columns)(const BNK_T *x, int together, int64_t stride,
                                      const double *pivot, double *sum, double *sum_squares)
{
    const bnk_f64x8 p = *(const bnk_f64x8_at *)pivot, one = BNK_ONES(bnk_f64x8);
    bnk_f64x8 s = *(bnk_f64x8_at *)sum, q = *(bnk_f64x8_at *)sum_squares;
    bnk_f64x8 held_c[4], held_d[4];
    for (int r = 0; r < together; r++) {
        const bnk_f64x8 c = BNK_SUBTRACT(BNK_NAME(half_at)(x + r * stride), p, one);
        BNK_ADD_ROW(s, held_c, r, together, c);
        BNK_ADD_ROW(q, held_d, r, together, c * c);
    }
    *(bnk_f64x8_at *)sum = s;
    *(bnk_f64x8_at *)sum_squares = q;
}

BNK_INLINE void BNK_NAME(column_sums_rows)(const BNK_T *x, int together, int64_t stride,
                                           int64_t columns, int ahead, const double *pivot,
                                           double *sum, double *sum_squares)
{
    BNK_NAME(fetcher) fetch = { together * stride, 0, stride, columns };
    int64_t j = 0;
    for (; j + 16 <= columns; j += 16) {
        for (int r = 0; ahead && r < together * 16 / BNK_PER_CACHE_LINE; r++)
            BNK_PREFETCH(x + BNK_NAME(next_line)(&fetch));
        BNK_NAME(add_columns)(x + j, together, stride, pivot + j, sum + j, sum_squares + j);
        BNK_NAME(add_columns)(x + j + 8, together, stride, pivot + j + 8, sum + j + 8,
                              sum_squares + j + 8);
    }
#pragma clang loop unroll(disable) vectorize(disable)
    for (; j < columns; j++) {
        double held_c[4], held_d[4];
        for (int r = 0; r < together; r++) {
            const double c = (double)BNK_WIDEN_ONE(x[r * stride + j]) - pivot[j];
            BNK_ADD_ROW(sum[j], held_c, r, together, c);
            BNK_ADD_ROW(sum_squares[j], held_d, r, together, c * c);
        }
    }
}

static void BNK_NAME(column_sums)(const void *x, int64_t rows, int64_t stride, int64_t columns,
                                  int ahead, const double *pivot, double *sum, double *sum_squares)
{
    const BNK_T *row = x;
    for (; rows >= 4; rows -= 4, row += 4 * stride)
        BNK_NAME(column_sums_rows)(row, 4, stride, columns, ahead, pivot, sum, sum_squares);
    for (; rows > 0; rows--, row += stride)
        BNK_NAME(column_sums_rows)(row, 1, stride, columns, 0, pivot, sum, sum_squares);
}

BNK_INLINE void BNK_NAME(add_grad_columns)(const BNK_T *x, const BNK_T *dy, int together,
                                           int64_t stride, const double *mean, double *sum,
                                           double *sum_product)
{
    const bnk_f64x8 m = *(const bnk_f64x8_at *)mean, one = BNK_ONES(bnk_f64x8);
    bnk_f64x8 s = *(bnk_f64x8_at *)sum, q = *(bnk_f64x8_at *)sum_product;
    bnk_f64x8 held_g[4], held_p[4];
    for (int r = 0; r < together; r++) {
        const bnk_f64x8 g = BNK_NAME(half_at)(dy + r * stride);
        BNK_ADD_ROW(s, held_g, r, together, g);
        BNK_ADD_ROW(q, held_p, r, together,
                    g * BNK_SUBTRACT(BNK_NAME(half_at)(x + r * stride), m, one));
    }
    *(bnk_f64x8_at *)sum = s;
    *(bnk_f64x8_at *)sum_product = q;
}

BNK_INLINE void BNK_NAME(column_grad_sums_rows)(const BNK_T *x, const BNK_T *dy, int together,
                                                int64_t stride, int64_t columns, int ahead,
                                                const double *mean, double *sum,
                                                double *sum_product)
{
    BNK_NAME(fetcher) fetch = { together * stride, 0, stride, columns };
    int64_t j = 0;
    for (; j + 16 <= columns; j += 16) {
        for (int r = 0; ahead && r < together * 16 / BNK_PER_CACHE_LINE; r++) {
            const int64_t next = BNK_NAME(next_line)(&fetch);
            BNK_PREFETCH(x + next);
            BNK_PREFETCH(dy + next);
        }
        BNK_NAME(add_grad_columns)(x + j, dy + j, together, stride, mean + j, sum + j,
                                   sum_product + j);
        BNK_NAME(add_grad_columns)(x + j + 8, dy + j + 8, together, stride, mean + j + 8,
                                   sum + j + 8, sum_product + j + 8);
    }
#pragma clang loop unroll(disable) vectorize(disable)
    for (; j < columns; j++) {
        double held_g[4], held_p[4];
        for (int r = 0; r < together; r++) {
            const double g = (double)BNK_WIDEN_ONE(dy[r * stride + j]);
            BNK_ADD_ROW(sum[j], held_g, r, together, g);
            BNK_ADD_ROW(sum_product[j], held_p, r, together,
                        g * ((double)BNK_WIDEN_ONE(x[r * stride + j]) - mean[j]));
        }
    }
}

static void BNK_NAME(column_grad_sums)(const void *x, const void *dy, int64_t rows, int64_t stride,
                                       int64_t columns, int ahead, const double *mean, double *sum,
                                       double *sum_product)
{
    const BNK_T *xr = x, *gr = dy;
    for (; rows >= 4; rows -= 4, xr += 4 * stride, gr += 4 * stride)
        BNK_NAME(column_grad_sums_rows)(xr, gr, 4, stride, columns, ahead, mean, sum, sum_product);
    for (; rows > 0; rows--, xr += stride, gr += stride)
        BNK_NAME(column_grad_sums_rows)(xr, gr, 1, stride, columns, 0, mean, sum, sum_product);
}
