/*
 * The kernels' one idea: reduce, merge, finish, apply.
 *
 * Every piece of a tensor is reduced to a result for each of its channels; the results of a run's pieces merge in
 * ascending order; of each channel's result the channel is finished, which gives the coefficients that are applied to
 * its values. What a result is, how two merge and what finishing does is the instance's: moments in a forward
 * (forward.c), gradient sums in a backward (backward.c).
 *
 * The steps run in one of two orders, with the same bits. Whole runs: a task takes a run through all steps, so that its
 * values are still in cache when they are applied. Three phases: all pieces are reduced, all channels merged and
 * finished, all is applied.
 */
#ifndef BNK_REDUCTION_H
#define BNK_REDUCTION_H

#include <stdbool.h>

#include "apply.h"

typedef struct bnk_operation bnk_operation;

/* An instance. Results are passed by address, those of neighbouring channels one behind the other. */
typedef struct bnk_reduction {
    int64_t size; /* bytes of a result: at most BNK_RESULT_DOUBLES numbers of float64 */

    /* Writes the result of each of a piece's channels, and returns how many values of each took part, if merging needs
     * it. `other`, if not NULL, goes on meanwhile. */
    double (*reduce)(const bnk_operation *operation, const bnk_piece *piece, void *results,
                     bnk_application *other);
    /* all[c] = all[c] and own[c] together. What is of no values, as the counts say, may be anything. */
    void (*merge)(void *all, double all_count, const void *own, double own_count, int64_t channels);
    /* Writes what the caller wants to have of a channel, and its coefficients to linears[0]: as numbers, or, where these
     * do not fit, marked extreme. */
    void (*finish_one)(const bnk_operation *operation, int64_t channel, const void *result,
                       const bnk_linears *linears);
    /* The same of at most BNK_TOGETHER channels, where bnk_takes_vectors. */
    void (*finish_by_vectors)(const bnk_operation *operation, int64_t channel, int64_t channels,
                              const void *results, const bnk_linears *linears);
    bnk_extreme (*finish_extreme)(const bnk_operation *operation, int64_t channel,
                                  const void *result);

    /* Between the two parts of a split operation the caller has the results. */
    void (*give)(const bnk_operation *operation, int64_t channel, int64_t channels,
                 const void *results);
    void (*take)(const bnk_operation *operation, int64_t channel, int64_t channels, void *results);
} bnk_reduction;

enum { BNK_RESULT_DOUBLES = 3 };

/* One call: an instance's own struct begins with it. */
struct bnk_operation {
    const bnk_reduction *reduction;
    bnk_operands operands;
    double count;     /* values per channel that the merged results are of */
    bool has_results; /* false: nobody needs them; nothing is reduced, and they are zeros */
    bool applies;     /* false: no tensor is written */

    /* In three phases, in the workspace: */
    char *partial;       /* results: [piece][channel] */
    double *counts;      /* [piece]: what reduce returned */
    bnk_linears linears; /* [channel] */
};

/* An operation as a whole: in the order that the plan says. The workspace is what its two parts have together, or
 * none. */
int64_t bnk_operation_workspace(const bnk_reduction *reduction, const bnk_cut *cut);
void bnk_operation_run(bnk_operation *operation, void *workspace);

/* The two parts of a split operation: reduce and merge, finish and apply. */
int64_t bnk_reduce_part_workspace(const bnk_reduction *reduction, const bnk_cut *cut);
void bnk_reduce_part_run(bnk_operation *operation, void *workspace);
int64_t bnk_apply_part_workspace(const bnk_cut *cut);
void bnk_apply_part_run(bnk_operation *operation, void *workspace);
/* Of a tensor without values: its channels are finished alone. */
void bnk_apply_part_to_nothing(const bnk_operation *operation);

#endif
