/*
 * The leaves of one type of tensors and one instruction set. Included by leaves_types.h.
 */
#include "apply_body.h"
#include "sums_body.h"
#include "lanes_body.h"
#include "epilogue_body.h"
#include "gated_body.h"
#if BNK_COMPUTES_FLOAT
#include "chains_body.h"
#endif
#undef BNK_ADD_ROW

const bnk_leaves BNK_NAME(leaves) = {
    .row_sums = BNK_NAME(row_sums),
    .row_apply = BNK_NAME(row_apply),
    .row_grad_sums = BNK_NAME(row_grad_sums),
    .row_grad_apply = BNK_NAME(row_grad_apply),
    .column_sums = BNK_NAME(column_sums),
    .column_apply = BNK_NAME(column_apply),
    .column_grad_sums = BNK_NAME(column_grad_sums),
    .column_grad_apply = BNK_NAME(column_grad_apply),
    .row_stretch = BNK_NAME(row_stretch),
    .row_gated_sums = BNK_NAME(row_gated_sums),
    .column_stretch = BNK_NAME(column_stretch),
    .column_gated_sums = BNK_NAME(column_gated_sums),
    .fill_masked = BNK_NAME(fill_masked),
#if BNK_FOR_SPEED
    .row_usual = BNK_NAME(row_usual),
    .column_usual = BNK_NAME(column_usual),
#endif
#if BNK_COMPUTES_FLOAT
    .row_chains = BNK_NAME(row_chains),
    .row_grad_chains = BNK_NAME(row_grad_chains),
    .column_chains = BNK_NAME(column_chains),
    .column_grad_chains = BNK_NAME(column_grad_chains),
#if BNK_FOR_SPEED
    .row_relu_chains = BNK_NAME(row_relu_chains),
    .column_relu_chains = BNK_NAME(column_relu_chains),
#endif
    .row_gated_chains = BNK_NAME(row_gated_chains),
    .column_gated_chains = BNK_NAME(column_gated_chains),
#endif
};
