/*
 * normalize.c — the stateless functions: your buffers, nothing kept in the library.
 *
 * Normalizes a batch of four small RGB images by its own statistics (training), collecting running
 * statistics on the way, then one more image by those (inference). Prints, per channel, mean and
 * standard deviation before and after. Build it with the Makefile or CMakeLists.txt beside it.
 */
#include <batchnorm.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { N = 4, C = 3, H = 8, W = 8, PIXELS = H * W, COUNT = N * C * PIXELS };

static void check(bn_status status)
{
    if (status != BN_STATUS_OK) {
        fprintf(stderr, "%s: %s\n", bn_status_name(status), bn_last_error_message());
        exit(EXIT_FAILURE);
    }
}

/* Images [n][c][h][w]: each channel a gradient with brightness and contrast of its own. */
static void make_images(float *images, int count)
{
    for (int n = 0; n < count; n++)
        for (int c = 0; c < C; c++)
            for (int p = 0; p < PIXELS; p++)
                images[(n * C + c) * PIXELS + p] =
                    (float)(40 * (c + 1) + (c + 1) * ((p * 7 + n * 13) % 32));
}

static void print_channels(const char *title, const float *images, int count)
{
    printf("%s\n", title);
    for (int c = 0; c < C; c++) {
        double sum = 0, squares = 0;
        for (int n = 0; n < count; n++)
            for (int p = 0; p < PIXELS; p++) {
                double value = images[(n * C + c) * PIXELS + p];
                sum += value;
                squares += value * value;
            }
        double mean = sum / (count * PIXELS);
        double deviation = sqrt(squares / (count * PIXELS) - mean * mean);
        printf("  channel %d: mean %8.3f, standard deviation %7.3f\n", c, mean, deviation);
    }
}

int main(void)
{
    static float images[COUNT], normalized[COUNT];
    make_images(images, N);
    print_channels("four images", images, N);

    /* Training: statistics of this batch. The running ones start as in a new network: 0 and 1. */
    float running_mean[C] = { 0, 0, 0 }, running_var[C] = { 1, 1, 1 };
    bn_problem batch = BN_PROBLEM_2D(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, N, C, H, W);
    bn_forward_training_args training = { BN_FORWARD_TRAINING_ARGS_DEFAULTS,
                                          .input = { images, COUNT },
                                          .output = { normalized, COUNT },
                                          .running_mean = { running_mean, C },
                                          .running_var = { running_var, C } };
    training.momentum = 1.0; /* one batch only: let the running statistics be that batch's */
    check(bn_forward_training(&batch, &training));
    print_channels("normalized by their own statistics", normalized, N);

    /* Inference: one image, by the running statistics, scaled and shifted, in place. */
    static float image[C * PIXELS];
    make_images(image, 1);
    const float weight[C] = { 2, 2, 2 }, bias[C] = { 10, 20, 30 };
    bn_problem one = BN_PROBLEM_2D(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 1, C, H, W);
    bn_forward_inference_args inference = { BN_FORWARD_INFERENCE_ARGS_DEFAULTS,
                                            .input = { image, C * PIXELS },
                                            .output = { image, C * PIXELS },
                                            .weight = { weight, C },
                                            .bias = { bias, C },
                                            .running_mean = { running_mean, C },
                                            .running_var = { running_var, C } };
    check(bn_forward_inference(&one, &inference));
    print_channels("one image by the running statistics, weight 2, bias 10, 20, 30", image, 1);
    return 0;
}
