/*
 * cell.h — one cell of the benchmark (an operation on a shape, with its buffers), and timing of
 * contenders on it. Shared by harness.c (this library and the limit) and peers/onednn_peer.c, which run in
 * processes of their own and answer run.py through serve().
 */
#ifndef CELL_H
#define CELL_H

#include <stddef.h>
#include <stdint.h>

/* MEMORY is none of batch normalization's: plain sweeps, for the speed of the machine. */
typedef enum { FORWARD, INFERENCE, BACKWARD, FROZEN, MEMORY, OPERATIONS } operation;
extern const char *const operation_names[OPERATIONS];

typedef enum { FLOAT32, FLOAT64, BFLOAT16, FLOAT16, DTYPES } datatype;
extern const char *const datatype_names[DTYPES];

enum {
    WEIGHT,
    BIAS,
    RUNNING_MEAN,
    RUNNING_VAR,
    GRAD_WEIGHT,
    GRAD_BIAS,
    SAVED_MEAN,
    SAVED_INVSTD,
    PARAMETERS
};

typedef struct cell {
    operation op;
    int lengths, add, relu; /* +lengths, +add and +relu behind the operation's name */
    datatype dtype;
    int nhwc, rank;
    int64_t sizes[5]; /* N, C, spatial */
    int threads;
    int cold;        /* rotate over buffers larger than four last-level caches */
    int small_pages; /* 4 KB pages instead of huge ones */
    int layer;       /* this library through bn_layer instead of the stateless functions */
    double seconds;  /* shortest repetition */
    size_t l2, llc;  /* bytes of a core's second-level cache, and of the last-level cache */

    /* Set by cell_open: */
    int64_t n, c, s, count;
    size_t bytes; /* of one tensor */
    int tensors;  /* that the operation moves: 2 to 4, see tensor() */
    int sets;     /* of tensors that are rotated; 1 if warm */
    char *memory;
    size_t memory_size, set_size, tensor_size;
    void *parameters[PARAMETERS]; /* c elements each, see parameter(); saved values are float64 */
    int64_t *sample_lengths;      /* with +lengths: n of them, else NULL */
} cell;

/* Ends the process with one line "error ..." on standard output, where run.py reads it. */
_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

void cell_initialize(cell *k, int threads);
void cell_set(cell *k, const char *key,
              const char *value); /* op, layout, dtype, shape, threads, ... */
void cell_open(cell *k);          /* makes and fills the buffers */
void cell_close(cell *k);

static inline int has_gradient(const cell *k)
{
    return k->op == BACKWARD || k->op == FROZEN;
}
/* In this order: input, output, then what the operation has of gradient and residual. */
static inline char *tensor(const cell *k, int set, int index)
{
    return k->memory + (size_t)set * k->set_size + (size_t)index * k->tensor_size;
}
/* output is the input's gradient in a backward; gradient (of the output) exists only there. */
static inline void *input_of(const cell *k, int set)
{
    return tensor(k, set, 0);
}
static inline void *output_of(const cell *k, int set)
{
    return tensor(k, set, 1);
}
static inline void *gradient_of(const cell *k, int set)
{
    return tensor(k, set, 2);
}
/* With +add: what is added in a forward, its gradient in a backward. */
static inline void *residual_of(const cell *k, int set)
{
    return tensor(k, set, has_gradient(k) ? 3 : 2);
}
/* With +relu: a bit a value, written by a forward, read by a backward. */
static inline uint8_t *bits_of(const cell *k, int set)
{
    return (uint8_t *)tensor(k, set, k->tensors);
}
static inline int64_t bits_count(const cell *k)
{
    return (k->count + 7) / 8;
}

/* Element i of a tensor. */
double get(const cell *k, const void *from, int64_t i);
/* Element i of a parameter or a running statistic: float32 for the half types. */
double parameter(const cell *k, int which, int64_t i);

enum { MAX_CONTENDERS = 16 };

typedef struct contender {
    char name[48];
    void (*call)(const struct contender *self, cell *k, int set);
    const void *context;
    long loops; /* calls in a repetition; see calibrate */
} contender;

/* Seconds per call over `loops` calls. */
double repetition(const contender *c, cell *k, long loops);
/* One call that is not counted, then a repetition: what was done before must not show. */
double timed(const contender *c, cell *k);
/* How many calls fill a repetition; leaves caches, pages and workers warm. */
void calibrate(contender *c, cell *k);

/* run.py's worker: reads lines from standard input and answers each with one line.
 *     cell KEY=VALUE ...   contenders NAME ...   buffers are made, contenders calibrated
 *     round                times SECONDS ...     one repetition of each, in that order
 *     close                closed                buffers are given back
 * line_up fills the list for an open cell and returns its length. resume and pause, each may be NULL,
 * stand around a command: after the answer it is another process's turn, and OpenMP's threads must not
 * go on spinning. */
typedef struct worker {
    char ready[256]; /* "KEY=VALUE ...": versions and such, told at the start */
    int (*line_up)(cell *k, contender *list);
    void (*close)(void);
    void (*resume)(void);
    void (*pause)(void);
} worker;
void serve(const worker *w, cell *k);

#endif
