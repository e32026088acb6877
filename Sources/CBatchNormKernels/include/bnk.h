/*
 * bnk.h — the interface between the Swift core and the C kernels. Not installed.
 *
 * Operations are pure functions over memory: they check nothing, keep nothing and allocate nothing.
 * Every argument has been validated by the Swift core (Sources/BatchNorm), which also makes the
 * plan.
 */
#ifndef BNK_H
#define BNK_H

#include <stddef.h>
#include <stdint.h>

/*
 * A tensor is a dense grid [rows][channels][inner]. NCHW is (N, C, S), NHWC is (N*S, C, 1), a
 * matrix is (N, C, 1): one description serves every layout and rank.
 */
typedef struct bnk_grid {
    int64_t rows;
    int64_t channels;
    int64_t inner;
    int32_t is_double; /* of computing, and of parameters: 0: float, 1: double */
    int32_t half;      /* BNK_HALF_*: how tensors are stored, if not as they are computed with */
} bnk_grid;

enum { BNK_HALF_NONE = 0, BNK_HALF_BFLOAT16 = 1, BNK_HALF_FLOAT16 = 2 };

/*
 * How the work is cut. The members of the first group depend on the shape alone, for they decide
 * the order of the sums and so the bits of the result; those of the second may depend on the
 * machine.
 *
 * A "piece" is piece_rows rows x piece_values inner values of one channel (or of a run of
 * neighbouring channels); its moments are formed by one thread. Pieces merge in ascending order.
 */
typedef struct bnk_plan {
    int32_t by_columns;    /* 0: the inner values of a channel are the vectors. 1: a line of a run's
                           channels * inner is, each column with sums of its own (short inner) */
    int64_t rows_per_line; /* by_columns with inner == 1 and all channels in one run: so many rows
                              count as one line of columns; else 1 */
    int64_t run_channels;  /* channels per run and piece: 1 by rows; by columns
                              run_channels * inner * rows_per_line <= BNK_MAX_COLUMNS */
    int64_t piece_rows;    /* rows per piece, a multiple of rows_per_line unless it is all rows */
    int64_t piece_values;  /* inner values per piece: inner itself by columns */

    int32_t threads;     /* 1: no parallel region */
    int32_t whole_runs;  /* 1: a task takes a run of channels through reduction and application;
                            0: first all pieces are reduced, then all are applied */
    int32_t nontemporal; /* 1: non-temporal stores, for outputs that no cache will hold */
    int32_t isa;         /* BNK_ISA_*, one that bnk_supported_isas() says */
} bnk_plan;

enum { BNK_MAX_COLUMNS = 1024 };
/* From so many values of a channel in a piece on, moments that are computed in float are summed in chains: see sums.h. */
enum { BNK_MANY_MOMENTS = 256 };

/* A grid cut by a plan that fits it: what every operation works on. */
typedef struct bnk_cut {
    bnk_grid grid;
    bnk_plan plan;
    int64_t element;      /* bytes of one value of a tensor */
    int64_t stride;       /* values from row to row */
    int64_t runs;         /* runs of channels */
    int64_t value_pieces; /* of a run, side by side: the inner values' */
    int64_t pieces;       /* of a run */
} bnk_cut;
bnk_cut bnk_cut_grid(bnk_grid grid, bnk_plan plan);
enum { BNK_ISA_GENERIC = 0, BNK_ISA_AVX2 = 1, BNK_ISA_AVX512 = 2, BNK_ISA_COUNT = 3 };

/* What is done to a value after batch normalization and residual: see activations.h. */
enum {
    BNK_ACTIVATION_NONE = 0,
    BNK_ACTIVATION_RELU = 1,
    BNK_ACTIVATION_LEAKY_RELU = 2,
    BNK_ACTIVATION_COUNT = 3
};
typedef struct bnk_activation {
    int32_t kind;
    double slope; /* LEAKY_RELU's */
} bnk_activation;

/*
 * What is done to values after batch normalization; all zero: nothing. Tensors are of the grid's type and shape.
 * Bit i % 8 of byte i / 8 of an activation mask tells whether output i is not <= 0.
 */
typedef struct bnk_epilogue {
    bnk_activation activation;

    /* forward: y = activation(batch normalization + residual) */
    const void *residual;             /* may be NULL, or the output */
    uint8_t *written_activation_mask; /* may be NULL */

    /* backward: where the activation let through, by one of these; needed unless there is none */
    const uint8_t *activation_mask;
    const void *output;
    void *grad_residual; /* may be NULL or grad_output */
} bnk_epilogue;

/* Which positions take part; all zero: all of them. */
typedef struct bnk_positions {
    const uint8_t *mask; /* may be NULL: [rows][inner], 0: masked, takes no part */
    int32_t pass_masked; /* masked outputs are 1: the input (backward: grad_output), 0: zero */
} bnk_positions;

/* How many bytes of a mask are not 0. */
int64_t bnk_count_taking_part(const uint8_t *mask, int64_t count);

/* Parameter arrays (void *) have the grid's computing type and `channels` elements; NULL means
 * absent. */

typedef struct bnk_forward {
    const void *input;
    void *output; /* may be input */
    const void *weight;
    const void *bias;
    double epsilon;
    void *running_mean; /* with running_var, or both NULL */
    void *running_var;
    double momentum; /* the share of this batch, unless batches are given: */
    int64_t batches; /* 0, or how many there were, this one included: statistic i's share of it is
                              1 / (batches - skipped[i]) */
    int64_t
        *skipped; /* [2 * channels], means' and then variances': how many batches each has not taken
                         in; or NULL, if there are no batches */
    double variance_scale; /* running_var takes in biased variance * this; 0: it stays as it is */
    double *saved_mean;
    double *saved_mean_rest; /* what saved_mean lacks of the mean, see moments.h */
    double *saved_invstd;
    int64_t nonfinite_channels;         /* out, by the batch */
    int64_t nonfinite_running_channels; /* out, by the running statistics as they are afterwards */
    int64_t count;                      /* values per channel that take part, at least 1 */
    bnk_epilogue epilogue;
    bnk_positions positions;
    void *workspace; /* bnk_forward_workspace() bytes, 64-byte aligned; NULL if that is 0 */
} bnk_forward;

/* Statistics that are given: mean and invstd in float64, or NULL and running statistics. */
typedef struct bnk_statistics {
    const double *mean;
    const double *mean_rest; /* may be NULL: what mean lacks, see moments.h */
    const double *invstd;
    const void *running_mean;
    const void *running_var;
    double epsilon; /* for running_var */
} bnk_statistics;

typedef struct bnk_inference {
    const void *input;
    void *output; /* may be input */
    const void *weight;
    const void *bias;
    bnk_statistics statistics; /* with mean_rest, a training forward's own coefficients */
    bnk_epilogue epilogue;
    bnk_positions positions;
} bnk_inference;

typedef struct bnk_backward {
    const void *input;
    const void *grad_output;
    void *grad_input;  /* may be NULL, input or grad_output */
    void *grad_weight; /* may be NULL */
    void *grad_bias;   /* may be NULL */
    const void *weight;
    bnk_statistics statistics; /* mean_rest is looked at where computing in double */
    int32_t frozen;            /* 1: the statistics are constants */
    int64_t count;             /* values per channel that take part, at least 1 */
    bnk_epilogue epilogue;
    bnk_positions positions;
    void *workspace; /* bnk_backward_workspace() bytes, 64-byte aligned; NULL if that is 0 */
} bnk_backward;

/* Moments of each channel, see moments.h: arrays of `channels` elements. */
typedef struct bnk_moment_arrays {
    double count; /* values per channel; 0: none, and the arrays say nothing */
    double *mean, *mean_rest, *m2;
} bnk_moment_arrays;

/* What a channel's gradients need of all its values: arrays of `channels` elements. */
typedef struct bnk_gradient_sums {
    double count;   /* values per channel */
    double *dy;     /* sum(dy) */
    double *dy_xmu; /* sum(dy * (x - mean)) */
} bnk_gradient_sums;

/* How an operation goes about its work, for those who explain it. */
typedef struct bnk_schedule {
    int32_t steps;      /* 1: whole runs, or nothing to reduce; 3: reduce, merge, apply */
    int64_t tasks;      /* of the step that has the most: more threads have nothing to do */
    int32_t whole_rows; /* 1: of an inference, whose tasks are some rows of all channels */
} bnk_schedule;

bnk_schedule bnk_reduction_schedule(const bnk_cut *cut); /* of training and backward */
bnk_schedule bnk_inference_schedule(const bnk_cut *cut);

/* Operations. rows and inner are at least 1. */
int64_t bnk_forward_workspace(const bnk_cut *cut);
void bnk_forward_training(const bnk_cut *cut, bnk_forward *job);
void bnk_forward_inference(const bnk_cut *cut, const bnk_inference *job);
int64_t bnk_backward_workspace(const bnk_cut *cut);
void bnk_backward_run(const bnk_cut *cut, const bnk_backward *job);

/*
 * The two parts of the forward and of backward, reduce and apply, with the pieces of the whole: so the bits are the
 * same. The plan is never of whole runs. The ..._workspace() of a part is its own.
 */
int64_t bnk_moments_workspace(const bnk_cut *cut);
/* Writes all of `moments` but the count. */
void bnk_moments_run(const bnk_cut *cut, const void *input, bnk_positions positions,
                     const bnk_moment_arrays *moments, void *workspace);
int64_t bnk_normalize_workspace(const bnk_cut *cut);
void bnk_normalize(const bnk_cut *cut, const bnk_moment_arrays *moments, bnk_forward *job);
int64_t bnk_backward_reduce_workspace(const bnk_cut *cut);
/* Writes all of `sums` but the count; of the job it reads all but weight, invstd, variance and destinations. */
void bnk_backward_reduce(const bnk_cut *cut, const bnk_backward *job,
                         const bnk_gradient_sums *sums);
int64_t bnk_backward_apply_workspace(const bnk_cut *cut);
void bnk_backward_apply(const bnk_cut *cut, const bnk_gradient_sums *sums, const bnk_backward *job);

/* The apply parts of a tensor without values: what channels have is written, from other tensors' values. */
void bnk_normalize_nothing(const bnk_grid *grid, const bnk_moment_arrays *moments,
                           bnk_forward *job);
void bnk_backward_apply_nothing(const bnk_grid *grid, const bnk_gradient_sums *sums,
                                const bnk_backward *job);

/* Merges `other` into `moments`, but for the count. Neither count is 0. */
void bnk_merge_moments(bnk_moment_arrays *moments, const bnk_moment_arrays *other,
                       int64_t channels);
/* variance: m2 / divisor; invstd: 1 / sqrt(m2 / count + epsilon). Each may be NULL. */
void bnk_moments_statistics(const bnk_moment_arrays *moments, int64_t channels, double divisor,
                            double epsilon, double *variance, double *invstd);

/* mean and invstd as the inference forward uses them, for a later backward. */
void bnk_statistics_from_running(const bnk_grid *grid, const void *running_mean,
                                 const void *running_var, double epsilon, double *mean,
                                 double *invstd);

/* The machine (platform.c; the last three parallel.c). A set of instruction sets has bit 1 << BNK_ISA_*. */
uint32_t bnk_supported_isas(void); /* those that this CPU and OS can run; generic always */
int64_t bnk_cache_size(
    int level); /* bytes of L1d, L2 (per core), or what is counted on of L3; a usual value if unknown */
int32_t bnk_default_threads(void); /* what OpenMP would use in a region of the calling thread */
int32_t bnk_most_threads(int32_t wanted); /* of a team: wanted, or less; see bn_set_num_threads */
const char *bnk_thread_runtime(
    void); /* whose threads the next call uses: a file's name, or "pool" */

/* Settings of the process (settings.c). */
void bnk_set_threads(int32_t threads); /* 0: bnk_default_threads() */
int32_t bnk_threads(void);             /* at most bnk_most_threads() */
void bnk_set_max_isa(int32_t isa);
int32_t bnk_isa(void); /* the best one left by the above, or by BATCHNORM_MAX_ISA */
/* The best of these sets that the cap leaves: itself and what it builds on. A cap that is none of them, say of
 * another family of CPUs, leaves all. */
int32_t bnk_choose_isa(uint32_t supported, int32_t cap);

/* Whose threads calls run on (threading.c). */
enum {
    BNK_THREADING_AUTO = 0, /* SHARED where there is such a runtime, else OWN */
    BNK_THREADING_OWN = 1,
    BNK_THREADING_SHARED = 2, /* the other OpenMP runtime in the process */
    BNK_THREADING_POOL = 3    /* the caller's pool; see bnk_set_pool */
};
enum {
    BNK_SHARED_RUNTIME_ABSENT = 1, /* nobody has loaded one */
    BNK_SHARED_RUNTIME_FORKED = 2  /* this process is a forked child */
};
int32_t bnk_set_threading(int32_t kind); /* any but POOL; 0, or why SHARED is not to be had */
int32_t bnk_threading(void);

/* Calls member(context, i) once for each i in [0, members), on any threads, at the same time or one after
 * another, and returns when all are done. */
typedef void (*bnk_member)(void *context, int32_t member);
typedef void (*bnk_run)(void *pool, int32_t members, bnk_member member, void *context);

/* run NULL: back to AUTO. Both setters return when no call uses the pool before any more; it has been
 * given to its `release` then, unless that is NULL. */
void bnk_set_pool(bnk_run run, void *pool, void (*release)(void *pool));

/* Memory and text that plain Swift in Embedded mode has no words for (platform.c). */
void *bnk_allocate(int64_t bytes); /* 64-byte aligned, not cleared; NULL if there is none */
void bnk_free(void *memory);
enum { BNK_TEXT_SIZE = 512 };
char *bnk_thread_text(void); /* this thread's BNK_TEXT_SIZE bytes, zeroed at first */

#endif /* BNK_H */
