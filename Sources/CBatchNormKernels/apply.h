/* Applying coefficients to a piece: the last step of every operation. Implemented in apply.c. */
#ifndef BNK_APPLY_H
#define BNK_APPLY_H

#include "coefficients.h"
#include "leaves.h"
#include "pieces.h"

/* y = (x * scale + center) * slope + offset with the coefficients of the piece's channels, whose
 * first is the arrays' first; with dy not NULL + dy * factor. y may be x or dy. */
void bnk_apply_piece(const bnk_cut *cut, const bnk_leaves *leaves, const bnk_piece *piece,
                     const bnk_linears *channels, const void *x, const void *dy, void *y);

/* The same for a whole grid, cut into tasks as suits the application: coefficients of all channels. */
int64_t bnk_apply_tasks(const bnk_cut *cut);
void bnk_apply_task(const bnk_cut *cut, const bnk_leaves *leaves, int64_t task,
                    const bnk_linears *linears, const void *x, const void *dy, void *y);

#endif
