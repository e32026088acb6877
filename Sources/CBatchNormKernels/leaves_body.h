/*
 * The algorithm of every leaf, once. Included by leaves_types.h per element type (BNK_T) and
 * instruction set.
 *
 * Sums walk four rows side by side: four streams keep a core's memory busier than one. Sums
 * are float64: a product of float32 differences is then exact, squares cannot overflow, and a pivot
 * taken from the data bounds the cancellation (see moments.h). Multiply and add stay apart in the
 * sums (no FMA), so that CPUs without it need no emulation there; the files are compiled with
 * -ffp-contract=off.
 */

/* ---- loads and stores of fewer values than a vector: at most one per row ---- */

BNK_INLINE bnk_double16 BNK_NAME(lanes_at)(const BNK_T *p)
{
    return __builtin_convertvector(*(const BNK_LANES_AT *)p, bnk_double16);
}

BNK_INLINE bnk_double8 BNK_NAME(half_at)(const BNK_T *p)
{
    return __builtin_convertvector(*(const BNK_HALF_AT *)p, bnk_double8);
}

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

/* Non-temporal stores become visible to other threads in order only after a fence. */
BNK_INLINE void BNK_NAME(finish_stream)(int stream)
{
#if defined(__x86_64__)
    if (stream) __builtin_ia32_sfence();
#else
    (void)stream;
#endif
}

/* The order of the last additions: halves onto each other. */
BNK_INLINE double BNK_NAME(sum_lanes)(bnk_double16 v)
{
    double lane[BNK_LANES];
    memcpy(lane, &v, sizeof lane);
    for (int width = BNK_LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) lane[i] += lane[i + width];
    return lane[0];
}

/* ---- sums by rows ---- */

/* `count` values of each of some rows, made a full vector with a value that adds nothing. */
BNK_INLINE void BNK_NAME(pad)(BNK_T *padded, const BNK_T *row, int together, int64_t stride,
                              int64_t count, double filler)
{
    for (int r = 0; r < together; r++)
        for (int64_t i = 0; i < BNK_LANES; i++)
            padded[r * BNK_LANES + i] = i < count ? row[r * stride + i] : (BNK_T)filler;
}

/*
 * The inner loops of the sums, in functions of their own so that all sums stay in registers.
 * sums[0] += x - pivot, sums[1] += (x - pivot)^2 in 16 lanes; length is a multiple of 16.
 */
BNK_INLINE void BNK_NAME(add_rows)(const BNK_T *x, int together, int64_t stride, int64_t length,
                                   double pivot, bnk_double16 sums[2])
{
    const bnk_double16 p = pivot - (bnk_double16){ 0 }, one = BNK_ONES(bnk_double16);
    bnk_double16 s = sums[0], q = sums[1];
    for (int64_t i = 0; i < length; i += BNK_LANES)
        for (int r = 0; r < together; r++) {
            const bnk_double16 c = BNK_SUBTRACT(BNK_NAME(lanes_at)(x + r * stride + i), p, one);
            s += c;
            q += c * c;
        }
    sums[0] = s;
    sums[1] = q;
}

BNK_LEAF void BNK_NAME(add_four_rows)(const BNK_T *x, int64_t stride, int64_t length, double pivot,
                                      bnk_double16 sums[2])
{
    BNK_NAME(add_rows)(x, 4, stride, length, pivot, sums);
}

BNK_LEAF void BNK_NAME(add_one_row)(const BNK_T *x, int64_t length, double pivot,
                                    bnk_double16 sums[2])
{
    BNK_NAME(add_rows)(x, 1, 0, length, pivot, sums);
}

static void BNK_NAME(row_sums)(const void *x, int64_t rows, int64_t stride, int64_t length,
                               double pivot, double sums[2])
{
    bnk_double16 lanes[2] = { { 0 }, { 0 } };
    BNK_T padded[4 * BNK_LANES];
    const int64_t tail = length % BNK_LANES, whole = length - tail;
    const BNK_T *row = x;
    for (; rows >= 4; rows -= 4, row += 4 * stride) {
        BNK_NAME(add_four_rows)(row, stride, whole, pivot, lanes);
        if (tail == 0) continue;
        BNK_NAME(pad)(padded, row + whole, 4, stride, tail, pivot);
        BNK_NAME(add_four_rows)(padded, BNK_LANES, BNK_LANES, pivot, lanes);
    }
    for (; rows > 0; rows--, row += stride) {
        BNK_NAME(add_one_row)(row, whole, pivot, lanes);
        if (tail == 0) continue;
        BNK_NAME(pad)(padded, row + whole, 1, stride, tail, pivot);
        BNK_NAME(add_one_row)(padded, BNK_LANES, pivot, lanes);
    }
    sums[0] = BNK_NAME(sum_lanes)(lanes[0]);
    sums[1] = BNK_NAME(sum_lanes)(lanes[1]);
}

/* sums[0] += dy, sums[1] += dy * (x - mean) in 16 lanes; length is a multiple of 16. */
BNK_INLINE void BNK_NAME(add_grad_rows)(const BNK_T *x, const BNK_T *dy, int together,
                                        int64_t stride, int64_t length, double mean,
                                        bnk_double16 sums[2])
{
    const bnk_double16 m = mean - (bnk_double16){ 0 }, one = BNK_ONES(bnk_double16);
    bnk_double16 s = sums[0], q = sums[1];
    for (int64_t i = 0; i < length; i += BNK_LANES)
        for (int r = 0; r < together; r++) {
            const bnk_double16 g = BNK_NAME(lanes_at)(dy + r * stride + i);
            s += g;
            q += g * BNK_SUBTRACT(BNK_NAME(lanes_at)(x + r * stride + i), m, one);
        }
    sums[0] = s;
    sums[1] = q;
}

BNK_LEAF void BNK_NAME(add_two_grad_rows)(const BNK_T *x, const BNK_T *dy, int64_t stride,
                                          int64_t length, double mean, bnk_double16 sums[2])
{
    BNK_NAME(add_grad_rows)(x, dy, 2, stride, length, mean, sums);
}

BNK_LEAF void BNK_NAME(add_one_grad_row)(const BNK_T *x, const BNK_T *dy, int64_t length,
                                         double mean, bnk_double16 sums[2])
{
    BNK_NAME(add_grad_rows)(x, dy, 1, 0, length, mean, sums);
}

static void BNK_NAME(row_grad_sums)(const void *x, const void *dy, int64_t rows, int64_t stride,
                                    int64_t length, double mean, double sums[2])
{
    bnk_double16 lanes[2] = { { 0 }, { 0 } };
    BNK_T padded_x[2 * BNK_LANES], padded_dy[2 * BNK_LANES];
    const int64_t tail = length % BNK_LANES, whole = length - tail;
    const BNK_T *xr = x, *gr = dy;
    for (; rows >= 2; rows -= 2, xr += 2 * stride, gr += 2 * stride) {
        BNK_NAME(add_two_grad_rows)(xr, gr, stride, whole, mean, lanes);
        if (tail == 0) continue;
        BNK_NAME(pad)(padded_x, xr + whole, 2, stride, tail, 0);
        BNK_NAME(pad)(padded_dy, gr + whole, 2, stride, tail, 0);
        BNK_NAME(add_two_grad_rows)(padded_x, padded_dy, BNK_LANES, BNK_LANES, mean, lanes);
    }
    for (; rows > 0; rows--, xr += stride, gr += stride) {
        BNK_NAME(add_one_grad_row)(xr, gr, whole, mean, lanes);
        if (tail == 0) continue;
        BNK_NAME(pad)(padded_x, xr + whole, 1, stride, tail, 0);
        BNK_NAME(pad)(padded_dy, gr + whole, 1, stride, tail, 0);
        BNK_NAME(add_one_grad_row)(padded_x, padded_dy, BNK_LANES, mean, lanes);
    }
    sums[0] = BNK_NAME(sum_lanes)(lanes[0]);
    sums[1] = BNK_NAME(sum_lanes)(lanes[1]);
}

/* ---- sums by columns ---- */

/* Eight columns of `together` rows; each column adds them in ascending order. */
BNK_INLINE void BNK_NAME(add_columns)(const BNK_T *x, int together, int64_t stride,
                                      const double *pivot, double *sum, double *sum_squares)
{
    const bnk_double8 p = *(const bnk_double8_at *)pivot, one = BNK_ONES(bnk_double8);
    bnk_double8 s = *(bnk_double8_at *)sum, q = *(bnk_double8_at *)sum_squares;
    for (int r = 0; r < together; r++) {
        const bnk_double8 c = BNK_SUBTRACT(BNK_NAME(half_at)(x + r * stride), p, one);
        s += c;
        q += c * c;
    }
    *(bnk_double8_at *)sum = s;
    *(bnk_double8_at *)sum_squares = q;
}

BNK_INLINE void BNK_NAME(column_sums_rows)(const BNK_T *x, int together, int64_t stride,
                                           int64_t columns, int64_t ahead, const double *pivot,
                                           double *sum, double *sum_squares)
{
    int64_t j = 0;
    for (; j + 8 <= columns; j += 8) {
        if (j % BNK_LINE_LENGTH == 0)
            for (int r = 0; r < together; r++) BNK_PREFETCH(x + r * stride + j + ahead);
        BNK_NAME(add_columns)(x + j, together, stride, pivot + j, sum + j, sum_squares + j);
    }
    for (; j < columns; j++)
        for (int r = 0; r < together; r++) {
            const double c = (double)x[r * stride + j] - pivot[j];
            sum[j] += c;
            sum_squares[j] += c * c;
        }
}

static void BNK_NAME(column_sums)(const void *x, int64_t rows, int64_t stride, int64_t columns,
                                  int64_t ahead, const double *pivot, double *sum,
                                  double *sum_squares)
{
    const BNK_T *row = x;
    for (; rows >= 4; rows -= 4, row += 4 * stride)
        BNK_NAME(column_sums_rows)(row, 4, stride, columns, ahead, pivot, sum, sum_squares);
    for (; rows > 0; rows--, row += stride)
        BNK_NAME(column_sums_rows)(row, 1, stride, columns, ahead, pivot, sum, sum_squares);
}

BNK_INLINE void BNK_NAME(add_grad_columns)(const BNK_T *x, const BNK_T *dy, int together,
                                           int64_t stride, const double *mean, double *sum,
                                           double *sum_product)
{
    const bnk_double8 m = *(const bnk_double8_at *)mean, one = BNK_ONES(bnk_double8);
    bnk_double8 s = *(bnk_double8_at *)sum, q = *(bnk_double8_at *)sum_product;
    for (int r = 0; r < together; r++) {
        const bnk_double8 g = BNK_NAME(half_at)(dy + r * stride);
        s += g;
        q += g * BNK_SUBTRACT(BNK_NAME(half_at)(x + r * stride), m, one);
    }
    *(bnk_double8_at *)sum = s;
    *(bnk_double8_at *)sum_product = q;
}

BNK_INLINE void BNK_NAME(column_grad_sums_rows)(const BNK_T *x, const BNK_T *dy, int together,
                                                int64_t stride, int64_t columns, int64_t ahead,
                                                const double *mean, double *sum,
                                                double *sum_product)
{
    int64_t j = 0;
    for (; j + 8 <= columns; j += 8) {
        if (j % BNK_LINE_LENGTH == 0)
            for (int r = 0; r < together; r++) {
                BNK_PREFETCH(x + r * stride + j + ahead);
                BNK_PREFETCH(dy + r * stride + j + ahead);
            }
        BNK_NAME(add_grad_columns)(x + j, dy + j, together, stride, mean + j, sum + j,
                                   sum_product + j);
    }
    for (; j < columns; j++)
        for (int r = 0; r < together; r++) {
            const double g = (double)dy[r * stride + j];
            sum[j] += g;
            sum_product[j] += g * ((double)x[r * stride + j] - mean[j]);
        }
}

static void BNK_NAME(column_grad_sums)(const void *x, const void *dy, int64_t rows, int64_t stride,
                                       int64_t columns, int64_t ahead, const double *mean,
                                       double *sum, double *sum_product)
{
    const BNK_T *xr = x, *gr = dy;
    for (; rows >= 4; rows -= 4, xr += 4 * stride, gr += 4 * stride)
        BNK_NAME(column_grad_sums_rows)(xr, gr, 4, stride, columns, ahead, mean, sum, sum_product);
    for (; rows > 0; rows--, xr += stride, gr += stride)
        BNK_NAME(column_grad_sums_rows)(xr, gr, 1, stride, columns, ahead, mean, sum, sum_product);
}

/* ---- application ---- */

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
    BNK_NAME(finish_stream)(stream);
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

const bnk_leaves BNK_NAME(leaves) = {
    .row_sums = BNK_NAME(row_sums),
    .row_apply = BNK_NAME(row_apply),
    .row_grad_sums = BNK_NAME(row_grad_sums),
    .row_grad_apply = BNK_NAME(row_grad_apply),
    .column_sums = BNK_NAME(column_sums),
    .column_apply = BNK_NAME(column_apply),
    .column_grad_sums = BNK_NAME(column_grad_sums),
    .column_grad_apply = BNK_NAME(column_grad_apply),
};
