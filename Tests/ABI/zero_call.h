/*
 * zero_call.h — the call that bn_explain was asked about, on tensors of zeros: every argument that it has is there, and
 * no other.
 */
#ifndef ZERO_CALL_H
#define ZERO_CALL_H

#include <batchnorm.h>

typedef struct zero_call {
    bn_problem problem;
    bn_operation operation;
    bn_forward_training_args training;
    bn_forward_inference_args inference;
    bn_backward_args backward;
} zero_call;

/* Buffers live until guarded_free_all(). */
zero_call zero_call_make(const bn_problem *problem, const bn_explain_args *args);
bn_status zero_call_run(zero_call *call);

/* "float32 NHWC (2, 3, 4, 4), operation 3, activation 1, residual 1, ..."; valid until the next call. */
const char *asked_text(const bn_problem *problem, const bn_explain_args *args);

#endif
