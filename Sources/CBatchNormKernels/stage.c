/* Stretches of tensors through buffers in L1: see stage.h. */
#include "stage.h"

#include <string.h>

/* A line of columns, or a stretch of a row, of either computing type. */
typedef struct buffer {
    _Alignas(64) double values[BNK_MAX_COLUMNS];
} buffer;
/* The mask bits of one, and what the passes touch beyond. */
enum { BITS = BNK_MAX_COLUMNS / 8 + 8 };

bnk_operands bnk_operands_of(const bnk_cut *cut, const void *x, const void *dy, void *y,
                             int32_t frozen, const bnk_extras *extras)
{
    const bnk_grid *grid = cut->grid;
    const bnk_operands operands = {
        .cut = cut,
        .leaves = bnk_leaves_for(cut->plan->isa, grid->is_double),
        .core = bnk_leaves_for(cut->plan->isa, grid->is_double),
        .x = x,
        .dy = dy,
        .y = y,
        .written = y ? y : extras ? extras->grad_residual : NULL,
        .frozen = frozen,
        .extras = extras,
    };
    return operands;
}

int bnk_is_plain(const bnk_operands *o)
{
    const bnk_extras *e = o->extras;
    if (!e) return 1;
    return e->negative_slope == 1 && !e->residual && !e->bits && !e->grad_residual && o->y;
}

/* ---- masks ---- */

int64_t bnk_count_kept(const uint8_t *positions, int64_t count)
{
    int64_t kept = 0;
    for (int64_t i = 0; i < count;) {
        /* Short enough for a byte each of eight counts side by side. */
        uint8_t part[16] = { 0 };
        const int64_t end = bnk_min(i + 16 * 255, count);
        for (; i + 16 <= end; i += 16)
            for (int k = 0; k < 16; k++) part[k] = (uint8_t)(part[k] + (positions[i + k] != 0));
        for (; i < end && end - i < 16; i++) kept += positions[i] != 0;
        for (int k = 0; k < 16; k++) kept += part[k];
    }
    return kept;
}

const uint8_t *bnk_keep_row(const bnk_operands *o, int64_t row, int64_t offset, int64_t length)
{
    if (!o->extras || !o->extras->positions) return NULL;
    const uint8_t *keep = o->extras->positions + row * o->cut->grid->inner + offset;
    return bnk_count_kept(keep, length) == length ? NULL : keep;
}

const uint8_t *bnk_keep_line(const bnk_operands *o, int64_t row, int64_t fold, int64_t channels,
                             uint8_t *columns)
{
    const int64_t inner = o->cut->grid->inner;
    if (!bnk_keep_row(o, row, 0, fold * inner)) return NULL;
    const uint8_t *positions = o->extras->positions + row * inner;
    uint8_t *to = columns;
    if (inner == 1) /* fold rows of channels */
        for (int64_t f = 0; f < fold; f++, to += channels)
            memset(to, positions[f], (size_t)channels);
    else
        for (int64_t c = 0; c < channels; c++, to += inner) memcpy(to, positions, (size_t)inner);
    return columns;
}

bnk_kept bnk_kept_in(const bnk_operands *o, int64_t row, int64_t rows, int64_t offset,
                     int64_t length)
{
    const int64_t inner = o->cut->grid->inner;
    bnk_kept kept = { rows * length, row, offset };
    if (!o->extras || !o->extras->positions) return kept;
    kept.count = 0;
    for (int64_t r = row; r < row + rows; r++) {
        const uint8_t *keep = o->extras->positions + r * inner + offset;
        const int64_t own = bnk_count_kept(keep, length);
        if (own > 0 && kept.count == 0) {
            int64_t first = 0;
            while (!keep[first]) first++;
            kept.row = r;
            kept.offset = offset + first;
        }
        kept.count += own;
    }
    return kept;
}

/* ---- mask bits ---- */

/* Bits [at, at + count) of `bits` to the first of `to`. */
static void take_bits(const uint8_t *bits, int64_t at, int64_t count, uint8_t *to)
{
    const uint8_t *from = bits + at / 8;
    const int shift = (int)(at % 8);
    const int64_t touched = (shift + count + 7) / 8, bytes = (count + 7) / 8;
    if (shift == 0) {
        memcpy(to, from, (size_t)bytes);
        return;
    }
    for (int64_t i = 0; i < bytes; i++) {
        const int next = i + 1 < touched ? from[i + 1] : 0;
        to[i] = (uint8_t)(from[i] >> shift | next << (8 - shift));
    }
}

/* Some bits of a byte whose others belong to another thread. */
static void put_some(uint8_t *byte, int mask, int value)
{
    __atomic_fetch_and(byte, (uint8_t)~mask, __ATOMIC_RELAXED);
    __atomic_fetch_or(byte, (uint8_t)(value & mask), __ATOMIC_RELAXED);
}

/* The first `count` bits of `from` to bits [at, at + count) of `bits`. */
static void put_bits(const uint8_t *from, int64_t count, uint8_t *bits, int64_t at)
{
    uint8_t *to = bits + at / 8;
    const int shift = (int)(at % 8);
    int64_t done = 0;
    if (shift != 0) {
        done = bnk_min(8 - shift, count);
        put_some(to++, ((1 << done) - 1) << shift, from[0] << shift);
    }
    for (; done + 8 <= count; done += 8) {
        const int64_t byte = done / 8;
        const int past = (int)(done % 8);
        *to++ = (uint8_t)(from[byte] >> past | (past ? from[byte + 1] << (8 - past) : 0));
    }
    if (done < count) {
        const int64_t byte = done / 8;
        const int past = (int)(done % 8);
        put_some(to, (1 << (count - done)) - 1, from[byte] >> past | from[byte + 1] << (8 - past));
    }
}

/* ---- in ---- */

/* Values of x in computing type, masked ones `filler` (an array if step): in `to`, or where they are. */
static const void *staged_values(const bnk_operands *o, int64_t at, int64_t count,
                                 const uint8_t *keep, const void *filler, int step, void *to)
{
    const char *x = o->x + at * o->cut->element;
    if (!keep && o->leaves == o->core) return x;
    const bnk_value_stage stage = { x, keep, filler, step, to };
    o->leaves->stage_values(&stage, count);
    return to;
}

/* dy behind the activation, masked ones 0. */
static void stage_gradient(const bnk_operands *o, int64_t at, int64_t count, int64_t ahead,
                           const uint8_t *keep, void *to)
{
    const bnk_extras *e = o->extras;
    const int64_t element = o->cut->element;
    uint8_t bits[BITS];
    bnk_gradient_stage stage = {
        .dy = o->dy + at * element, .negative_slope = e->negative_slope, .keep = keep, .to = to
    };
    if (e->negative_slope != 1) {
        if (e->passed_bits) {
            take_bits(e->passed_bits, at, count, bits);
            stage.bits = bits;
        } else {
            stage.output = (const char *)e->passed_output + at * element;
        }
    }
    if (ahead != 0) {
        stage.next[0] = (const char *)stage.dy + ahead * element;
        stage.next[1] = o->x ? o->x + (at + ahead) * element : NULL;
        stage.next[2] = stage.output ? (const char *)stage.output + ahead * element : NULL;
    }
    o->leaves->stage_gradient(&stage, count);
}

/* ---- out ---- */

static void finish_output(const bnk_operands *o, int64_t at, int64_t count, const uint8_t *keep,
                          const void *values)
{
    const bnk_extras *e = o->extras;
    const int64_t element = o->cut->element;
    uint8_t bits[BITS];
    bnk_output_stage stage = {
        .values = values, .negative_slope = 1, .keep = keep, .stream = o->cut->plan->stream
    };
    stage.y = o->y + at * element;
    if (keep && e->pass_masked) stage.passed = (o->dy ? o->dy : o->x) + at * element;
    if (!o->dy) {
        stage.negative_slope = e->negative_slope;
        if (e->residual) stage.residual = (const char *)e->residual + at * element;
        if (e->bits) {
            memset(bits, 0, (size_t)(count / 8 + 5));
            stage.bits = bits;
        }
    }
    o->leaves->finish_output(&stage, count);
    if (stage.bits) put_bits(bits, count, e->bits, at);
}

/* The residual's gradient is what came through the activation. After dx, for it may be written over dy. */
static void finish_residual(const bnk_operands *o, int64_t at, int64_t count, const void *gradient)
{
    if (!o->extras->grad_residual) return;
    const bnk_output_stage stage = { .values = gradient,
                                     .negative_slope = 1,
                                     .y = (char *)o->extras->grad_residual + at * o->cut->element,
                                     .stream = o->cut->plan->stream };
    o->leaves->finish_output(&stage, count);
}

/* ---- by rows ---- */

static const double zeros[1] = { 0 };

/* The pivot as one value of computing type. */
static const void *filler_of(const bnk_operands *o, const double *pivot, void *value)
{
    if (!pivot) return zeros;
    bnk_set(value, o->cut->grid->is_double, 0, *pivot);
    return value;
}

void bnk_stage_row_sums(const bnk_operands *o, int64_t at, int64_t count, const uint8_t *keep,
                        const double *pivot, bnk_lane_sums *sums)
{
    buffer x;
    double value;
    const void *from =
        staged_values(o, at, count, keep, filler_of(o, pivot, &value), 0, x.values);
    if (pivot)
        o->core->row_sums(from, 1, 0, count, *pivot, sums);
    else
        o->core->row_squares(from, 1, 0, count, 0, sums);
}

void bnk_stage_row_grad_sums(const bnk_operands *o, int64_t at, int64_t count, int64_t ahead,
                             const uint8_t *keep, double mean, bnk_lane_sums *sums)
{
    buffer x, dy;
    for (int64_t i = 0; i < count; i += BNK_STRETCH) {
        const int64_t n = bnk_min(BNK_STRETCH, count - i);
        const uint8_t *own = keep ? keep + i : NULL;
        /* 0 times what is masked must be 0, even if that is infinite. */
        const void *from = staged_values(o, at + i, n, own, zeros, 0, x.values);
        stage_gradient(o, at + i, n, ahead, own, dy.values);
        o->core->row_grad_sums(from, dy.values, 1, 0, n, 0, mean, sums);
    }
}

/* The first stretch ends where a cache line of y does, and so do all but the last. */
static int64_t stretch(const bnk_operands *o, int64_t at, int64_t left, int64_t most)
{
    if (left <= most) return left;
    const char *end = o->written + (at + most) * o->cut->element;
    return most - (int64_t)((uintptr_t)end % 64) / o->cut->element;
}

void bnk_stage_row_apply(const bnk_operands *o, int64_t at, int64_t count, const uint8_t *keep,
                         const bnk_linear *f)
{
    buffer x, dy, y;
    for (int64_t i = 0, n; i < count; i += n) {
        n = stretch(o, at + i, count - i, BNK_STRETCH);
        const uint8_t *own = keep ? keep + i : NULL;
        if (o->dy) stage_gradient(o, at + i, n, 0, own, dy.values);
        if (o->y) {
            const void *from =
                o->frozen ? dy.values : staged_values(o, at + i, n, NULL, NULL, 0, x.values);
            if (o->dy && !o->frozen)
                o->core->row_grad_apply(from, dy.values, y.values, 1, 0, n, f, 0);
            else
                o->core->row_apply(from, y.values, 1, 0, n, f, 0);
            finish_output(o, at + i, n, own, y.values);
        }
        if (o->dy) finish_residual(o, at + i, n, dy.values);
    }
}

/* ---- by columns ---- */

/* Lines in buffers, one behind the other. */
typedef struct lines {
    _Alignas(64) double values[BNK_LINES * BNK_MAX_COLUMNS];
} lines;

static char *line_at(const bnk_operands *o, lines *of, int64_t line)
{
    return (char *)of->values + line * BNK_MAX_COLUMNS * (o->cut->grid->is_double ? 8 : 4);
}

/* As staged_values, but always to `to`: lines must lie as far apart as those of dy. */
static void stage_lines(const bnk_operands *o, int64_t at, int64_t count, int64_t stride,
                        int64_t line, const uint8_t *keep, const void *filler, int step, lines *to)
{
    const bnk_value_stage stage = { o->x + (at + line * stride) * o->cut->element, keep, filler,
                                    step, line_at(o, to, line) };
    o->leaves->stage_values(&stage, count);
}

void bnk_stage_column_sums(const bnk_operands *o, int64_t at, int64_t count_of_lines,
                           int64_t stride, int64_t count, const uint8_t *const keep[BNK_LINES],
                           const double *pivot, double *sum, double *squares)
{
    lines x;
    buffer pivots;
    for (int64_t j = 0; pivot && j < count; j++)
        bnk_set(pivots.values, o->cut->grid->is_double, j, pivot[j]);
    for (int64_t line = 0; line < count_of_lines; line++)
        stage_lines(o, at, count, stride, line, keep[line], pivot ? pivots.values : zeros,
                    pivot != NULL, &x);
    if (pivot)
        o->core->column_sums(x.values, count_of_lines, BNK_MAX_COLUMNS, count, 0, pivot, sum,
                             squares);
    else
        o->core->column_squares(x.values, count_of_lines, BNK_MAX_COLUMNS, count, 0, sum, squares);
}

void bnk_stage_column_grad_sums(const bnk_operands *o, int64_t at, int64_t count_of_lines,
                                int64_t stride, int64_t count, const uint8_t *const keep[BNK_LINES],
                                const double *mean, double *sum, double *product)
{
    lines x, dy;
    for (int64_t line = 0; line < count_of_lines; line++) {
        stage_lines(o, at, count, stride, line, keep[line], zeros, 0, &x);
        stage_gradient(o, at + line * stride, count, 0, keep[line], line_at(o, &dy, line));
    }
    o->core->column_grad_sums(x.values, dy.values, count_of_lines, BNK_MAX_COLUMNS, count, 0, mean,
                              sum, product);
}

void bnk_stage_line_apply(const bnk_operands *o, int64_t at, int64_t count, const uint8_t *keep,
                          const bnk_linears *f)
{
    buffer x, dy, y;
    if (o->dy) stage_gradient(o, at, count, 0, keep, dy.values);
    if (o->y) {
        const void *from =
            o->frozen ? dy.values : staged_values(o, at, count, NULL, NULL, 0, x.values);
        if (o->dy && !o->frozen)
            o->core->column_grad_apply(from, dy.values, y.values, 1, 0, count, f, 0);
        else
            o->core->column_apply(from, y.values, 1, 0, count, f, 0);
        finish_output(o, at, count, keep, y.values);
    }
    if (o->dy) finish_residual(o, at, count, dy.values);
}
