/*
 * sum(x) and sum(x^2) in float64 without a pivot, where computing in float: two thirds of the cost of sums
 * around one, and as good where the mean is not far larger than the deviation (see bnk_needs_no_pivot in tile.h).
 * Included by leaves_body.h.
 *
 * A product of two floats is exact in double, and so fusing it with the addition rounds as not fusing
 * it. Of half types, up to four rows are added in float before they are
 * widened to float64, which is what costs most: a relative error of 2^-22 at worst.
 */

/* ---- by rows ---- */

#if BNK_STORES_HALF
/* Sixteen values of some rows, added row by row: they and their squares. */
BNK_INLINE void BNK_NAME(squares_of)(const BNK_T *x, int together, int64_t stride, bnk_f32x16 *sum,
                                     bnk_f32x16 *squares)
{
    bnk_f32x16 s = { 0 }, q = { 0 };
    for (int r = 0; r < together; r++) {
        const bnk_f32x16 v = BNK_NAME(widen_line)(x + r * stride);
        s = r == 0 ? v : s + v;
        q = r == 0 ? v * v : q + v * v; /* no FMA: squares below 2^-126 are not exact */
    }
    *sum = s;
    *squares = q;
}
#endif

BNK_INLINE void BNK_NAME(add_squares)(const BNK_T *x, int together, int64_t stride, int64_t length,
                                      int64_t ahead, bnk_lane_sums *sums)
{
    bnk_f64x16 s = *(bnk_f64x16_at *)sums->first, q = *(bnk_f64x16_at *)sums->second;
    for (int64_t i = 0; i < length; i += BNK_LANES) {
        for (int r = 0; r < together; r++) BNK_PREFETCH_LANES(x + r * stride + i + ahead);
#if BNK_STORES_HALF
        bnk_f32x16 sum, squares;
        BNK_NAME(squares_of)(x + i, together, stride, &sum, &squares);
        s += __builtin_convertvector(sum, bnk_f64x16);
        q += __builtin_convertvector(squares, bnk_f64x16);
#else
        for (int r = 0; r < together; r++) {
            const bnk_f64x16 v = BNK_NAME(lanes_at)(x + r * stride + i);
            s += v;
            q = BNK_ADD_EXACT(v, v, q);
        }
#endif
    }
    *(bnk_f64x16_at *)sums->first = s;
    *(bnk_f64x16_at *)sums->second = q;
}

BNK_LEAF void BNK_NAME(add_four_squares)(const BNK_T *x, int64_t stride, int64_t length,
                                         int64_t ahead, bnk_lane_sums *sums)
{
    BNK_NAME(add_squares)(x, 4, stride, length, ahead, sums);
}

BNK_LEAF void BNK_NAME(add_one_square)(const BNK_T *x, int64_t length, int64_t ahead,
                                       bnk_lane_sums *sums)
{
    BNK_NAME(add_squares)(x, 1, 0, length, ahead, sums);
}

static void BNK_NAME(row_squares)(const void *x, int64_t rows, int64_t stride, int64_t length,
                                  int64_t ahead, bnk_lane_sums *sums)
{
    BNK_T padded[4 * BNK_LANES];
    const int64_t tail = length % BNK_LANES, whole = length - tail;
    const BNK_T *row = x;
    for (; rows >= 4; rows -= 4, row += 4 * stride) {
        BNK_NAME(add_four_squares)(row, stride, whole, ahead, sums);
        if (tail == 0) continue;
        BNK_NAME(pad)(padded, row + whole, 4, stride, tail, 0);
        BNK_NAME(add_four_squares)(padded, BNK_LANES, BNK_LANES, 0, sums);
    }
    for (; rows > 0; rows--, row += stride) {
        BNK_NAME(add_one_square)(row, whole, ahead, sums);
        if (tail == 0) continue;
        BNK_NAME(pad)(padded, row + whole, 1, stride, tail, 0);
        BNK_NAME(add_one_square)(padded, BNK_LANES, 0, sums);
    }
}

/* ---- by columns ---- */

BNK_INLINE void BNK_NAME(column_squares_rows)(const BNK_T *x, int together, int64_t stride,
                                              int64_t columns, int ahead, double *sum,
                                              double *squares)
{
    BNK_NAME(fetcher) fetch = { together * stride, 0, stride, columns };
    int64_t j = 0;
    for (; j + BNK_LANES <= columns; j += BNK_LANES) {
        for (int r = 0; ahead && r < together * 16 / BNK_PER_CACHE_LINE; r++)
            BNK_PREFETCH(x + BNK_NAME(next_line)(&fetch));
#if BNK_STORES_HALF
        bnk_f32x16 own_sum, own_squares;
        BNK_NAME(squares_of)(x + j, together, stride, &own_sum, &own_squares);
        *(bnk_f64x16_at *)(sum + j) += __builtin_convertvector(own_sum, bnk_f64x16);
        *(bnk_f64x16_at *)(squares + j) += __builtin_convertvector(own_squares, bnk_f64x16);
#else
        for (int h = 0; h < BNK_LANES; h += 8) {
            bnk_f64x8 s = *(bnk_f64x8_at *)(sum + j + h);
            bnk_f64x8 q = *(bnk_f64x8_at *)(squares + j + h);
            for (int r = 0; r < together; r++) {
                const bnk_f64x8 v = BNK_NAME(half_at)(x + r * stride + j + h);
                s += v;
                q = BNK_ADD_EXACT(v, v, q);
            }
            *(bnk_f64x8_at *)(sum + j + h) = s;
            *(bnk_f64x8_at *)(squares + j + h) = q;
        }
#endif
    }
#pragma clang loop unroll(disable) vectorize(disable)
    for (; j < columns; j++)
        for (int r = 0; r < together; r++) {
            const double v = (double)BNK_WIDEN_ONE(x[r * stride + j]);
            sum[j] += v;
            squares[j] += v * v;
        }
}

static void BNK_NAME(column_squares)(const void *x, int64_t rows, int64_t stride, int64_t columns,
                                     int ahead, double *sum, double *squares)
{
    const BNK_T *row = x;
    for (; rows >= 4; rows -= 4, row += 4 * stride)
        BNK_NAME(column_squares_rows)(row, 4, stride, columns, ahead, sum, squares);
    for (; rows > 0; rows--, row += stride)
        BNK_NAME(column_squares_rows)(row, 1, stride, columns, 0, sum, squares);
}
