/*
 * Sums where positions are masked, or of a gradient that came back through an activation before. Included by
 * leaves_body.h.
 */

/* `count` values from dy on their way back, and of x, in float64. */
BNK_INLINE void BNK_NAME(gated_some)(const bnk_stretch *s, int64_t i, int64_t count,
                                     double *gradient, double *x)
{
    typedef double part __attribute__((vector_size(8 * BNK_LINE_LENGTH)));
    const BNK_LINE zero = { 0 };
    const BNK_LINE z = BNK_NAME(gate)(s, i, count, 1);
    BNK_LINE v = BNK_NAME(widen_some)((const BNK_T *)s->x + i, count);
    /* What is masked may be infinite, and 0 times it must be 0. */
    if (s->positions)
        v = BNK_NAME(choose)(BNK_NAME(choice_of_bytes)(s->positions + i, count), v, zero);
    const part zd = __builtin_convertvector(z, part), vd = __builtin_convertvector(v, part);
    memcpy(gradient, &zd, sizeof zd);
    memcpy(x, &vd, sizeof vd);
}

/* Less than sixteen; zeros follow. */
BNK_LEAF void BNK_NAME(gated_part)(const bnk_stretch *s, int64_t i, int64_t count,
                                   bnk_f64x16 *gradient, bnk_f64x16 *x)
{
    *gradient = *x = (bnk_f64x16){ 0 };
    for (int64_t h = 0; h < count; h += BNK_LINE_LENGTH)
        BNK_NAME(gated_some)(s, i + h, count - h < BNK_LINE_LENGTH ? count - h : BNK_LINE_LENGTH,
                             (double *)gradient + h, (double *)x + h);
}

BNK_INLINE void BNK_NAME(gated_lanes)(const bnk_stretch *s, int64_t i, bnk_f64x16 *gradient,
                                      bnk_f64x16 *x)
{
    for (int h = 0; h < BNK_LANES; h += BNK_LINE_LENGTH)
        BNK_NAME(gated_some)(s, i + h, BNK_LINE_LENGTH, (double *)gradient + h, (double *)x + h);
}

/* Row `row` of stretches that lie `stride` elements apart. */
BNK_INLINE bnk_stretch BNK_NAME(row_of)(const bnk_stretch *s, int64_t row, int64_t stride,
                                        int64_t positions_stride)
{
    bnk_stretch own = *s;
    own.x = (const BNK_T *)s->x + row * stride;
    own.dy = (const BNK_T *)s->dy + row * stride;
    own.output = s->output ? (const BNK_T *)s->output + row * stride : NULL;
    own.at = s->at + row * stride;
    own.positions = s->positions ? s->positions + row * positions_stride : NULL;
    return own;
}

/* As add_grad_rows: the sums are those of a gradient that came back before. */
BNK_INLINE void BNK_NAME(add_gated_rows)(const bnk_stretch *first, int together, int64_t stride,
                                         int64_t positions_stride, int64_t ahead, double mean,
                                         bnk_lane_sums *sums)
{
    const bnk_f64x16 m = mean - (bnk_f64x16){ 0 }, one = BNK_ONES(bnk_f64x16);
    const bnk_stretch a = *first,
                      b = BNK_NAME(row_of)(first, together - 1, stride, positions_stride);
    bnk_f64x16 s = *(bnk_f64x16_at *)sums->first, q = *(bnk_f64x16_at *)sums->second;
    int64_t i = 0;
#define BNK_FETCH(row)                                                                 \
    do {                                                                               \
        BNK_PREFETCH_LANES((const BNK_T *)(row).x + i + ahead);                        \
        BNK_PREFETCH_LANES((const BNK_T *)(row).dy + i + ahead);                       \
        if ((row).output) BNK_PREFETCH_LANES((const BNK_T *)(row).output + i + ahead); \
    } while (0)
    bnk_f64x16 held_g[4], held_p[4];
#define BNK_ADD(r, take)                                                  \
    do {                                                                  \
        bnk_f64x16 g, x;                                                  \
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
    *(bnk_f64x16_at *)sums->first = s;
    *(bnk_f64x16_at *)sums->second = q;
}

static void BNK_NAME(row_gated_sums)(const bnk_stretch *s, int64_t rows, int64_t stride,
                                     int64_t positions_stride, int64_t ahead, double mean,
                                     bnk_lane_sums *sums)
{
    int64_t row = 0;
    for (; row + 2 <= rows; row += 2) {
        const bnk_stretch own = BNK_NAME(row_of)(s, row, stride, positions_stride);
        BNK_NAME(add_gated_rows)(&own, 2, stride, positions_stride, ahead, mean, sums);
    }
    if (row < rows) {
        const bnk_stretch own = BNK_NAME(row_of)(s, row, stride, positions_stride);
        BNK_NAME(add_gated_rows)(&own, 1, stride, positions_stride, ahead, mean, sums);
    }
}

/* Sixteen columns of some rows; each column adds them as BNK_ADD_ROW says. */
BNK_INLINE void BNK_NAME(add_gated_columns)(const bnk_stretch *first, int64_t together,
                                            int64_t stride, int64_t positions_stride, int64_t j,
                                            int64_t count, const double *mean, double *sum,
                                            double *product)
{
    bnk_f64x16 m = { 0 }, s = { 0 }, q = { 0 };
    const bnk_f64x16 one = BNK_ONES(bnk_f64x16);
    const size_t bytes = (size_t)count * sizeof(double);
    memcpy(&m, mean + j, bytes);
    memcpy(&s, sum + j, bytes);
    memcpy(&q, product + j, bytes);
    bnk_f64x16 held_g[4], held_p[4];
#pragma clang loop unroll(disable) /* a row is long code */
    for (int64_t r = 0; r < together; r++) {
        const bnk_stretch own = BNK_NAME(row_of)(first, r, stride, positions_stride);
        bnk_f64x16 g, x;
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
                                        int64_t positions_stride, const double *mean, double *sum,
                                        double *product)
{
    enum { TOGETHER = 4 };
    for (int64_t row = 0, together; row < rows; row += together) {
        together = rows - row < TOGETHER ? 1 : TOGETHER; /* as the plain leaf takes them */
        const bnk_stretch own = BNK_NAME(row_of)(stretch, row, stride, positions_stride);
        int64_t j = 0;
        for (; j + BNK_LANES <= own.count; j += BNK_LANES)
            BNK_NAME(add_gated_columns)(&own, together, stride, positions_stride, j, BNK_LANES,
                                        mean, sum, product);
        if (j < own.count)
            BNK_NAME(add_gated_columns)(&own, together, stride, positions_stride, j, own.count - j,
                                        mean, sum, product);
    }
}

BNK_INLINE void BNK_NAME(fill_some)(const BNK_T *x, const uint8_t *positions, const BNK_C *filler,
                                    int64_t step, BNK_C *to, int64_t count)
{
    const BNK_LINE other = step ? BNK_NAME(take_some)(filler, count) : *filler - (BNK_LINE){ 0 };
    const BNK_LINE v = BNK_NAME(choose)(BNK_NAME(choice_of_bytes)(positions, count),
                                        BNK_NAME(widen_some)(x, count), other);
    memcpy(to, &v, (size_t)count * sizeof *to);
}

/* to = x in computing type, where masked a filler. */
static void BNK_NAME(fill_masked)(const void *x, const uint8_t *positions, const void *filler,
                                  int64_t filler_step, void *to, int64_t count)
{
    const BNK_T *from = x;
    const BNK_C *other = filler;
    BNK_C *values = to;
    int64_t i = 0;
    for (; i + BNK_LINE_LENGTH <= count; i += BNK_LINE_LENGTH)
        BNK_NAME(fill_some)(from + i, positions + i, other + i * filler_step, filler_step,
                            values + i, BNK_LINE_LENGTH);
    if (i < count)
        BNK_NAME(fill_some)(from + i, positions + i, other + i * filler_step, filler_step,
                            values + i, count - i);
}
