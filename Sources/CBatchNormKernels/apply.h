/* Applying coefficients to a piece: the last step of every operation. */
#ifndef BNK_APPLY_H
#define BNK_APPLY_H

#include "coefficients.h"
#include "extreme.h"
#include "epilogue.h"
#include "positions.h"
#include "pieces.h"

/* y = (x * scale + center) * slope + offset with the coefficients of the piece's channels, whose
 * first is the arrays' first; in a backward + dy * factor; and what epilogue and positions ask for.
 * `results` are for the extreme channels among these. */
void bnk_apply_piece(const bnk_operands *o, const bnk_piece *piece, const bnk_linears *channels,
                     bnk_results results);

/* The same by rows, of a channel that is not extreme. */
void bnk_apply_rows(const bnk_operands *o, const bnk_piece *piece, const bnk_linear *f);

/* The same of one extreme channel (extreme.c). */
void bnk_apply_extreme(const bnk_operands *o, const bnk_piece *piece, int64_t channel,
                       const bnk_extreme *e);

/*
 * The same for one channel by rows, in small turns between other work: non-temporal stores leave a core
 * idle most of the time, and the sums of another channel fit into it.
 */
typedef struct bnk_application {
    const bnk_operands *operands;
    bnk_piece piece;
    bnk_linear f;
    int64_t row, offset; /* where to go on, counted in the piece: a row and an element in it */
    int64_t owed;        /* elements that turns were asked for and not done yet */
} bnk_application;

void bnk_apply_begin(bnk_application *application, const bnk_operands *o, const bnk_piece *piece,
                     const bnk_linear *f);

/* About `elements` more of it; no more than are left. Sums and applications take turns every BNK_TURN
 * elements: what a core's store queue takes in while the sums go on. */
enum { BNK_TURN = 512 };

/* How to cut `length` values of each of `rows` rows into nearly even turns of about BNK_TURN elements, all
 * but the last whole groups. */
static inline int64_t bnk_turn_of(int64_t length, int64_t rows)
{
    const int64_t wanted = BNK_TURN / rows, turns = (length + wanted / 2) / wanted;
    const int64_t group = BNK_GROUP_VALUES / rows; /* of each row */
    return turns <= 1 ? length : bnk_ceil_div(length / turns, group) * group;
}

void bnk_apply_some(bnk_application *application, int64_t elements);

/* All that is left. */
void bnk_apply_rest(bnk_application *application);

/* To be called at the end of each task that applied: non-temporal stores become visible to other
 * threads in order only after a fence. */
void bnk_finish_stores(const bnk_cut *cut);

/* The application to a whole grid, cut into tasks as suits it (apply_grid.c): coefficients and results of all channels.
 * A task takes whole rows, one behind the other in memory, rather than runs of them, where nothing has to be expanded. */
int bnk_takes_whole_rows(const bnk_cut *cut);
int64_t bnk_apply_tasks(const bnk_cut *cut);
void bnk_apply_tasks_run(const bnk_operands *o, int64_t begin, int64_t end,
                         const bnk_linears *linears, bnk_results results);

#endif
