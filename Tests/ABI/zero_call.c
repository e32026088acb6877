#include "zero_call.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "fixture.h"

static int64_t elements_of(const bn_problem *problem)
{
    int64_t count = 1;
    for (int i = 0; i < problem->rank; i++) count *= problem->sizes[i];
    return count;
}

static void *zeros(bool is_there, int64_t count, size_t size)
{
    if (!is_there) return NULL;
    void *memory = guarded((size_t)count * size, size, PLACE_START);
    return memset(memory, 0, (size_t)count * size);
}

static bn_mutable_view tensor_of(const bn_problem *problem, bool is_there)
{
    const size_t size = problem->dtype == BN_DTYPE_FLOAT64   ? 8
                        : problem->dtype == BN_DTYPE_FLOAT32 ? 4
                                                             : 2;
    const int64_t count = elements_of(problem);
    return (bn_mutable_view){ zeros(is_there, count, size), is_there ? count : 0 };
}

static bn_mutable_view vector_of(const bn_problem *problem, bool is_there)
{
    const size_t size = problem->dtype == BN_DTYPE_FLOAT64 ? 8 : 4;
    const int64_t count = problem->sizes[1];
    return (bn_mutable_view){ zeros(is_there, count, size), is_there ? count : 0 };
}

static bn_view read_only(bn_mutable_view view)
{
    return (bn_view){ view.data, view.count };
}

static bn_mutable_float64_view float64s_of(const bn_problem *problem)
{
    return (bn_mutable_float64_view){ zeros(true, problem->sizes[1], 8), problem->sizes[1] };
}

/* All positions take part, as explaining a mask takes it. */
static bn_positions all_take_part(const bn_problem *problem, const bn_explain_args *args)
{
    bn_positions positions = BN_POSITIONS_INIT;
    const int64_t samples = problem->sizes[0], count = elements_of(problem) / problem->sizes[1];
    if (args->mask) {
        uint8_t *mask = zeros(true, count, 1);
        memset(mask, 1, (size_t)count);
        positions.mask = (bn_byte_view){ mask, count };
    }
    if (args->lengths) {
        int64_t *lengths = zeros(true, samples, sizeof *lengths);
        for (int64_t i = 0; i < samples; i++) lengths[i] = problem->sizes[2];
        positions.lengths = (bn_int64_view){ lengths, samples };
    }
    return positions;
}

zero_call zero_call_make(const bn_problem *problem, const bn_explain_args *args)
{
    const bool backward = args->operation >= BN_OPERATION_BACKWARD;
    const bool gated = backward && args->activation.kind != BN_ACTIVATION_NONE;
    const int64_t bytes = (elements_of(problem) + 7) / 8;
    uint8_t *bits = zeros(args->activation_mask, bytes, 1);
    const bn_mutable_byte_view mask = { bits, bits ? bytes : 0 };
    const bn_positions positions = all_take_part(problem, args);
    const bn_mutable_view input = tensor_of(problem, true),
                          residual = tensor_of(problem, args->residual);
    const bn_mutable_view output = tensor_of(problem, !backward || (gated && !bits));
    const bn_view mean = read_only(vector_of(problem, true)),
                  var = read_only(vector_of(problem, true));
    return (zero_call){
        .problem = *problem,
        .operation = args->operation,
        .training = { BN_FORWARD_TRAINING_ARGS_DEFAULTS, .input = read_only(input),
                      .output = output, .activation = args->activation,
                      .residual = read_only(residual), .activation_mask = mask,
                      .positions = positions },
        .inference = { BN_FORWARD_INFERENCE_ARGS_DEFAULTS, .input = read_only(input),
                       .output = output, .running_mean = mean, .running_var = var,
                       .activation = args->activation, .residual = read_only(residual),
                       .activation_mask = mask, .positions = positions },
        .backward = { BN_BACKWARD_ARGS_DEFAULTS,
                      .statistics = args->operation == BN_OPERATION_BACKWARD_FROZEN
                                        ? BN_STATISTICS_RUNNING
                                        : BN_STATISTICS_BATCH,
                      .input = read_only(input),
                      .grad_output = read_only(tensor_of(problem, backward)),
                      .grad_input = tensor_of(problem, backward && args->grad_input),
                      .grad_weight = vector_of(problem, args->grad_weight),
                      .grad_bias = vector_of(problem, args->grad_bias),
                      .saved = { .mean = float64s_of(problem), .invstd = float64s_of(problem) },
                      .running_mean = mean, .running_var = var, .activation = args->activation,
                      .activation_mask = { mask.data, mask.count },
                      .output = gated ? read_only(output) : (bn_view)BN_ABSENT,
                      .grad_residual = residual, .positions = positions },
    };
}

bn_status zero_call_run(zero_call *call)
{
    switch (call->operation) {
    case BN_OPERATION_FORWARD_TRAINING:
        return bn_forward_training(&call->problem, &call->training);
    case BN_OPERATION_FORWARD_INFERENCE:
        return bn_forward_inference(&call->problem, &call->inference);
    default:
        return bn_backward(&call->problem, &call->backward);
    }
}

const char *asked_text(const bn_problem *problem, const bn_explain_args *args)
{
    static char text[256];
    snprintf(text, sizeof text,
             "%s, operation %d, activation %d, residual %d, bits %d, mask %d, lengths %d, "
             "gradients %d%d%d",
             problem_text(problem), args->operation, args->activation.kind, args->residual,
             args->activation_mask, args->mask, args->lengths, args->grad_input, args->grad_weight,
             args->grad_bias);
    return text;
}
