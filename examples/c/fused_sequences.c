/*
 * fused_sequences.c — relu(batch norm(x) + residual) of padded sequences in bfloat16, forward and backward.
 *
 * Activation and residual cost no sweep of their own, and steps beyond a sequence's length take no part:
 * what stands there, NaN here, is in no statistics and no gradient.
 */
#include <batchnorm.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 4, C = 3, L = 50, COUNT = N * C * L };

static void check(bn_status status)
{
    if (status != BN_STATUS_OK) {
        fprintf(stderr, "%s: %s\n", bn_status_name(status), bn_last_error_message());
        exit(EXIT_FAILURE);
    }
}

/* bfloat16 is the upper half of a float32. Cutting the lower one off rounds towards zero, which will do here. */
static uint16_t bfloat16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)(bits >> 16);
}

static float float32(uint16_t half)
{
    const uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

int main(void)
{
    static const int64_t lengths[N] = { 50, 31, 12, 44 };
    static uint16_t input[COUNT], residual[COUNT], output[COUNT];
    static uint16_t grad_output[COUNT], grad_input[COUNT], grad_residual[COUNT];
    static uint8_t passed[(COUNT + 7) / 8];
    for (int i = 0; i < COUNT; i++) { /* [n][c][l] */
        const int step = i % L, sample = i / (C * L);
        input[i] = bfloat16(step < lengths[sample] ? 5 + 3 * sinf((float)i) : NAN);
        residual[i] = bfloat16(cosf((float)i));
        grad_output[i] = bfloat16(step < lengths[sample] ? 1 : NAN);
    }

    const bn_problem problem = {
        sizeof problem, BN_DTYPE_BFLOAT16, BN_LAYOUT_NCHW, 3, { N, C, L }
    };
    double mean[C], invstd[C]; /* for backward */
    bn_forward_training_args forward = { BN_FORWARD_TRAINING_ARGS_DEFAULTS,
                                         .input = { input, COUNT },
                                         .output = { output, COUNT },
                                         .saved = { .mean = { mean, C }, .invstd = { invstd, C } },
                                         .activation = BN_RELU,
                                         .residual = { residual, COUNT },
                                         .activation_mask = { passed, sizeof passed },
                                         .positions = { .lengths = { lengths, N } } };
    check(bn_forward_training(&problem, &forward));
    printf("%lld of %d values per channel take part\n", (long long)forward.values_per_channel,
           N * L);
    for (int c = 0; c < C; c++)
        printf("channel %d: mean %.3f, deviation %.3f\n", c, mean[c], 1 / invstd[c]);

    float grad_weight[C], grad_bias[C]; /* parameters and their gradients are float32 */
    bn_backward_args backward = { BN_BACKWARD_ARGS_DEFAULTS,
                                  .input = { input, COUNT },
                                  .grad_output = { grad_output, COUNT },
                                  .grad_input = { grad_input, COUNT },
                                  .grad_weight = { grad_weight, C },
                                  .grad_bias = { grad_bias, C },
                                  .saved = forward.saved, /* from here on the forward's */
                                  .activation = forward.activation,
                                  .activation_mask = { passed, sizeof passed },
                                  .grad_residual = { grad_residual, COUNT },
                                  .positions = forward.positions };
    check(bn_backward(&problem, &backward));
    for (int c = 0; c < C; c++)
        printf("channel %d: %g values passed the ReLU\n", c, (double)grad_bias[c]);

    int clean = 1;
    for (int i = 0; i < COUNT; i++)
        if (i % L >= lengths[i / (C * L)])
            clean &= output[i] == 0 && grad_input[i] == 0 && grad_residual[i] == 0;
        else
            clean &= !isnan(float32(output[i])) && !isnan(float32(grad_input[i]));
    printf("padding is 0, and nothing else has seen it: %s\n", clean ? "yes" : "no");
    return clean ? EXIT_SUCCESS : EXIT_FAILURE;
}
