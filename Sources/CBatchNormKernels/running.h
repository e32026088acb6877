/* Running statistics: how a batch is taken into them. */
#ifndef BNK_RUNNING_H
#define BNK_RUNNING_H

#include <stdbool.h>

#include "bnk.h"

/* What came of a channel's running statistics. */
typedef struct bnk_running_update {
    bool fits;      /* 0: the batch is NaN or infinite, or would make one of them so; both stay */
    bool is_finite; /* 0: one of them was NaN or infinite, and has stayed so */
} bnk_running_update;

/* Takes a batch's mean and biased variance into a channel's running statistics, each as far as it can be. */
bnk_running_update bnk_update_running(const bnk_forward *job, const bnk_grid *grid, int64_t channel,
                                      double batch_mean, double batch_var);

#endif
