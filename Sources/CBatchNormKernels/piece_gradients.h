/* The sums of a piece that gradients need. */
#ifndef BNK_PIECE_GRADIENTS_H
#define BNK_PIECE_GRADIENTS_H

#include "apply.h"

typedef struct bnk_gradients {
    double dy;     /* sum(dy) */
    double dy_xmu; /* sum(dy * (x - mean)) */
} bnk_gradients;

/* Writes the sums of each channel of a piece, around the channels' means, to sums[0..channels). By rows `other`, if not
 * NULL, goes on meanwhile. */
void bnk_row_gradients(const bnk_operands *o, const bnk_piece *piece, double mean,
                       bnk_gradients *sums, bnk_application *other);
void bnk_column_gradients(const bnk_operands *o, const bnk_piece *piece, const double *means,
                          bnk_gradients *sums);

#endif
