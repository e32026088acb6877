/* A plan laid over a grid: how many runs and pieces there are. */
#include "pieces.h"

bnk_cut bnk_cut_grid(bnk_grid grid, bnk_plan plan)
{
    bnk_cut cut = { .grid = grid, .plan = plan };
    cut.element = grid.half != BNK_HALF_NONE ? 2 : grid.is_double ? 8 : 4;
    cut.stride = grid.channels * grid.inner;
    cut.runs = bnk_ceil_div(grid.channels, plan.run_channels);
    cut.value_pieces = bnk_ceil_div(grid.inner, plan.piece_values);
    cut.pieces = bnk_ceil_div(grid.rows, plan.piece_rows) * cut.value_pieces;
    return cut;
}
