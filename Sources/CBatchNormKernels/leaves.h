/*
 * The leaves: straight, single-threaded loops over one tile, one table of them per type of tensors
 * and instruction set. Every table gives the same bits. Bodies: leaves_body.h.
 *
 * "row" leaves work on rows x length values of ONE channel, whose parameters are scalars. "column"
 * leaves work on rows x columns values, each column with parameters and sums of its own. `stride`
 * counts elements from row to row. By columns, `ahead` tells that rows come from memory
 * and are to be prefetched; by rows, how many elements further on to prefetch.
 * Outputs may be the very memory of an input, never overlap it otherwise.
 */
#ifndef BNK_LEAVES_H
#define BNK_LEAVES_H

#include <stdint.h>

#include "bnk.h"
#include "carry.h"
#include "coefficients.h"

/* t = x * scale + center, y = t * slope + offset, dx = t * (slope + slope_rest) + offset + dy * factor:
 * each product and sum rounded once, together. See coefficients.h for what the numbers are. */

/* Sums of rows, lane by lane: leaves add to the first two. Those of float64 tensors are carried over, block by
 * block, to the others. */
typedef struct bnk_lane_sums {
    _Alignas(128) double first[16], second[16];
    double carried[2][16], lost[2][16];
} bnk_lane_sums;

/* Chains of float32 (chains_body.h): so many terms behind one another, so many lines or vectors in a group. */
enum { BNK_CHAIN = 4, BNK_GROUP = 2 * BNK_CHAIN, BNK_GROUP_VALUES = BNK_GROUP * 16 };

/* By columns, a chain has a line of each quarter of the lines, and its group's second chain the next of each. So many are
 * a quarter; what is left makes a group by itself. */
static inline int64_t bnk_quarter_of(int64_t lines)
{
    return lines / BNK_GROUP * 2;
}

/* What chains have added up, lane by lane or column by column; and the bits that any of the first terms has: none but a
 * sign if all are 0. */
typedef struct bnk_chain_sums {
    _Alignas(128) double first[16], second[16];
    uint32_t some[16];
} bnk_chain_sums;
typedef struct bnk_column_chain_sums {
    double first[BNK_MAX_COLUMNS], second[BNK_MAX_COLUMNS];
    uint32_t some[BNK_MAX_COLUMNS];
} bnk_column_chain_sums;

/* The order of the last additions: halves onto each other. */
static inline double bnk_sum_of_lanes(const double lanes[16])
{
    double sum[16];
    for (int i = 0; i < 16; i++) sum[i] = lanes[i];
    for (int width = 8; width > 0; width /= 2)
        for (int i = 0; i < width; i++) sum[i] += sum[i + width];
    return sum[0];
}

static inline void bnk_end_block(bnk_lane_sums *sums)
{
    bnk_carry(sums->first, sums->carried[0], sums->lost[0], 16);
    bnk_carry(sums->second, sums->carried[1], sums->lost[1], 16);
}

/* How much of a row's values [at, end) belongs to one block, if they are carried. */
static inline int64_t bnk_block_part(int64_t at, int64_t end, int32_t is_double)
{
    const int64_t left = end - at, block = BNK_BLOCK_VALUES - at % BNK_BLOCK_VALUES;
    return is_double && block < left ? block : left;
}

/* Both sums in the end; of blocks, the last one has ended. */
static inline void bnk_lane_totals(const bnk_lane_sums *sums, int32_t is_double, double *first,
                                   double *second)
{
    double *const totals[2] = { first, second };
    const double *const plain[2] = { sums->first, sums->second };
    for (int i = 0; i < 2; i++)
        *totals[i] = is_double ? bnk_carried(bnk_sum_of_lanes(sums->carried[i]),
                                             bnk_sum_of_lanes(sums->lost[i]))
                               : bnk_sum_of_lanes(plain[i]);
}

/*
 * A stretch of a row of one channel, or a line of columns, of an operation that has an activation, a
 * residual or masked positions (see bnk_epilogue, bnk_positions). Pointers are to its first value, which is element `at` of the tensors.
 */
enum { BNK_WAY_FORWARD, BNK_WAY_GRADIENT, BNK_WAY_FROZEN };
typedef struct bnk_stretch {
    int32_t way;
    int32_t stream; /* non-temporal stores of y */
    int64_t at,
        count; /* by columns count <= BNK_MAX_COLUMNS, by rows <= BNK_STRETCH; any for usual rows */
    const void *x, *dy;
    void *y; /* may be x, dy or the residual; NULL: nothing is written there */
    bnk_activation activation;

    const void *residual;             /* forward; may be NULL */
    uint8_t *written_activation_mask; /* forward: from its bit 0 on; may be NULL */

    const uint8_t *activation_mask; /* backward: from its bit 0 on; or */
    const void *output;  /* the forward's output; both NULL: everything was let through */
    void *grad_residual; /* backward; may be NULL or dy */

    int32_t pass_masked;
    const uint8_t *positions; /* 0: masked; NULL: none is */
} bnk_stretch;
enum { BNK_STRETCH = 512 };

typedef struct bnk_leaves {
    /* first += x - pivot, second += (x - pivot)^2 */
    void (*row_sums)(const void *x, int64_t rows, int64_t stride, int64_t length, double pivot,
                     bnk_lane_sums *sums);
    void (*row_apply)(const void *x, void *y, int64_t rows, int64_t stride, int64_t length,
                      const bnk_linear *f, int stream);
    /* first += dy, second += dy * (x - mean) */
    void (*row_grad_sums)(const void *x, const void *dy, int64_t rows, int64_t stride,
                          int64_t length, int64_t ahead, double mean, bnk_lane_sums *sums);
    void (*row_grad_apply)(const void *x, const void *dy, void *dx, int64_t rows, int64_t stride,
                           int64_t length, const bnk_linear *f, int stream);

    /* The same by columns. */
    void (*column_sums)(const void *x, int64_t rows, int64_t stride, int64_t columns, int ahead,
                        const double *pivot, double *sum, double *sum_squares);
    void (*column_apply)(const void *x, void *y, int64_t rows, int64_t stride, int64_t columns,
                         const bnk_linears *f, int stream);
    void (*column_grad_sums)(const void *x, const void *dy, int64_t rows, int64_t stride,
                             int64_t columns, int ahead, const double *mean, double *sum,
                             double *sum_product);
    void (*column_grad_apply)(const void *x, const void *dy, void *dx, int64_t rows, int64_t stride,
                              int64_t columns, const bnk_linears *f, int stream);

    /* The same sums where computing in float, in chains of float32; NULL in the tables for double. By columns
     * there are pivots for whole vectors. */
    void (*row_chains)(const void *x, int64_t rows, int64_t stride, int64_t length, float pivot,
                       bnk_chain_sums *sums);
    void (*row_grad_chains)(const void *x, const void *dy, int64_t rows, int64_t stride,
                            int64_t length, float mean, bnk_chain_sums *sums);
    void (*column_chains)(const void *x, int64_t lines, int64_t stride, int64_t columns,
                          const float *pivot, bnk_column_chain_sums *sums);
    void (*column_grad_chains)(const void *x, const void *dy, int64_t lines, int64_t stride,
                               int64_t columns, const float *mean, bnk_column_chain_sums *sums);

    /* Stretches. The sums are as those above of a gradient that came back through the activation before; rows
     * lie `stride` elements apart, and their masks positions_stride bytes. */
    void (*row_stretch)(const bnk_stretch *stretch, const bnk_linear *f);
    void (*row_gated_sums)(const bnk_stretch *stretch, int64_t rows, int64_t stride,
                           int64_t positions_stride, int64_t ahead, double mean,
                           bnk_lane_sums *sums);
    void (*column_stretch)(const bnk_stretch *stretch, const bnk_linears *f);
    void (*column_gated_sums)(const bnk_stretch *stretch, int64_t rows, int64_t stride,
                              int64_t positions_stride, const double *mean, double *sum,
                              double *sum_product);
    /* Many rows, each like the stretch and `stride` elements behind the one before: of a forward with ReLU, a residual or
     * both, or of a backward through a ReLU by its bits; without positions. They return whether they have taken them; if not, nothing is
     * done. NULL where an instruction set does without. */
    int (*row_usual)(const bnk_stretch *first, int64_t rows, int64_t stride, const bnk_linear *f);
    int (*column_usual)(const bnk_stretch *first, int64_t rows, int64_t stride,
                        const bnk_linears *f);
    /* The gated chains of a ReLU whose mask is the bits from `at` on, as x is; faster. NULL where an instruction set does
     * without. */
    void (*row_relu_chains)(const void *x, const void *dy, const uint8_t *bits, int64_t at,
                            int64_t rows, int64_t stride, int64_t length, float mean,
                            bnk_chain_sums *sums);
    void (*column_relu_chains)(const void *x, const void *dy, const uint8_t *bits, int64_t at,
                               int64_t lines, int64_t stride, int64_t columns, const float *mean,
                               bnk_column_chain_sums *sums);
    void (*row_gated_chains)(const bnk_stretch *stretch, int64_t rows, int64_t stride,
                             int64_t positions_stride, float mean, bnk_chain_sums *sums);
    /* Of one group of lines: those of a chain `stride` elements apart, the second chain's `second` elements behind the
     * first's. */
    void (*column_gated_chains)(const bnk_stretch *stretch, int lines, int64_t stride,
                                int64_t second, int64_t positions_stride, const float *mean,
                                bnk_column_chain_sums *sums);

    /* to = x in computing type; where `positions` is 0, the filler (with step 0 one value for all). */
    void (*fill_masked)(const void *x, const uint8_t *positions, const void *filler,
                        int64_t filler_step, void *to, int64_t count);
} bnk_leaves;

/* Behind the last of `count` positions that takes part: all that comes is masked, as behind the end of a padded sequence
 * (positions.c; not a part of the leaves, in which it would stand many times). */
int64_t bnk_end_taking_part(const uint8_t *positions, int64_t count);

/* bnk_leaves_float_generic and so on. */
#define BNK_LEAVES_OF(isa)                                                   \
    extern const bnk_leaves bnk_leaves_float_##isa, bnk_leaves_double_##isa, \
        bnk_leaves_bf16_##isa, bnk_leaves_f16_##isa
BNK_LEAVES_OF(generic);
#if defined(__x86_64__)
BNK_LEAVES_OF(avx2);
BNK_LEAVES_OF(avx512);
#endif
#undef BNK_LEAVES_OF

/* The tables for a plan's instruction set (leaves.c): for tensors as they are stored, and for values in
 * computing type. */
const bnk_leaves *bnk_leaves_for(int32_t isa, const bnk_grid *grid);
const bnk_leaves *bnk_computing_leaves_for(int32_t isa, const bnk_grid *grid);

#endif
