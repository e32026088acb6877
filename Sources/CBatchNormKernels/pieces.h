/* The pieces that a plan cuts a grid into, and where their values lie. */
#ifndef BNK_PIECES_H
#define BNK_PIECES_H

#include <stdint.h>

#include "bnk.h"

/* Some channels x some rows x some inner values of a grid. */
typedef struct bnk_piece {
    int64_t channel, channels;
    int64_t row, rows;
    int64_t offset, length; /* of the inner values */
} bnk_piece;

static inline int64_t bnk_min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t bnk_max(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static inline int64_t bnk_ceil_div(int64_t a, int64_t b)
{
    return a / b + (a % b != 0);
}

/* Piece `index` of run `run`. */
static inline bnk_piece bnk_piece_at(const bnk_cut *cut, int64_t run, int64_t index)
{
    const bnk_plan *plan = &cut->plan;
    bnk_piece piece;
    piece.channel = run * plan->run_channels;
    piece.channels = bnk_min(plan->run_channels, cut->grid.channels - piece.channel);
    piece.row = index / cut->value_pieces * plan->piece_rows;
    piece.rows = bnk_min(plan->piece_rows, cut->grid.rows - piece.row);
    piece.offset = index % cut->value_pieces * plan->piece_values;
    piece.length = bnk_min(plan->piece_values, cut->grid.inner - piece.offset);
    return piece;
}

/* All rows and inner values of run `run`, for applying at once. */
static inline bnk_piece bnk_whole_run(const bnk_cut *cut, int64_t run)
{
    bnk_piece piece = bnk_piece_at(cut, run, 0);
    piece.rows = cut->grid.rows;
    piece.length = cut->grid.inner;
    return piece;
}

/* Which element of a tensor is inner value `offset` of a row of a channel. */
static inline int64_t bnk_element_at(const bnk_cut *cut, int64_t row, int64_t channel,
                                     int64_t offset)
{
    return row * cut->stride + channel * cut->grid.inner + offset;
}

static inline int64_t bnk_first_element(const bnk_cut *cut, const bnk_piece *piece)
{
    return bnk_element_at(cut, piece->row, piece->channel, piece->offset);
}

/* Whether the lines that are summed by columns come from beyond L2. */
static inline int bnk_from_memory(const bnk_cut *cut)
{
    return !cut->plan.whole_runs || cut->plan.nontemporal;
}

/*
 * By rows, `together` rows of a piece are summed at once, from `row` on. How many elements further on are those that
 * are next, of this channel or the one after it? They are prefetched, for rows are too short for the
 * hardware to see them come.
 */
static inline int64_t bnk_next_rows(const bnk_cut *cut, const bnk_piece *piece, int64_t row,
                                    int64_t together)
{
    return row + together < piece->row + piece->rows
               ? together * cut->stride
               : cut->grid.inner - (row - piece->row) * cut->stride;
}

#endif
