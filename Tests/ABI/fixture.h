/*
 * fixture.h — one problem with every buffer that a call may take, between guard pages, and the arguments of
 * all operations filled in. A test changes what it is about and calls.
 */
#ifndef FIXTURE_H
#define FIXTURE_H

#include <batchnorm.h>

#include "guarded.h"
#include "reference.h"

enum { FIXTURE_BUFFERS = 19 };

typedef struct fixture {
    bn_problem problem;
    ref_grid grid;
    elements input, grad_output, weight, bias;           /* random */
    elements running_mean, running_var;                  /* random, variance > 0 */
    elements saved_mean, saved_invstd;                   /* random until a forward has run */
    elements saved_mean_rest;                            /* 0 until a forward has run */
    elements output, grad_input, grad_weight, grad_bias; /* junk until written */
    int64_t *num_batches_tracked;                        /* 3 */
    int64_t *skipped_batches;                            /* 2*C zeros */

    /* From fixture_add_extras on. */
    elements residual;      /* random */
    elements grad_residual; /* junk until written */
    uint8_t *bits;          /* an activation's mask, bits_count bytes; junk until written */
    int64_t bits_count;
    uint8_t *mask; /* random, positions bytes; at least two take part */
    int64_t positions;
    int64_t *lengths; /* random, one a sample */

    bn_forward_training_args training;
    bn_forward_inference_args inference;
    bn_backward_args backward;

    bn_problem original;
    void *copies[FIXTURE_BUFFERS];
    int64_t copied_counter;
} fixture;

/* Buffers live until guarded_free_all(). `where` is the placement of the first buffer; the others
 * follow in turn. */
fixture fixture_make(bn_problem problem, placement where);
/* Problem and arguments as fixture_make made them; buffers stay as they are. */
void fixture_restore_args(fixture *f);

/* What a call may do beyond batch normalization. */
typedef struct extras {
    bn_activation_kind activation;
    double slope; /* leaky ReLU's */
    bool residual;
    bool mask, lengths; /* at most one of them */
    bn_masked masked;
} extras;

/* The arguments' own words for what a fixture has. */
bn_view view_of(elements array);
bn_mutable_view mutable_view_of(elements array);
bn_saved saved_of(const fixture *f);
bn_activation activation_of(extras e);
bn_positions positions_of(const fixture *f, extras e);

/* Makes the buffers that extras need. */
void fixture_add_extras(fixture *f);
/* Arguments as fixture_make made them, with these extras in all operations; backward gets the activation's
 * mask. */
void fixture_use(fixture *f, extras e);

/* Makes some channels such that the element type cannot hold their coefficients: a constant near the end of its range,
 * weights at either end, a deviation and a variance that are subnormal; between ordinary ones. */
void fixture_make_extreme(fixture *f);

/* The position, as masks count them, of a tensor's element. */
int64_t fixture_position(const fixture *f, int64_t index);

/* Remembers all buffers; the name of one that has changed since, or NULL. */
void fixture_remember(fixture *f);
const char *fixture_changed(const fixture *f);

/* Puts the remembered values back. */
void fixture_recall(fixture *f);

bn_problem problem_of(bn_dtype dtype, bn_layout layout, int rank, const int64_t *sizes);
/* "leaky ReLU by 2, residual, mask, pass"; valid until the next call. */
const char *extras_text(extras e);
static inline elements absent_like(elements array)
{
    return (elements){ NULL, 0, array.is_double };
}

/* Calls that must succeed; failing, they quote the library's message. */
void run_training(fixture *f);
void run_inference(fixture *f);
void run_backward(fixture *f);

/* Fails unless the call just made returned `expected`, with a message in which every word of
 * `words` ("weight.count|5|3") occurs. */
void check_refused(bn_status actual, bn_status expected, const char *words);

/* Fails at the first element whose bits are not those expected. */
void check_bits(const fixture *f, const char *what, elements got, elements expected);

/* The reference's statistics of every channel; valid until the next call. */
const ref_statistics *batch_statistics(const fixture *f, double epsilon);
const ref_statistics *running_statistics(const fixture *f, double epsilon);
const ref_statistics *saved_statistics(const fixture *f);

/* "float32 NHWC (2, 3, 4, 4)"; valid until the next call. */
const char *problem_text(const bn_problem *problem);

/* The plain operation with all gradients, as bn_explain is asked about it. */
static inline bn_explain_args asking(bn_operation operation)
{
    return (bn_explain_args){ BN_EXPLAIN_ARGS_DEFAULTS, .operation = operation };
}

/* For cmocka: frees buffers, and takes the settings of the process back. */
int fixture_teardown(void **state);

#endif
