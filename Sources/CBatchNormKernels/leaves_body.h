/*
 * The leaves of one element type (BNK_T) and instruction set. Included by leaves_types.h.
 */
#include "apply_body.h"
#include "sums_body.h"
#ifdef BNK_T_IS_FLOAT
#include "squares_body.h"
#endif
#include "widen_body.h"
#include "stage_body.h"

const bnk_leaves BNK_NAME(leaves) = {
    .row_sums = BNK_NAME(row_sums),
    .row_apply = BNK_NAME(row_apply),
    .row_grad_sums = BNK_NAME(row_grad_sums),
    .row_grad_apply = BNK_NAME(row_grad_apply),
    .column_sums = BNK_NAME(column_sums),
    .column_apply = BNK_NAME(column_apply),
    .column_grad_sums = BNK_NAME(column_grad_sums),
    .column_grad_apply = BNK_NAME(column_grad_apply),
    .stage_values = BNK_NAME(stage_values),
    .stage_gradient = BNK_NAME(stage_gradient),
    .finish_output = BNK_NAME(finish_output),
#ifdef BNK_T_IS_FLOAT
    .row_squares = BNK_NAME(row_squares),
    .column_squares = BNK_NAME(column_squares),
#endif
};
