/*
 * Sums in chains, where computing in float: of moments those of c and c * c, where c is x - pivot; of gradients those of dy
 * and dy * c. Four terms are added in float32, one behind the other, then two such chains, and only that is widened and
 * added to float64 sums: an eighth of the work that widening costs. No term is rounded more than six times on its way, a square seven;
 * docs/kernels.md has what follows. Included by leaves_body.h.
 *
 * A group is two chains of four lines of sixteen values, or of columns. By rows the lines come from four rows, or two or
 * one, and follow each other there; by columns a chain has a line of each quarter of memory, and the second chain the
 * lines that follow. So memory is read in a few long streams, which hardware fetches well; neighbouring lines side by
 * side it does not (AMD Zen 3 and Zen 4: half as fast).
 */

/* ---- terms ---- */

/* What is added up, and of which tensors. The kind is a constant wherever this is used. */
typedef struct BNK_NAME(terms) {
    enum {
        BNK_NAME(of_moments),
        BNK_NAME(of_gradients),
        BNK_NAME(of_relu_gradients), /* that came back through a ReLU, by its mask's bits */
        BNK_NAME(of_gated_gradients) /* through any activation, or some are masked */
    } kind;
    const BNK_T *x, *dy;
    const uint8_t *bits; /* of a ReLU, and the number of x's */
    int64_t at;
    const bnk_stretch *stretch; /* of any gate */
} BNK_NAME(terms);

BNK_INLINE BNK_NAME(terms) BNK_NAME(moment_terms)(const BNK_T *x)
{
    return (BNK_NAME(terms)){ BNK_NAME(of_moments), x, x, NULL, 0, NULL };
}

BNK_INLINE BNK_NAME(terms) BNK_NAME(gradient_terms)(const BNK_T *x, const BNK_T *dy)
{
    return (BNK_NAME(terms)){ BNK_NAME(of_gradients), x, dy, NULL, 0, NULL };
}

BNK_INLINE BNK_NAME(terms)
    BNK_NAME(relu_terms)(const BNK_T *x, const BNK_T *dy, const uint8_t *bits, int64_t at)
{
    return (BNK_NAME(terms)){ BNK_NAME(of_relu_gradients), x, dy, bits, at, NULL };
}

BNK_INLINE BNK_NAME(terms) BNK_NAME(gated_terms)(const bnk_stretch *s)
{
    return (BNK_NAME(terms)){ BNK_NAME(of_gated_gradients), s->x, s->dy, NULL, 0, s };
}

/* Those of another line; of gated ones gated_terms makes them. */
BNK_INLINE BNK_NAME(terms) BNK_NAME(terms_at)(BNK_NAME(terms) t, int64_t i)
{
    t.x += i;
    t.dy += i;
    t.at += i;
    return t;
}

/* A line of terms from the `i`-th on, the last of a row maybe shorter: `first`, and what it is to be multiplied with,
 * pivot - x; of moments `first` is that, too. What lies beyond adds nothing. */
BNK_INLINE void BNK_NAME(line_of_terms)(BNK_NAME(terms) t, int64_t i, int64_t count,
                                        bnk_f32x16 pivot, bnk_f32x16 *first, bnk_f32x16 *from_pivot)
{
    const bnk_stretch *s = t.stretch;
    bnk_f32x16 x = BNK_NAME(widen_some)(t.x + i, count);
    if (t.kind == BNK_NAME(of_moments) && count < BNK_LANES) {
        bnk_f32x16 filled = pivot;
        memcpy(&filled, &x, (size_t)count * sizeof(float));
        x = filled;
    }
    /* What is masked may be infinite, and 0 times it must be 0. */
    if (t.kind == BNK_NAME(of_gated_gradients) && s->positions)
        x = BNK_NAME(choose)(BNK_NAME(choice_of_bytes)(s->positions + i, count), x, pivot);
    *from_pivot = pivot - x; /* this way round, x is read by the subtraction */
    switch (t.kind) {
    case BNK_NAME(of_moments):
        *first = *from_pivot;
        break;
    case BNK_NAME(of_gradients):
        *first = BNK_NAME(widen_some)(t.dy + i, count);
        break;
    case BNK_NAME(of_relu_gradients):
        *first =
            BNK_NAME(let_through)(t.bits, t.at + i, count, BNK_NAME(widen_some)(t.dy + i, count));
        break;
    case BNK_NAME(of_gated_gradients):
        *first = BNK_NAME(gate)(s, i, count, 1);
        break;
    }
}

/* Fetches a line `ahead` elements further on, or nothing where that is 0. What is read in a few streams at once Intel's
 * hardware fetches too late by itself: with it, sums took 0.75 to 0.95 of the time from L2, L3 and memory alike. */
enum { BNK_NAME(ahead) = BNK_BYTES_AHEAD / sizeof(BNK_T) };
BNK_INLINE void BNK_NAME(fetch)(BNK_NAME(terms) t, int64_t ahead)
{
    if (BNK_BYTES_AHEAD == 0) return;
    BNK_PREFETCH(t.x + ahead);
    if (t.kind != BNK_NAME(of_moments)) BNK_PREFETCH(t.dy + ahead);
}

/* The two sums of one chain, and the bits that any of its `first` has. */
typedef struct BNK_NAME(chain) {
    bnk_f32x16 first, second;
    bnk_uint16 some;
} BNK_NAME(chain);

/* With one line more: its `line`-th, counted in the group. */
BNK_INLINE BNK_NAME(chain) BNK_NAME(longer)(BNK_NAME(chain) c, int line, BNK_NAME(terms) t,
                                            int64_t i, int64_t count, bnk_f32x16 pivot)
{
    bnk_f32x16 first, from_pivot;
    BNK_NAME(line_of_terms)(t, i, count, pivot, &first, &from_pivot);
    const bnk_uint16 bits = (bnk_uint16)first;
    if (line % BNK_CHAIN == 0) return (BNK_NAME(chain)){ first, first * from_pivot, bits };
    return (BNK_NAME(chain)){ c.first + first, BNK_FMA(first, from_pivot, c.second),
                              c.some | bits };
}

BNK_INLINE BNK_NAME(chain) BNK_NAME(both)(BNK_NAME(chain) a, BNK_NAME(chain) b)
{
    return (BNK_NAME(chain)){ a.first + b.first, a.second + b.second, a.some | b.some };
}

/* To sums of x - pivot. */
BNK_INLINE void BNK_NAME(widen_chain)(BNK_NAME(terms) t, BNK_NAME(chain) c, double *first,
                                      double *second, uint32_t *some)
{
    const bnk_f64x16 s = __builtin_convertvector(c.first, bnk_f64x16);
    const bnk_f64x16 q = __builtin_convertvector(c.second, bnk_f64x16);
    *(bnk_uint16_at *)some |= c.some;
    if (t.kind == BNK_NAME(of_moments)) {
        *(bnk_f64x16_at *)first -= s;
        *(bnk_f64x16_at *)second += q;
    } else {
        *(bnk_f64x16_at *)first += s;
        *(bnk_f64x16_at *)second -= q;
    }
}

/* ---- by rows ---- */

/* Rows that are walked side by side. */
enum { BNK_NAME(most_rows) = 4 };
typedef struct BNK_NAME(rows_of_terms) {
    BNK_NAME(terms) row[BNK_NAME(most_rows)];
} BNK_NAME(rows_of_terms);

/* Less than a group of values of each row: the rest of them. */
BNK_LEAF void BNK_NAME(add_rest)(const BNK_NAME(rows_of_terms) * t, int rows, int64_t i,
                                 int64_t length, float pivot, bnk_chain_sums *sums)
{
    const bnk_f32x16 p = pivot - (bnk_f32x16){ 0 };
    BNK_NAME(chain) a = { { 0 }, { 0 }, { 0 } }, b = a;
    int line = 0;
#pragma clang loop unroll(disable)
    for (; i < length; i += BNK_LANES) {
        const int64_t count = length - i < BNK_LANES ? length - i : BNK_LANES;
#pragma clang loop unroll(disable)
        for (int r = 0; r < rows; r++, line++) {
            if (line < BNK_CHAIN)
                a = BNK_NAME(longer)(a, line, t->row[r], i, count, p);
            else
                b = BNK_NAME(longer)(b, line, t->row[r], i, count, p);
        }
    }
    BNK_NAME(widen_chain)(t->row[0], line > BNK_CHAIN ? BNK_NAME(both)(a, b) : a, sums->first,
                          sums->second, sums->some);
}

BNK_INLINE void BNK_NAME(add_rows_of_terms)(BNK_NAME(rows_of_terms) t, int rows, int64_t length,
                                            float pivot, bnk_chain_sums *sums)
{
    const int64_t step = BNK_GROUP_VALUES / rows;
    const bnk_f32x16 p = pivot - (bnk_f32x16){ 0 };
    bnk_chain_sums own = *sums; /* no pointer to a tensor can point here */
    int64_t i = 0;
    for (; i + step <= length; i += step) {
        BNK_NAME(chain) chains[BNK_GROUP / BNK_CHAIN] = { 0 };
        BNK_UNROLL_GROUP
        for (int line = 0; line < BNK_GROUP; line++) {
            const BNK_NAME(terms) row = t.row[line % rows];
            const int64_t at = i + line / rows * BNK_LANES;
            BNK_NAME(fetch)(row, at + BNK_NAME(ahead));
            chains[line / BNK_CHAIN] =
                BNK_NAME(longer)(chains[line / BNK_CHAIN], line, row, at, BNK_LANES, p);
        }
        BNK_NAME(widen_chain)(t.row[0], BNK_NAME(both)(chains[0], chains[1]), own.first, own.second,
                              own.some);
    }
    *sums = own;
    if (i < length) BNK_NAME(add_rest)(&t, rows, i, length, pivot, sums);
}

BNK_LEAF void BNK_NAME(add_four_rows_of_moments)(const BNK_T *x, int64_t stride, int64_t length,
                                                 float pivot, bnk_chain_sums *sums)
{
    BNK_NAME(rows_of_terms) t;
    for (int r = 0; r < 4; r++) t.row[r] = BNK_NAME(moment_terms)(x + r * stride);
    BNK_NAME(add_rows_of_terms)(t, 4, length, pivot, sums);
}

BNK_LEAF void BNK_NAME(add_row_of_moments)(const BNK_T *x, int64_t length, float pivot,
                                           bnk_chain_sums *sums)
{
    BNK_NAME(rows_of_terms) t;
    t.row[0] = BNK_NAME(moment_terms)(x);
    BNK_NAME(add_rows_of_terms)(t, 1, length, pivot, sums);
}

static void BNK_NAME(row_chains)(const void *x, int64_t rows, int64_t stride, int64_t length,
                                 float pivot, bnk_chain_sums *sums)
{
    const BNK_T *row = x;
    for (; rows >= 4; rows -= 4, row += 4 * stride)
        BNK_NAME(add_four_rows_of_moments)(row, stride, length, pivot, sums);
    for (; rows > 0; rows--, row += stride) BNK_NAME(add_row_of_moments)(row, length, pivot, sums);
}

BNK_LEAF void BNK_NAME(add_two_rows_of_gradients)(const BNK_T *x, const BNK_T *dy, int64_t stride,
                                                  int64_t length, float mean, bnk_chain_sums *sums)
{
    BNK_NAME(rows_of_terms) t;
    for (int r = 0; r < 2; r++)
        t.row[r] = BNK_NAME(gradient_terms)(x + r * stride, dy + r * stride);
    BNK_NAME(add_rows_of_terms)(t, 2, length, mean, sums);
}

BNK_LEAF void BNK_NAME(add_row_of_gradients)(const BNK_T *x, const BNK_T *dy, int64_t length,
                                             float mean, bnk_chain_sums *sums)
{
    BNK_NAME(rows_of_terms) t;
    t.row[0] = BNK_NAME(gradient_terms)(x, dy);
    BNK_NAME(add_rows_of_terms)(t, 1, length, mean, sums);
}

static void BNK_NAME(row_grad_chains)(const void *x, const void *dy, int64_t rows, int64_t stride,
                                      int64_t length, float mean, bnk_chain_sums *sums)
{
    const BNK_T *xr = x, *gr = dy;
    for (; rows >= 2; rows -= 2, xr += 2 * stride, gr += 2 * stride)
        BNK_NAME(add_two_rows_of_gradients)(xr, gr, stride, length, mean, sums);
    for (; rows > 0; rows--, xr += stride, gr += stride)
        BNK_NAME(add_row_of_gradients)(xr, gr, length, mean, sums);
}

#if BNK_FOR_SPEED
BNK_LEAF void BNK_NAME(add_two_rows_of_relu)(const BNK_T *x, const BNK_T *dy, const uint8_t *bits,
                                             int64_t at, int64_t stride, int64_t length, float mean,
                                             bnk_chain_sums *sums)
{
    BNK_NAME(rows_of_terms) t;
    for (int r = 0; r < 2; r++)
        t.row[r] = BNK_NAME(relu_terms)(x + r * stride, dy + r * stride, bits, at + r * stride);
    BNK_NAME(add_rows_of_terms)(t, 2, length, mean, sums);
}

static void BNK_NAME(row_relu_chains)(const void *x, const void *dy, const uint8_t *bits,
                                      int64_t at, int64_t rows, int64_t stride, int64_t length,
                                      float mean, bnk_chain_sums *sums)
{
    const BNK_T *xr = x, *gr = dy;
    for (; rows >= 2; rows -= 2, xr += 2 * stride, gr += 2 * stride, at += 2 * stride)
        BNK_NAME(add_two_rows_of_relu)(xr, gr, bits, at, stride, length, mean, sums);
    if (rows == 0) return;
    BNK_NAME(rows_of_terms) t;
    t.row[0] = BNK_NAME(relu_terms)(xr, gr, bits, at);
    BNK_NAME(add_rows_of_terms)(t, 1, length, mean, sums);
}
#endif

/* A chain of gated gradients: long code, once. */
BNK_LEAF BNK_NAME(chain) BNK_NAME(gated_chain)(const BNK_NAME(rows_of_terms) * t, int rows,
                                               int first_line, int64_t i, float mean)
{
    const bnk_f32x16 m = mean - (bnk_f32x16){ 0 };
    BNK_NAME(chain) c = { { 0 }, { 0 }, { 0 } };
#pragma clang loop unroll(disable)
    for (int line = 0; line < BNK_CHAIN; line++) {
        const int in_group = first_line + line;
        const int64_t at = i + in_group / rows * BNK_LANES;
        BNK_NAME(terms) own = t->row[in_group % rows];
        own.kind =
            BNK_NAME(of_gated_gradients); /* as it is; the compiler cannot see it in memory */
        c = BNK_NAME(longer)(c, line, own, at, BNK_LANES, m);
    }
    return c;
}

/* As many rows at once as of plain gradients, so that a mask that lets everything through moves no bit. What comes
 * behind the last position that takes part would add zeros. */
static void BNK_NAME(row_gated_chains)(const bnk_stretch *s, int64_t rows, int64_t stride,
                                       int64_t positions_stride, float mean, bnk_chain_sums *sums)
{
    for (int64_t row = 0, together; row < rows; row += together) {
        bnk_stretch own[2];
        BNK_NAME(rows_of_terms) t;
        together = rows - row >= 2 ? 2 : 1;
        for (int r = 0; r < together; r++) {
            own[r] = BNK_NAME(row_of)(s, row + r, stride, positions_stride);
            t.row[r] = BNK_NAME(gated_terms)(&own[r]);
        }
        const int64_t step = BNK_GROUP_VALUES / together;
        int64_t i = 0, end = s->positions ? 0 : s->count;
        for (int r = 0; s->positions && r < together; r++) {
            const int64_t own_end = bnk_end_taking_part(own[r].positions, s->count);
            if (own_end > end) end = own_end;
        }
        for (; i < end && i + step <= s->count; i += step) {
            const BNK_NAME(chain) a = BNK_NAME(gated_chain)(&t, (int)together, 0, i, mean);
            const BNK_NAME(chain) b = BNK_NAME(gated_chain)(&t, (int)together, BNK_CHAIN, i, mean);
            BNK_NAME(widen_chain)(t.row[0], BNK_NAME(both)(a, b), sums->first, sums->second,
                                  sums->some);
        }
        if (i < end) BNK_NAME(add_rest)(&t, (int)together, i, s->count, mean, sums);
    }
}

/* ---- by columns ---- */

/* The sums of columns, and the chains of a group that has begun. Arrays are whole vectors long. */
typedef struct BNK_NAME(column_chains_of) {
    const float *pivot;
    bnk_column_chain_sums *sums;
    float open_first[2][BNK_MAX_COLUMNS], open_second[2][BNK_MAX_COLUMNS];
} BNK_NAME(column_chains_of);

BNK_INLINE bnk_f32x16 BNK_NAME(floats_at)(const float *p)
{
    return *(const bnk_f32x16_at *)p;
}

/* A chain between one line and the next; its `some` are where they go. */
BNK_INLINE void BNK_NAME(open_chain)(int second, BNK_NAME(chain) c, int64_t j,
                                     BNK_NAME(column_chains_of) * to)
{
    *(bnk_f32x16_at *)(to->open_first[second] + j) = c.first;
    *(bnk_f32x16_at *)(to->open_second[second] + j) = c.second;
    *(bnk_uint16_at *)(to->sums->some + j) |= c.some;
}

BNK_INLINE BNK_NAME(chain)
    BNK_NAME(opened)(int second, int64_t j, const BNK_NAME(column_chains_of) * to)
{
    return (BNK_NAME(chain)){ BNK_NAME(floats_at)(to->open_first[second] + j),
                              BNK_NAME(floats_at)(to->open_second[second] + j),
                              *(const bnk_uint16_at *)(to->sums->some + j) };
}

/* Sixteen columns of a chain of lines that lie `distance` elements apart: a group's first, which then is open, or its
 * second. What comes next is `ahead` elements behind each. */
BNK_INLINE void BNK_NAME(add_columns_of_chain)(BNK_NAME(terms) t, int second, int64_t distance,
                                               int64_t ahead, int64_t j,
                                               BNK_NAME(column_chains_of) * to)
{
    const bnk_f32x16 p = BNK_NAME(floats_at)(to->pivot + j);
    BNK_NAME(chain) c = { { 0 }, { 0 }, { 0 } };
    BNK_UNROLL_GROUP
    for (int line = 0; line < BNK_CHAIN; line++) {
        const BNK_NAME(terms) own = BNK_NAME(terms_at)(t, line * distance);
        BNK_NAME(fetch)(own, j + ahead);
        c = BNK_NAME(longer)(c, line, own, j, BNK_LANES, p);
    }
    if (!second) {
        BNK_NAME(open_chain)(0, c, j, to);
        return;
    }
    BNK_NAME(widen_chain)(t, BNK_NAME(both)(BNK_NAME(opened)(0, j, to), c), to->sums->first + j,
                          to->sums->second + j, to->sums->some + j);
}

/* Sixteen columns, or the last ones, of one line, the `line`-th of `lines` in a group. */
BNK_INLINE void BNK_NAME(add_columns_of_line)(BNK_NAME(terms) t, int line, int lines, int64_t j,
                                              int64_t count, BNK_NAME(column_chains_of) * to)
{
    const int second = line >= BNK_CHAIN;
    BNK_NAME(chain) c = { { 0 }, { 0 }, { 0 } };
    if (line % BNK_CHAIN != 0) c = BNK_NAME(opened)(second, j, to);
    c = BNK_NAME(longer)(c, line, t, j, count, BNK_NAME(floats_at)(to->pivot + j));
    if (line < lines - 1) {
        BNK_NAME(open_chain)(second, c, j, to);
        return;
    }
    if (second) c = BNK_NAME(both)(BNK_NAME(opened)(0, j, to), c);
    BNK_NAME(widen_chain)(t, c, to->sums->first + j, to->sums->second + j, to->sums->some + j);
}

/* The columns of one line from the `j`-th on. */
BNK_INLINE void BNK_NAME(add_line)(BNK_NAME(terms) t, int line, int lines, int64_t j,
                                   int64_t columns, BNK_NAME(column_chains_of) * to)
{
    for (; j + BNK_LANES <= columns; j += BNK_LANES)
        BNK_NAME(add_columns_of_line)(t, line, lines, j, BNK_LANES, to);
    if (j < columns) BNK_NAME(add_columns_of_line)(t, line, lines, j, columns - j, to);
}

/* Groups, and the lines that are left, one after the other; so are columns that fill no vector. */
BNK_INLINE void BNK_NAME(add_lines)(BNK_NAME(terms) t, int64_t lines, int64_t stride,
                                    int64_t columns, BNK_NAME(column_chains_of) * to)
{
    const int64_t quarter = bnk_quarter_of(lines), distance = quarter * stride;
    const int64_t vectors = columns / BNK_LANES * BNK_LANES;
    for (int64_t line = 0; line < quarter; line++) {
        const BNK_NAME(terms) own = BNK_NAME(terms_at)(t, line * stride);
        for (int64_t j = 0; j < vectors; j += BNK_LANES) {
            const int64_t ahead = BNK_NAME(ahead), in_next = j + ahead - columns;
            BNK_NAME(add_columns_of_chain)(own, line % 2, distance,
                                           in_next < 0 ? ahead : stride - columns + ahead, j, to);
        }
    }
    for (int64_t i = vectors < columns ? 0 : 4 * quarter; i < lines; i++) {
        const int whole = i < 4 * quarter,
                  in_group = (int)(whole ? i % BNK_GROUP : i - 4 * quarter);
        const int64_t line =
            whole ? i / BNK_GROUP * 2 + in_group / BNK_CHAIN + in_group % BNK_CHAIN * quarter : i;
        BNK_NAME(add_line)(BNK_NAME(terms_at)(t, line * stride), in_group,
                           whole ? BNK_GROUP : (int)(lines - 4 * quarter), whole ? vectors : 0,
                           columns, to);
    }
}

static void BNK_NAME(column_chains)(const void *x, int64_t lines, int64_t stride, int64_t columns,
                                    const float *pivot, bnk_column_chain_sums *sums)
{
    BNK_NAME(column_chains_of) to;
    to.pivot = pivot, to.sums = sums;
    BNK_NAME(add_lines)(BNK_NAME(moment_terms)(x), lines, stride, columns, &to);
}

static void BNK_NAME(column_grad_chains)(const void *x, const void *dy, int64_t lines,
                                         int64_t stride, int64_t columns, const float *mean,
                                         bnk_column_chain_sums *sums)
{
    BNK_NAME(column_chains_of) to;
    to.pivot = mean, to.sums = sums;
    BNK_NAME(add_lines)(BNK_NAME(gradient_terms)(x, dy), lines, stride, columns, &to);
}

#if BNK_FOR_SPEED
static void BNK_NAME(column_relu_chains)(const void *x, const void *dy, const uint8_t *bits,
                                         int64_t at, int64_t lines, int64_t stride, int64_t columns,
                                         const float *mean, bnk_column_chain_sums *sums)
{
    BNK_NAME(column_chains_of) to;
    to.pivot = mean, to.sums = sums;
    BNK_NAME(add_lines)(BNK_NAME(relu_terms)(x, dy, bits, at), lines, stride, columns, &to);
}
#endif

/* One group, line after line. */
static void BNK_NAME(column_gated_chains)(const bnk_stretch *s, int lines, int64_t stride,
                                          int64_t second, int64_t positions_stride,
                                          const float *mean, bnk_column_chain_sums *sums)
{
    BNK_NAME(column_chains_of) to;
    to.pivot = mean, to.sums = sums;
    bnk_stretch own = *s;
    for (int line = 0; line < lines; line++) {
        const int64_t at = line % BNK_CHAIN * stride + line / BNK_CHAIN * second;
        own.x = (const BNK_T *)s->x + at;
        own.dy = (const BNK_T *)s->dy + at;
        own.output = s->output ? (const BNK_T *)s->output + at : NULL;
        own.at = s->at + at;
        own.positions = s->positions ? s->positions + line * positions_stride : NULL;
        BNK_NAME(add_line)(BNK_NAME(gated_terms)(&own), line, lines, 0, own.count, &to);
    }
}
