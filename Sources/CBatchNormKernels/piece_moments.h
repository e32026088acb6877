/* The moments of a piece. */
#ifndef BNK_PIECE_MOMENTS_H
#define BNK_PIECE_MOMENTS_H

#include "apply.h"
#include "moments.h"

/* Writes the moments of each channel of a piece of x to moments[0..channels), and returns how many values of each take
 * part. By rows `other`, if not NULL, goes on meanwhile. */
double bnk_row_moments(const bnk_operands *o, const bnk_piece *piece, bnk_moments *moments,
                       bnk_application *other);
double bnk_column_moments(const bnk_operands *o, const bnk_piece *piece, bnk_moments *moments);

#endif
