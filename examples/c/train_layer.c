/*
 * train_layer.c — a layer: it keeps parameters, running statistics and mode.
 *
 * Trains weight and bias by gradient descent until the layer maps noisy signals of two channels (mean
 * 5 and 50) onto signals of given scale and shift; then saves the layer's state, makes a second layer
 * from it, and shows that both infer the same bits.
 */
#include <batchnorm.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 16, C = 2, L = 32, COUNT = N * C * L, STEPS = 60 };

static void check(bn_status status)
{
    if (status != BN_STATUS_OK) {
        fprintf(stderr, "%s: %s\n", bn_status_name(status), bn_last_error_message());
        exit(EXIT_FAILURE);
    }
}

/* The sum of four uniform numbers is close to normal: mean 0, variance 1. */
static float noise(void)
{
    float sum = 0;
    for (int i = 0; i < 4; i++) sum += (float)rand() / (float)RAND_MAX - 0.5f;
    return sum * 1.7320508f;
}

/* [n][c][l]: what the layer sees, and what it should make of it. */
static void make_batch(float *input, float *target)
{
    static const float mean[C] = { 5, 50 }, deviation[C] = { 2, 20 };
    static const float scale[C] = { 3, 0.5f }, shift[C] = { -1, 4 };
    for (int i = 0; i < COUNT; i++) {
        int c = i / L % C;
        float z = noise();
        input[i] = mean[c] + deviation[c] * z;
        target[i] = scale[c] * z + shift[c];
    }
}

int main(void)
{
    bn_layer_options options = BN_LAYER_OPTIONS_INIT;
    options.num_features = C;
    bn_layer *layer = NULL;
    check(bn_layer_create(&options, &layer));

    bn_problem problem = BN_PROBLEM_INIT;
    problem.rank = 3;
    problem.sizes[0] = N;
    problem.sizes[1] = C;
    problem.sizes[2] = L;

    static float input[COUNT], target[COUNT], output[COUNT], grad_output[COUNT];
    float *weight = bn_layer_weight_data(layer), *bias = bn_layer_bias_data(layer);
    const float rate = 0.2f;
    for (int step = 1; step <= STEPS; step++) {
        make_batch(input, target);
        check(bn_layer_forward(layer, &problem, input, COUNT, output, COUNT));

        double loss = 0; /* mean squared error, and its gradient */
        for (int i = 0; i < COUNT; i++) {
            float error = output[i] - target[i];
            loss += (double)error * error / COUNT;
            grad_output[i] = 2 * error / COUNT;
        }

        /* The first layer of a network needs no gradient of its input: NULL skips it. */
        float grad_weight[C], grad_bias[C];
        check(bn_layer_backward(layer, &problem, input, COUNT, grad_output, COUNT, NULL, 0,
                                grad_weight, C, grad_bias, C));
        for (int c = 0; c < C; c++) {
            weight[c] -= rate * grad_weight[c];
            bias[c] -= rate * grad_bias[c];
        }
        if (step == 1 || step % 20 == 0) printf("step %2d: loss %.5f\n", step, loss);
    }
    for (int c = 0; c < C; c++)
        printf("channel %d: weight %6.3f, bias %6.3f\n", c, (double)weight[c], (double)bias[c]);

    /* Everything that inference needs, as bytes: for a file, a message, a checkpoint. */
    int64_t size = 0;
    check(bn_layer_state_size(layer, &size));
    void *state = malloc((size_t)size);
    if (state == NULL) return EXIT_FAILURE;
    check(bn_layer_save_state(layer, state, size));
    bn_layer *restored = NULL;
    check(bn_layer_create_from_state(state, size, &restored));
    free(state);

    static float again[COUNT];
    check(bn_layer_set_training(layer, 0));
    check(bn_layer_set_training(restored, 0));
    check(bn_layer_forward(layer, &problem, input, COUNT, output, COUNT));
    check(bn_layer_forward(restored, &problem, input, COUNT, again, COUNT));
    int same = memcmp(output, again, sizeof output) == 0;
    printf("restored from %lld bytes: %s\n", (long long)size,
           same ? "the same output, bit for bit" : "another output");

    bn_layer_destroy(restored);
    bn_layer_destroy(layer);
    return same ? EXIT_SUCCESS : EXIT_FAILURE;
}
