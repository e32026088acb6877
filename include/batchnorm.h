/*
 * batchnorm.h — batch normalization on CPUs, forward and backward.
 *
 * The one public header of libbatchnorm. C11 and C++17. It is read from top to bottom:
 *
 *   1  INTRODUCTION     what is computed, and the words used
 *   2  A FIRST PROGRAM  twelve lines that normalize a batch of images
 *   3  STATUS           how every call tells what went wrong
 *   4  PROBLEM          shape, data type and memory layout; views of memory
 *   5  OPERATIONS       the stateless functions: your buffers, nothing kept
 *   6  MOMENTS          the same in two parts, for a batch that is not in one place
 *   7  LAYER            an object that keeps parameters, statistics and mode
 *   8  STATE            a layer's state as one checksummed block of bytes
 *   9  FOLDING          normalization as one affine map, or inside the layer before it
 *  10  MACHINE          threads, instruction sets, version
 *  11  EXPLAIN          how an operation would be done here, in numbers and in words
 *
 * ------------------------------------------------------------------------------------------
 * 1  INTRODUCTION
 * ------------------------------------------------------------------------------------------
 *
 * Batch normalization (Ioffe and Szegedy, 2015, arXiv:1502.03167) makes each channel of a batch
 * have mean 0 and variance 1, then scales and shifts it by learned parameters:
 *
 *     y = (x - mean) / sqrt(variance + epsilon) * weight + bias
 *
 * Mean and variance run over all M = N * S values of a channel: N is the batch, C the channels,
 * S the product of the spatial sizes (1 for a matrix, L, H*W or D*H*W). Training takes them
 * from the batch, inference from running averages collected in training. Epsilon stands inside
 * the square root; the batch variance in the formula is the biased one (sum / M). Names and
 * conventions are PyTorch's (torch.nn.BatchNorm1d/2d/3d) wherever frameworks differ.
 *
 * What the library promises:
 *
 *   - Accuracy: results are within the bounds of the accuracy contract below.
 *   - Reproducibility: the same input gives the same bits on any number of threads and with
 *     any instruction set. (Where the result is NaN, it is NaN; its sign and payload may differ.)
 *   - All or nothing: every argument is checked before anything is written. A call that fails
 *     has changed no output, no statistics and no counter (the one exception says so:
 *     BN_STATUS_NONFINITE).
 *   - Nothing behind your back: no printing, no exit, and no allocation that grows with N or S, but for
 *     two where they are asked for: lengths become a mask of N*L bytes, and a layer keeps of its last
 *     forward one bit a value if that had an activation, and one byte a position if it had a mask.
 *
 * Accuracy contract. What is said anywhere of accuracy is this. Moments and sums are float64, around a
 * value near the mean; of tensors that are not, up to eight terms are first added in float32, where none
 * overflows or vanishes. The error of a result is its distance from the formula's value, formed without
 * rounding from the same inputs. ulp(a, b, ...) is a unit in the last place, in the tensor's type, of the
 * largest of these sizes; x^ is the normalized value (x - mean) * invstd, and the residual, where there is
 * one, counts as bias does.
 *
 *     float32   output        3 ulp(weight, x^ * weight, bias, output)
 *               grad_input    4 ulp(its three terms, weight * invstd * rms of grad_output)
 *               grad_weight, grad_bias    8 * 2^-24 * (sum of the terms' sizes)
 *               saved_mean within 2^-22 deviations, saved_invstd within 2^-22 of itself
 *     bfloat16, float16       as float32, each output rounded once more
 *     float64   output        128 ulp(weight, x^ * weight, bias, output)
 *               grad_input    128 ulp(its three terms, weight * invstd * rms of grad_output)
 *               grad_weight, grad_bias    128 * 2^-53 * (sum of the terms' sizes)
 *               saved_mean + saved_mean_rest within 2^-46 deviations, saved_invstd within 2^-46 of itself
 *
 * In every type this holds wherever in its range values, parameters and epsilon lie: nothing overflows or
 * vanishes on the way to a result that does not. But float64 has no wider type for sums: there the squares of
 * deviations, and their products with grad_output, have to fit (deviations from 1e-154 to 1e150). Its
 * bounds are for the worst of all data, however many values a channel has, as no chain of additions is
 * long; of a million values that additions round alike, tests allow a quarter and an eighth of them.
 * Its gradients are those of a backward that is given saved_mean_rest.
 *
 * In every type a channel whose values are all the same gives exactly bias.
 *
 * Threads: stateless functions may be called from any number of threads at once on buffers that do
 * not overlap. A layer serves one thread at a time; different layers are independent. Error
 * messages belong to the thread that received the error. A call needs up to 256 KB of stack, on the
 * calling thread and on OpenMP's (OMP_STACKSIZE, by default megabytes). Which threads do the work can be
 * chosen: bn_threading.
 *
 * Ownership: tensors and parameter arrays are the caller's, always; the library keeps no pointer to
 * them after a call. A bn_layer is the library's, from bn_layer_create to bn_layer_destroy.
 *
 * Memory rules, for every pointer of every function: aligned to its element's size; a buffer
 * that is written overlaps no other buffer of the call, except where a function says that two may
 * be the very same memory ("in place").
 *
 * Structs: each begins with struct_size, its sizeof as the caller was compiled. Two macros set it, and the other
 * members that are not 0 by default: BN_..._INIT initializes a struct in C and C++; BN_..._DEFAULTS stands in front of
 * designated initializers in C, as in the program below. An assignment afterwards changes what either has set, for
 * compilers warn of a member that is initialized twice. Later versions of this header add members at the end, with 0
 * for "as before". A library takes structs of other versions: members that a shorter one does not reach count as
 * 0, and bytes of a longer one that the library does not know must be 0. struct_size is a multiple of 8, at
 * least the struct's BN_..._LEAST and at most 4096; else, and for unknown bytes that are not 0,
 * BN_STATUS_STRUCT_SIZE. Results are written as far as the struct reaches and not beyond. A struct that holds
 * results alone (bn_plan_info, bn_layer_get_options) needs struct_size set and nothing else; what the library
 * does not know of it becomes 0.
 *
 * ------------------------------------------------------------------------------------------
 * 2  A FIRST PROGRAM
 * ------------------------------------------------------------------------------------------
 *
 *     #include <batchnorm.h>
 *     #include <stdio.h>
 *
 *     int main(void) {
 *         float images[2 * 3 * 4 * 4], normalized[2 * 3 * 4 * 4];
 *         for (int i = 0; i < 96; i++) images[i] = (float)i;
 *
 *         bn_problem problem = BN_PROBLEM_2D(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 2, 3, 4, 4);
 *         bn_forward_training_args args = { BN_FORWARD_TRAINING_ARGS_DEFAULTS,
 *                                           .input = { images, 96 },
 *                                           .output = { normalized, 96 } };
 *         if (bn_forward_training(&problem, &args) != BN_STATUS_OK) {
 *             fprintf(stderr, "%s\n", bn_last_error_message());
 *             return 1;
 *         }
 *         printf("%.3f\n", normalized[0]);
 *     }
 *
 * Build: cc program.c $(pkg-config --cflags --libs batchnorm). README.md has the whole way, also from
 * where pkg-config and the loader do not look by themselves.
 */
#ifndef BATCHNORM_H
#define BATCHNORM_H

#include <stddef.h>
#include <stdint.h>

/* The version of this header; bn_version() tells that of the library. This is the one place. */
#define BN_VERSION_MAJOR 0
#define BN_VERSION_MINOR 1
#define BN_VERSION_PATCH 0

#if defined(__GNUC__)
#define BN_API __attribute__((visibility("default")))
#else
#define BN_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------
 * 3  STATUS
 * ------------------------------------------------------------------------------------------
 * Every function that can fail returns a bn_status: 0 for success, else one of the values below.
 * They are pinned and come in families with gaps; a program must expect values that it does not
 * know. The text for a person comes from bn_last_error_message().
 */
typedef int32_t bn_status;
enum {
    BN_STATUS_OK = 0,

    /* 1xx: the call itself */
    BN_STATUS_NULL_POINTER = 100,   /* a required pointer is NULL */
    BN_STATUS_STRUCT_SIZE = 101,    /* struct_size is none that this library takes, see section 1 */
    BN_STATUS_INVALID_OPTION = 102, /* an enum, flag or reserved member has an unknown value */
    BN_STATUS_EXCLUSIVE = 103,      /* two arguments were given of which only one may be */

    /* 2xx: shapes */
    BN_STATUS_RANK = 200,           /* rank is not 2, 3, 4 or 5 */
    BN_STATUS_NEGATIVE_SIZE = 201,  /* a size or count is negative */
    BN_STATUS_NO_CHANNELS = 202,    /* C is 0 */
    BN_STATUS_SIZE_OVERFLOW = 203,  /* the tensor's bytes do not fit in 63 bits */
    BN_STATUS_COUNT_MISMATCH = 204, /* a buffer has another number of elements than the shape */
    BN_STATUS_LENGTH = 205,         /* a sequence's length is negative or beyond L */

    /* 3xx: memory */
    BN_STATUS_MISALIGNED = 300,     /* a pointer is not aligned to its element's size */
    BN_STATUS_OVERLAP = 301,        /* a written buffer overlaps another one */
    BN_STATUS_OUT_OF_MEMORY = 302,  /* the library could not allocate its workspace */

    /* 4xx: numbers */
    BN_STATUS_EPSILON = 400,        /* epsilon is negative, infinite or NaN */
    BN_STATUS_MOMENTUM = 401,       /* momentum is infinite or NaN */
    BN_STATUS_ONE_VALUE = 402,      /* training on one value per channel, see bn_one_value */
    BN_STATUS_NONFINITE = 403,      /* NaN or infinity in the input or in running statistics, see bn_nonfinite */
    BN_STATUS_BATCH_COUNTER = 404,  /* the number of batches tracked is negative or at its end, or less than
                                       that of skipped ones */
    BN_STATUS_NEGATIVE_SLOPE = 405, /* a leaky ReLU's slope is negative, infinite or NaN */
    BN_STATUS_MOMENTS = 406,        /* moments or gradient sums with a count or m2 that none can have */
    BN_STATUS_NUMBER = 410,         /* folding: NaN, infinity, a negative variance or an overflow */

    /* 5xx: a layer's state */
    BN_STATUS_NO_RUNNING_STATISTICS = 500, /* the layer keeps none */
    BN_STATUS_NO_PARAMETER = 501,          /* the layer has no weight, or no bias */
    BN_STATUS_NO_FORWARD = 502,            /* backward, or a saved value, before any forward */
    BN_STATUS_LAYER_MISMATCH = 503,        /* channels, dtype or shape differ from the layer's; or what a
                                              recomputation is given from what the last forward was */

    /* 6xx: a layer's state as bytes */
    BN_STATUS_STATE_TRUNCATED = 600,       /* fewer bytes than the state says it has, or more */
    BN_STATUS_STATE_FOREIGN = 601,         /* not a state of this library */
    BN_STATUS_STATE_VERSION = 602,         /* written by a newer, incompatible library */
    BN_STATUS_STATE_CHECKSUM = 603,        /* damaged */
    BN_STATUS_STATE_INVALID = 604,         /* intact, but holds values no layer can have */
    BN_STATUS_BUFFER_TOO_SMALL = 605,      /* the caller's buffer cannot hold the state or text */

    /* 7xx: the process */
    BN_STATUS_NO_SHARED_RUNTIME = 700, /* there is no OpenMP runtime to share, see bn_threading */

    BN_STATUS_INTERNAL = 900               /* a defect of the library; please report it */
};

/* The name of a status, "BN_STATUS_OK" and so on; "BN_STATUS_UNKNOWN" for any other value.
 * The string is static. */
BN_API const char *bn_status_name(bn_status status);

/* What went wrong in the last call of this thread that failed, in one English sentence which
 * quotes actual and expected. Never NULL; "" before the first failure. A successful call leaves it as
 * it is. The string is the thread's own and lives until that thread's next failing call. */
BN_API const char *bn_last_error_message(void);

/* ------------------------------------------------------------------------------------------
 * 4  PROBLEM AND VIEWS
 * ------------------------------------------------------------------------------------------ */

/* The element type of tensors, and by it two types that the `void *` of this header point to:
 *   tensor type     the dtype itself: all of N*C*S elements (input, output, residual and their gradients)
 *   parameter type  float64 if the dtype is FLOAT64, else float32, also for BFLOAT16 and FLOAT16: all of C elements
 *                   (weight, bias, running statistics, and the gradients of weight and bias)
 * BFLOAT16 (the upper half of a float32) and FLOAT16 (IEEE 754 binary16) are computed with in float32:
 * sums are as wide as ever, and each output is rounded once, to nearest even, subnormals kept. */
typedef int32_t bn_dtype;
enum {
    BN_DTYPE_FLOAT32 = 1,
    BN_DTYPE_FLOAT64 = 2,
    BN_DTYPE_BFLOAT16 = 3,
    BN_DTYPE_FLOAT16 = 4
};

/* The order in memory, dense in both cases. NCHW: [n][c][spatial...]. NHWC: [n][spatial...][c], which
 * PyTorch calls channels_last. For rank 2 they are the same. */
typedef int32_t bn_layout;
enum { BN_LAYOUT_NCHW = 1, BN_LAYOUT_NHWC = 2 };

/*
 * Views: where the elements of an argument are, and how many. The bn_mutable_ ones are written. What a `void *`
 * points to, the member says: the tensor type or the parameter type. A count other than the shape's is an
 * error; { NULL, 0 } means "absent" where a member is marked optional.
 */
typedef struct bn_view {
    const void *data;
    int64_t count;
} bn_view;
typedef struct bn_mutable_view {
    void *data;
    int64_t count;
} bn_mutable_view;
typedef struct bn_byte_view {
    const uint8_t *data;
    int64_t count;
} bn_byte_view;
typedef struct bn_mutable_byte_view {
    uint8_t *data;
    int64_t count;
} bn_mutable_byte_view;
typedef struct bn_int64_view {
    const int64_t *data;
    int64_t count;
} bn_int64_view;
typedef struct bn_mutable_int64_view {
    int64_t *data;
    int64_t count;
} bn_mutable_int64_view;
typedef struct bn_mutable_float64_view {
    double *data;
    int64_t count;
} bn_mutable_float64_view;
#define BN_ABSENT { NULL, 0 }

/* The shape of the input and of every other tensor of a call.
 *
 * sizes are in logical order whatever the layout: N, C, then up to three spatial sizes:
 * (N,C), (N,C,L), (N,C,H,W), (N,C,D,H,W). Those at and beyond `rank` are ignored. N and the spatial
 * sizes may be 0 (an empty batch: success, nothing is written but zero gradients); C may not. */
typedef struct bn_problem {
    uint32_t struct_size; /* sizeof(bn_problem) */
    bn_dtype dtype;
    bn_layout layout;
    int32_t rank; /* 2 to 5 */
    int64_t sizes[5];
} bn_problem;

enum { BN_PROBLEM_LEAST = offsetof(bn_problem, sizes) + 5 * sizeof(int64_t) };

/* A number of any integer type as a member, for the macros below: C++ refuses size_t in braces. */
#ifdef __cplusplus
#define BN_AS(type, number) static_cast<type>(number)
#else
#define BN_AS(type, number) ((type)(number))
#endif

#define BN_PROBLEM_INIT \
    { sizeof(bn_problem), BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 0, { 0, 0, 0, 0, 0 } }
/* In one line: a matrix (N,C); (N,C,L); (N,C,H,W); (N,C,D,H,W). Sizes may be of any integer type. */
#define BN_PROBLEM_MATRIX(dtype, n, c)                                                 \
    { sizeof(bn_problem), BN_AS(bn_dtype, dtype), BN_LAYOUT_NCHW, 2,                   \
      { BN_AS(int64_t, n), BN_AS(int64_t, c), 0, 0, 0 } }
#define BN_PROBLEM_1D(dtype, layout, n, c, l)                                          \
    { sizeof(bn_problem), BN_AS(bn_dtype, dtype), BN_AS(bn_layout, layout), 3,         \
      { BN_AS(int64_t, n), BN_AS(int64_t, c), BN_AS(int64_t, l), 0, 0 } }
#define BN_PROBLEM_2D(dtype, layout, n, c, h, w)                                       \
    { sizeof(bn_problem), BN_AS(bn_dtype, dtype), BN_AS(bn_layout, layout), 4,         \
      { BN_AS(int64_t, n), BN_AS(int64_t, c), BN_AS(int64_t, h), BN_AS(int64_t, w), 0 } }
#define BN_PROBLEM_3D(dtype, layout, n, c, d, h, w)                                    \
    { sizeof(bn_problem), BN_AS(bn_dtype, dtype), BN_AS(bn_layout, layout), 5,         \
      { BN_AS(int64_t, n), BN_AS(int64_t, c), BN_AS(int64_t, d), BN_AS(int64_t, h),    \
        BN_AS(int64_t, w) } }

/* ------------------------------------------------------------------------------------------
 * 5  OPERATIONS
 * ------------------------------------------------------------------------------------------
 * Stateless: everything that a call reads or writes is in its arguments.
 */

/* How running statistics take in a batch.
 * EXPONENTIAL: new = (1 - momentum) * old + momentum * batch (PyTorch's direction of momentum;
 * Keras, Flax and ONNX call 1 - momentum "momentum"). CUMULATIVE: momentum is 1/k at the k-th batch that
 * the statistic takes in, so that the result is the plain mean over these (PyTorch's momentum=None);
 * without skipped_batches, at the k-th that is counted.
 *
 * With momentum 1, as at the first batch if CUMULATIVE, the new value is the batch's, whatever the old one
 * was. Otherwise an old value that is NaN or infinite stays as it is, for no average mends it:
 * args.nonfinite_running_channels tells how many channels have one. Mean and variance each go by
 * themselves.
 *
 * Not every statistic takes in every batch that is counted: NaN and infinity leave a channel's alone (see
 * bn_nonfinite), one value per channel the variances (see bn_one_value), and what is NaN or infinite itself
 * stays. args.skipped_batches, where it is given, keeps count of that. */
typedef int32_t bn_averaging;
enum { BN_AVERAGING_EXPONENTIAL = 0, BN_AVERAGING_CUMULATIVE = 1 };

/* Which batch variance enters running_var: unbiased, sum / (M - 1) (PyTorch, cuDNN), or biased, sum / M
 * (ONNX, Keras 3, Flax). The normalization itself always uses the biased one. */
typedef int32_t bn_variance;
enum { BN_VARIANCE_UNBIASED = 0, BN_VARIANCE_BIASED = 1 };

/* What training does with one value per channel (M = 1), whose variance says nothing.
 * ERROR: BN_STATUS_ONE_VALUE, as PyTorch. USE_RUNNING: normalize by the running statistics, which stay
 * as they are. ALLOW: y = bias; running_mean is updated, running_var is not. */
typedef int32_t bn_one_value;
enum { BN_ONE_VALUE_ERROR = 0, BN_ONE_VALUE_USE_RUNNING = 1, BN_ONE_VALUE_ALLOW = 2 };

/* What training does with NaN or infinity in the input. In either case the outputs of such a channel are
 * NaN (0, or the input, where masked: masked values themselves do not count), its running statistics keep
 * their old value, and all other channels are untouched, to the bit. Float64 values whose squares overflow
 * count as well; and so does a batch that would take running_mean or running_var beyond the range of its
 * type, as a variance of 1e40 does in float32: the output is right then, and both keep their old value.
 * REPORT: success; args.nonfinite_channels tells how many. ERROR: BN_STATUS_NONFINITE, returned after
 * all of that has been done, so that outputs and the other channels' statistics are valid; also where
 * args.nonfinite_running_channels is not 0. The message tells which it was. */
typedef int32_t bn_nonfinite;
enum { BN_NONFINITE_REPORT = 0, BN_NONFINITE_ERROR = 1 };

/* Which statistics normalized the output, and so which backward belongs to it. */
typedef int32_t bn_statistics;
enum { BN_STATISTICS_BATCH = 0, BN_STATISTICS_RUNNING = 1 };

/*
 * What is done to a value v after batch normalization, and after the residual if there is one. NaN stays NaN.
 *
 *     kind          output                      members            backward needs
 *     NONE          v                           -                  nothing
 *     RELU          v <= 0 ? 0 : v              -                  activation_mask or output
 *     LEAKY_RELU    v <= 0 ? slope * v : v      slope              activation_mask or output
 *
 * slope is at least 0 and finite, also in float32 unless the dtype is float64. Members that a kind does not name
 * must be 0. A struct of zeros is no activation.
 */
typedef int32_t bn_activation_kind;
enum { BN_ACTIVATION_NONE = 0, BN_ACTIVATION_RELU = 1, BN_ACTIVATION_LEAKY_RELU = 2 };

typedef struct bn_activation {
    bn_activation_kind kind;
    int32_t reserved; /* 0 */
    double slope;
    double limit; /* 0: no kind has one yet */
} bn_activation;
/* As initializers: bn_activation a = BN_RELU; or .activation = BN_LEAKY_RELU(0.01) */
#define BN_RELU { BN_ACTIVATION_RELU, 0, 0, 0 }
#define BN_LEAKY_RELU(slope) { BN_ACTIVATION_LEAKY_RELU, 0, BN_AS(double, slope), 0 }

/* What stands at masked positions of an output, and in backward of grad_input.
 * ZERO: 0. PASS: the input as it is; in backward grad_output as it is. */
typedef int32_t bn_masked;
enum { BN_MASKED_ZERO = 0, BN_MASKED_PASS = 1 };

/* Which positions (n, spatial...) of a tensor take part. Both optional, and not together: without, all do. */
typedef struct bn_positions {
    bn_byte_view mask; /* N*S bytes in the order (n, spatial...), whatever the layout; 0: masked */
    bn_int64_view lengths; /* N; for sequences (rank 3: (N,C,L)): how many of a sample's L steps take part */
    bn_masked masked;
    int32_t reserved; /* 0 */
} bn_positions;

/* What a training forward keeps for its backward: `backward.saved = forward.saved`. C elements each, written by the
 * forward as far as they are given, and read by all others. float64 whatever the dtype, because a mean in float32
 * may be off by more than the deviation. */
typedef struct bn_saved {
    bn_mutable_float64_view mean;
    bn_mutable_float64_view invstd;
    /* What mean lacks of the mean, which is the sum of the two that is not carried out. float64 gradients need it
     * where the mean is large beside the deviation; those of other types have no use for it. Always optional. */
    bn_mutable_float64_view mean_rest;
} bn_saved;
#define BN_SAVED_INIT { BN_ABSENT, BN_ABSENT, BN_ABSENT }
#define BN_POSITIONS_INIT { BN_ABSENT, BN_ABSENT, BN_MASKED_ZERO, 0 }
#define BN_ACTIVATION_INIT { BN_ACTIVATION_NONE, 0, 0, 0 }

/*
 * Epilogue. The forward functions compute
 *
 *     output = activation(batch normalization of input + residual)
 *
 * with a residual and an activation each optional, in the one sweep over memory that batch
 * normalization takes anyway. An activation's backward must know where it let pass: either from
 * activation_mask, which the forward writes on request, one bit a value: bit i % 8 (1 << i % 8) of byte
 * i / 8 tells whether output[i] is not <= 0, in the order of memory; or from the output itself. Follows
 * cuDNN's CUDNN_BATCHNORM_OPS_BN_ADD_ACTIVATION and oneDNN's fuse_norm_add_relu.
 *
 * Positions. Those that are masked take no part: not in the moments, whose M counts the others, nor in any
 * gradient, whatever stands there, NaN included. Follows Keras' mask= (True: takes part), but counts in M what takes
 * part, in every sample alike. If all positions are masked, a call succeeds, writes the output as bn_masked says, and
 * neither statistics, saved values nor counters; grad_weight and grad_bias are 0.
 */

/* Arguments of bn_forward_training. */
typedef struct bn_forward_training_args {
    uint32_t struct_size; /* sizeof(bn_forward_training_args) */
    bn_averaging averaging;
    bn_variance running_variance;
    bn_one_value one_value;
    bn_nonfinite nonfinite;
    int32_t reserved; /* 0 */
    double epsilon;   /* >= 0; with epsilon 0 a channel of variance 0 gets invstd 0, so y = bias */
    double momentum;  /* finite; used if averaging is EXPONENTIAL and running_mean is given */

    bn_view input; /* N*C*S of the tensor type, in */
    /* N*C*S of the tensor type, out; may be `input` itself (in place), but backward needs the input */
    bn_mutable_view output;
    bn_view weight; /* C of the parameter type, in, optional: absent means 1 */
    bn_view bias;   /* C of the parameter type, in, optional: absent means 0 */

    bn_mutable_view running_mean; /* C of the parameter type, in and out, optional; both or neither */
    bn_mutable_view running_var;  /* C of the parameter type, in and out, optional */
    int64_t *num_batches_tracked; /* 1, in and out, optional (required if CUMULATIVE); + 1 when the
                                     running statistics take in a batch */
    bn_mutable_int64_view skipped_batches; /* 2*C, in and out, optional: of each channel, how many of these batches
                                              its running mean has not taken in, and then of each, how many its
                                              running variance; 0 at first. Absent: CUMULATIVE counts all as taken
                                              in, so that the share of a skipped one stays with the old value */
    bn_saved saved; /* out, optional, each of the three */

    /* Epilogue, all optional. */
    bn_activation activation;
    bn_view residual; /* N*C*S of the tensor type, in; may be `output` (in place) */
    bn_mutable_byte_view activation_mask; /* (N*C*S + 7) / 8, out */
    bn_positions positions;

    int64_t nonfinite_channels; /* out: channels of this batch with NaN or infinity, see bn_nonfinite */
    int64_t nonfinite_running_channels; /* out: channels whose running mean or variance was NaN or infinite
                                           and has stayed so, see bn_averaging */
    int64_t values_per_channel;    /* out: M, without masked ones */
    bn_statistics statistics_used; /* out: BATCH, or RUNNING by the one-value policy (saved then
                                      holds the running mean and its invstd) */
    int32_t reserved_end; /* 0 */
} bn_forward_training_args;
enum { BN_FORWARD_TRAINING_ARGS_LEAST = offsetof(bn_forward_training_args, weight) };

#define BN_FORWARD_TRAINING_ARGS_DEFAULTS \
    .struct_size = sizeof(bn_forward_training_args), .epsilon = 1e-5, .momentum = 0.1
#define BN_FORWARD_TRAINING_ARGS_INIT                                                         \
    { sizeof(bn_forward_training_args), BN_AVERAGING_EXPONENTIAL, BN_VARIANCE_UNBIASED,       \
      BN_ONE_VALUE_ERROR, BN_NONFINITE_REPORT, 0, 1e-5, 0.1,                                  \
      BN_ABSENT, BN_ABSENT, BN_ABSENT, BN_ABSENT, BN_ABSENT, BN_ABSENT, NULL, BN_ABSENT,      \
      BN_SAVED_INIT, BN_ACTIVATION_INIT, BN_ABSENT, BN_ABSENT, BN_POSITIONS_INIT,             \
      0, 0, 0, BN_STATISTICS_BATCH, 0 }

/* Forward in training: normalizes by the statistics of this batch, saves what backward needs and
 * takes the batch into the running statistics.
 *
 * An empty batch (N or S is 0) succeeds and writes neither statistics, saved values nor counters.
 * Errors: all of 1xx to 4xx. Follows torch.nn.functional.batch_norm(training=True). */
BN_API bn_status bn_forward_training(const bn_problem *problem, bn_forward_training_args *args);

/* Arguments of bn_forward_inference. */
typedef struct bn_forward_inference_args {
    uint32_t struct_size; /* sizeof(bn_forward_inference_args) */
    int32_t reserved;     /* 0 */
    double epsilon;

    bn_view input;          /* N*C*S of the tensor type, in */
    bn_mutable_view output; /* N*C*S of the tensor type, out; may be `input` itself (in place) */
    bn_view weight;         /* C of the parameter type, in, optional: absent means 1 */
    bn_view bias;           /* C of the parameter type, in, optional: absent means 0 */
    bn_view running_mean;   /* C of the parameter type, in */
    bn_view running_var;    /* C of the parameter type, in */

    /* Epilogue and positions: as in bn_forward_training_args. */
    bn_activation activation;
    bn_view residual;
    bn_mutable_byte_view activation_mask;
    bn_positions positions;
} bn_forward_inference_args;
enum { BN_FORWARD_INFERENCE_ARGS_LEAST = offsetof(bn_forward_inference_args, weight) };

#define BN_FORWARD_INFERENCE_ARGS_DEFAULTS \
    .struct_size = sizeof(bn_forward_inference_args), .epsilon = 1e-5
#define BN_FORWARD_INFERENCE_ARGS_INIT                                                        \
    { sizeof(bn_forward_inference_args), 0, 1e-5,                                             \
      BN_ABSENT, BN_ABSENT, BN_ABSENT, BN_ABSENT, BN_ABSENT, BN_ABSENT,                       \
      BN_ACTIVATION_INIT, BN_ABSENT, BN_ABSENT, BN_POSITIONS_INIT }

/* Forward in inference: y = (x - running_mean) / sqrt(running_var + epsilon) * weight + bias.
 * Errors: 1xx to 3xx, BN_STATUS_EPSILON, BN_STATUS_NEGATIVE_SLOPE.
 * Follows torch.nn.functional.batch_norm(training=False). */
BN_API bn_status bn_forward_inference(const bn_problem *problem,
                                      const bn_forward_inference_args *args);

/* Arguments of bn_backward. */
typedef struct bn_backward_args {
    uint32_t struct_size;     /* sizeof(bn_backward_args) */
    bn_statistics statistics; /* BATCH: the forward was training. RUNNING: statistics are constants
                                 ("frozen": inference, or fine-tuning) */
    double epsilon;           /* used if RUNNING; must then be the forward's */

    bn_view input;       /* N*C*S of the tensor type, in: the forward's input */
    bn_view grad_output; /* N*C*S of the tensor type, in */
    /* N*C*S of the tensor type, out, optional; may be grad_output or input itself (in place) */
    bn_mutable_view grad_input;
    bn_mutable_view grad_weight; /* C of the parameter type, out, optional */
    bn_mutable_view grad_bias;   /* C of the parameter type, out, optional */
    bn_view weight;              /* C of the parameter type, in, optional: absent means 1 */

    bn_saved saved;       /* in; required if BATCH, but for mean_rest (absent means 0): what the forward wrote */
    bn_view running_mean; /* C of the parameter type, in; required if RUNNING, as they were in the forward */
    bn_view running_var;  /* C of the parameter type, in; required if RUNNING */

    /* Epilogue and positions, all optional: the forward's. */
    bn_activation activation;
    /* Where the activation let pass: one of these two, or both, of which the mask is used. Ignored if there is
     * no activation. */
    bn_byte_view activation_mask; /* (N*C*S + 7) / 8, in: what the forward wrote */
    bn_view output;               /* N*C*S of the tensor type, in: the forward's output */
    bn_mutable_view grad_residual; /* N*C*S of the tensor type, out; may be grad_output (in place) */
    bn_positions positions;
} bn_backward_args;
enum { BN_BACKWARD_ARGS_LEAST = offsetof(bn_backward_args, grad_input) };

#define BN_BACKWARD_ARGS_DEFAULTS .struct_size = sizeof(bn_backward_args), .epsilon = 1e-5
#define BN_BACKWARD_ARGS_INIT                                                                 \
    { sizeof(bn_backward_args), BN_STATISTICS_BATCH, 1e-5,                                    \
      BN_ABSENT, BN_ABSENT, BN_ABSENT, BN_ABSENT, BN_ABSENT, BN_ABSENT,                       \
      BN_SAVED_INIT, BN_ABSENT, BN_ABSENT,                                                    \
      BN_ACTIVATION_INIT, BN_ABSENT, BN_ABSENT, BN_ABSENT, BN_POSITIONS_INIT }

/* Backward: the gradients of a loss with respect to input, weight and bias, each of them skipped
 * where its pointer is NULL. With c = input - mean, r = invstd, S1 = sum(grad_output),
 * S2 = sum(grad_output * c), sums over the M values of the channel:
 *
 *     grad_bias   = S1
 *     grad_weight = S2 * r
 *     grad_input  = weight * r * (grad_output - S1/M - c * r*r * S2/M)    if BATCH
 *     grad_input  = weight * r * grad_output                              if RUNNING
 *
 * With an activation, grad_output stands for grad_output where that let pass, and its slope (ReLU: 0)
 * times it elsewhere; grad_residual is just that. With masks, sums and M leave masked positions out, grad_residual is 0
 * there and grad_input as bn_masked says.
 *
 * Gradients are written, not added. An empty batch gives grad_weight = grad_bias = 0. Members that the
 * chosen statistics do not need are ignored. Errors: 1xx to 3xx, BN_STATUS_EPSILON, BN_STATUS_NEGATIVE_SLOPE.
 * Follows torch.ops.aten.native_batch_norm_backward. */
BN_API bn_status bn_backward(const bn_problem *problem, const bn_backward_args *args);

/* ------------------------------------------------------------------------------------------
 * 6  MOMENTS
 * ------------------------------------------------------------------------------------------
 * The operations above in two parts, one that reduces and one that applies, for a batch that is not in one
 * place: parts of it that come one after the other (gradient accumulation) or lie on several devices
 * (synchronized batch normalization), statistics that are to be kept (a second forward in activation
 * checkpointing) or collected over many batches. What PyTorch has for this, on GPUs alone, are
 * torch.batch_norm_stats, batch_norm_gather_stats_with_counts, batch_norm_elemt, batch_norm_backward_reduce and
 * batch_norm_backward_elemt.
 *
 *     each part:  bn_moments_compute                   each part:  bn_backward_reduce
 *     once:       bn_moments_merge                     once:       add the sums up
 *     each part:  bn_normalize                         each part:  bn_backward_apply
 *
 * Bits. With a batch that is whole, the two write the same bits as bn_forward_training and bn_backward.
 * With several, they do if the parts are the pieces that the whole batch would be cut into, merged (and
 * added) in ascending order, starting from the first: let r be bn_explain's piece_rows of the whole
 * batch; each part but the last has r rows (N of NCHW, N*S of NHWC), the last one the rest, the whole's
 * piece_values is the length of a row (S of NCHW, 1 of NHWC), and bn_explain's piece_rows of each part is
 * all of its rows. Otherwise they are within the bounds of section 1, and the same on any number of
 * threads and with any instruction set.
 *
 * Each of the two reads its part of the batch once: where a batch is in one place, the whole operations are
 * faster, for they find the input in the cache the second time.
 */

/* Moments of each channel: of how many values, their mean, and the sum of their squared distances from
 * it. The mean is mean + mean_rest, a sum that is not carried out: a float64 mean alone would cost float64
 * tensors digits where it is large beside the deviation. The arrays are the caller's. */
typedef struct bn_moments {
    uint32_t struct_size; /* sizeof(bn_moments) */
    int32_t reserved;     /* 0 */
    int64_t channels;     /* C: how many elements each array has */
    int64_t count;        /* values per channel, the same for all; 0: none, the arrays say nothing */
    double *mean;         /* C */
    double *mean_rest;    /* C */
    double *m2;           /* C: sum((x - mean)^2), not negative; NaN if a value is NaN or infinite */
} bn_moments;
enum { BN_MOMENTS_LEAST = offsetof(bn_moments, m2) + sizeof(double *) };

#define BN_MOMENTS_INIT { sizeof(bn_moments), 0, 0, 0, NULL, NULL, NULL }

/* The moments of a tensor: writes count and arrays of `moments`, whose channels and pointers are set. What
 * count and arrays said before does not matter. NaN or infinity in a channel makes that channel's m2, and
 * as a rule its mean, NaN or infinite, and is no error. Of an empty batch: count 0 and zeros.
 * input: N*C*S of the tensor type. positions: optional (NULL: all take part); masked ones are not counted, and of a
 * tensor that is masked as a whole count is 0; its member `masked` must be valid, and says nothing here.
 * Errors: 1xx to 3xx. */
BN_API bn_status bn_moments_compute(const bn_problem *problem, const void *input,
                                    int64_t input_count, const bn_positions *positions,
                                    bn_moments *moments);

/* Takes `other` into `moments`: afterwards these are the moments of all values of both. Which one is
 * first, and in which order more follow, matters for the last bits. With count 0, one is as if it were
 * not there. The arrays of the two do not overlap. Errors: 1xx to 3xx, BN_STATUS_MOMENTS.
 * Follows Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
 * variances", 1979. */
BN_API bn_status bn_moments_merge(bn_moments *moments, const bn_moments *other);

/* Writes what the moments say: variance, biased (m2 / count) or unbiased (m2 / (count - 1)), and invstd,
 * 1 / sqrt(biased variance + epsilon), as bn_forward_training saves it. Both are NaN in channels with NaN
 * or infinity. variance, invstd: C, out, optional. BN_STATUS_MOMENTS if the count is 0, or 1 for an
 * unbiased variance. Other errors: 1xx to 3xx, BN_STATUS_EPSILON. */
BN_API bn_status bn_moments_statistics(const bn_moments *moments, double epsilon, bn_variance kind,
                                       double *variance, int64_t variance_count, double *invstd,
                                       int64_t invstd_count);

/* bn_forward_training, with these moments in place of those of the input, which is read once only. All
 * of `args` means what it means there, with the moments' count for M: running statistics are updated (by
 * every part's call; only a call with all of them NULL leaves them alone), mean and invstd saved,
 * policies obeyed.
 *
 * Where the same forward is run twice (activation checkpointing), keep the moments: with running_mean,
 * running_var and num_batches_tracked NULL, the second one gives the same bits and updates nothing.
 * An empty batch (N or S is 0) is a part like any other: what is kept per channel is written. So
 * a problem with N = 0 takes moments into running statistics without normalizing anything. That is how
 * running statistics are recalibrated ("PreciseBN", Wu and Johnson 2021, arXiv:2105.07576) from the data
 * of many batches: exactly, by merging the moments of all and momentum 1; or as fvcore's
 * update_bn_stats does, by the plain mean of each batch's statistics, with BN_AVERAGING_CUMULATIVE and all
 * counters at 0, a call for each batch. Exactly:
 *
 *     bn_moments all = BN_MOMENTS_INIT, own = BN_MOMENTS_INIT;    and arrays of C elements for both
 *     for each batch:
 *         bn_moments_compute(&problem, batch, batch_count, NULL, &own);
 *         bn_moments_merge(&all, &own);                           all.count is 0 at first
 *     bn_forward_training_args args = BN_FORWARD_TRAINING_ARGS_INIT;
 *     args.momentum = 1;                                          and running_mean, running_var
 *     problem.sizes[0] = 0;
 *     bn_normalize(&problem, &all, &args);
 *
 * BN_STATUS_MOMENTS if count is negative, or 0 although values take part, or an m2 is negative. Other
 * errors: as bn_forward_training. */
BN_API bn_status bn_normalize(const bn_problem *problem, const bn_moments *moments,
                              bn_forward_training_args *args);

/* The forward once more from what a forward saved: y = (x - saved.mean) * saved.invstd * weight + bias.
 * Nothing but the output is written. In args, running_mean, running_var and epsilon are ignored.
 *
 * With the forward's saved.mean_rest, the output has its bits. Without, it may differ from it by
 * d = |mean| * 2^-53 * invstd * |weight|, and by a rounding in each of the two: d + 2u * (|y| + |bias| + d +
 * u * 2^53 * d), with u = 2^-24 in float32 and 2^-53 in float64. In float32 d is less than one rounding of
 * weight as long as |mean| is below 2^29 deviations.
 * Errors: 1xx to 3xx, BN_STATUS_NEGATIVE_SLOPE. */
BN_API bn_status bn_normalize_saved(const bn_problem *problem, const bn_saved *saved,
                                    const bn_forward_inference_args *args);

/* What the backward of a batch needs of all its values, per channel. Those of several parts add up,
 * member by member: a loop here, one all-reduce among devices. The arrays are the caller's. */
typedef struct bn_gradient_sums {
    uint32_t struct_size; /* sizeof(bn_gradient_sums) */
    int32_t reserved;     /* 0 */
    int64_t channels;     /* C: how many elements each array has */
    int64_t count;        /* values per channel, the same for all */
    double *sum_dy;       /* C: sum(grad_output) */
    double *sum_dy_xmu;   /* C: sum(grad_output * (input - mean)) */
} bn_gradient_sums;
enum { BN_GRADIENT_SUMS_LEAST = offsetof(bn_gradient_sums, sum_dy_xmu) + sizeof(double *) };

#define BN_GRADIENT_SUMS_INIT { sizeof(bn_gradient_sums), 0, 0, 0, NULL, NULL }

/* The first part of bn_backward, which reduces: writes count and arrays of `sums`, whose channels and pointers are set.
 * Of args it takes input, grad_output, statistics and, as these say, the mean: saved.mean and its rest of
 * the whole batch, or running_mean; and activation and positions with what belongs to them. All else is ignored. Of an
 * empty batch: count 0 and zeros. Errors: 1xx to 3xx, BN_STATUS_NEGATIVE_SLOPE. */
BN_API bn_status bn_backward_reduce(const bn_problem *problem, const bn_backward_args *args,
                                    bn_gradient_sums *sums);

/* The second part, which applies: bn_backward with these sums, of the whole batch, in place of the tensors' own, and
 * their count for M. grad_weight and grad_bias come from the sums: where each device's are summed by
 * others (torch's DistributedDataParallel), call it once with the device's own sums for them and once with
 * the total for grad_input. An empty batch (N or S is 0) is a part like any other.
 * BN_STATUS_MOMENTS if count is negative, or 0 although values take part. Other errors: as
 * bn_backward. */
BN_API bn_status bn_backward_apply(const bn_problem *problem, const bn_gradient_sums *sums,
                                   const bn_backward_args *args);

/* ------------------------------------------------------------------------------------------
 * 7  LAYER
 * ------------------------------------------------------------------------------------------
 * A layer owns weight, bias, running statistics and batch counter, and remembers of its last forward
 * what backward needs. It calls the functions above and adds nothing to their arithmetic.
 * It follows torch.nn.BatchNorm2d: a new layer is in training mode, weight is 1, bias 0, running_mean 0,
 * running_var 1, and the counter 0. Once its buffers have grown to a problem's size, a layer's calls
 * allocate nothing.
 *
 * Not thread-safe: one thread at a time per layer. Every `layer` must come from bn_layer_create or
 * bn_layer_create_from_state; NULL gives BN_STATUS_NULL_POINTER.
 */
typedef struct bn_layer bn_layer;

typedef struct bn_layer_options {
    uint32_t struct_size;       /* sizeof(bn_layer_options) */
    bn_dtype dtype;             /* of tensors; parameters and statistics have its parameter type */
    int64_t num_features;       /* C >= 1 */
    double epsilon;             /* >= 0 */
    double momentum;            /* finite; ignored if CUMULATIVE */
    bn_averaging averaging;
    bn_variance running_variance;
    bn_one_value one_value;
    bn_nonfinite nonfinite;
    int32_t has_weight;             /* 0 or 1 */
    int32_t has_bias;               /* 0 or 1 */
    int32_t track_running_stats;    /* 0 or 1; if 0, evaluation uses the batch's statistics too */
    int32_t reserved;               /* 0 */
} bn_layer_options;
enum { BN_LAYER_OPTIONS_LEAST = offsetof(bn_layer_options, reserved) + sizeof(int32_t) };

#define BN_LAYER_OPTIONS_DEFAULTS                                                             \
    .struct_size = sizeof(bn_layer_options), .dtype = BN_DTYPE_FLOAT32, .epsilon = 1e-5,      \
    .momentum = 0.1, .has_weight = 1, .has_bias = 1, .track_running_stats = 1
#define BN_LAYER_OPTIONS_INIT                                                                 \
    { sizeof(bn_layer_options), BN_DTYPE_FLOAT32, 0, 1e-5, 0.1, BN_AVERAGING_EXPONENTIAL,     \
      BN_VARIANCE_UNBIASED, BN_ONE_VALUE_ERROR, BN_NONFINITE_REPORT, 1, 1, 1, 0 }

/* Makes a layer; *layer is set only on success. Free it with bn_layer_destroy. */
BN_API bn_status bn_layer_create(const bn_layer_options *options, bn_layer **layer);

/* Frees a layer. NULL is allowed and does nothing. */
BN_API void bn_layer_destroy(bn_layer *layer);

/* Writes the layer's options: those that it was made with, or that were set since. `options->struct_size` must be set. */
BN_API bn_status bn_layer_get_options(const bn_layer *layer, bn_layer_options *options);

/* Sets what is added to the variance, and how running statistics take in a batch (momentum: ignored if
 * CUMULATIVE), from the next forward on; bn_layer_get_options tells them. Backward and BN_PASS_RECOMPUTE go by
 * what the last forward used. BN_STATUS_EPSILON, BN_STATUS_MOMENTUM, BN_STATUS_INVALID_OPTION. */
BN_API bn_status bn_layer_set_epsilon(bn_layer *layer, double epsilon);
BN_API bn_status bn_layer_set_momentum(bn_layer *layer, double momentum, bn_averaging averaging);

/* Chooses training (1) or evaluation (0), as module.train() and module.eval(). */
BN_API bn_status bn_layer_set_training(bn_layer *layer, int32_t training);
BN_API bn_status bn_layer_get_training(const bn_layer *layer, int32_t *training);

/* Forward in the layer's mode. input and output: N*C*S of the tensor type; they may be the same
 * memory. In evaluation a layer without running statistics uses the batch's. With more than that:
 * bn_layer_forward_with. */
BN_API bn_status bn_layer_forward(bn_layer *layer, const bn_problem *problem,
                                  const void *input, int64_t input_count,
                                  void *output, int64_t output_count);

/* Backward of the layer's last forward, with the statistics which that one used; may be called more
 * than once. The problem must be that forward's (BN_STATUS_LAYER_MISMATCH otherwise), input its input.
 * input, grad_output, grad_input: N*C*S of the tensor type. grad_weight, grad_bias: C of the parameter type. All
 * three gradients are optional, and written, not added (see bn_backward). */
BN_API bn_status bn_layer_backward(bn_layer *layer, const bn_problem *problem,
                                   const void *input, int64_t input_count,
                                   const void *grad_output, int64_t grad_output_count,
                                   void *grad_input, int64_t grad_input_count,
                                   void *grad_weight, int64_t grad_weight_count,
                                   void *grad_bias, int64_t grad_bias_count);

/* What a layer's forward takes its statistics from, and whether it updates any.
 * NORMAL: as the layer's mode says. KEEP_RUNNING: as the mode says, but in training the running statistics
 * and their counter stay as they are. RECOMPUTE: the last forward once more, by the statistics that it used,
 * whatever the mode is now: nothing is summed and nothing updated. It is for activation checkpointing, where a
 * second forward must not count the batch twice. */
typedef int32_t bn_pass;
enum { BN_PASS_NORMAL = 0, BN_PASS_KEEP_RUNNING = 1, BN_PASS_RECOMPUTE = 2 };

/* Arguments of bn_layer_forward_with. All but input and output is optional and means what it means in
 * bn_forward_training_args; the layer keeps of it what backward needs, positions and activation's mask included, in
 * memory of its own. */
typedef struct bn_layer_forward_args {
    uint32_t struct_size; /* sizeof(bn_layer_forward_args) */
    bn_pass pass;
    bn_view input; /* N*C*S of the tensor type, in */
    /* N*C*S of the tensor type, out; may be `input` itself (in place), but backward needs the input */
    bn_mutable_view output;
    bn_activation activation;
    bn_view residual; /* N*C*S of the tensor type, in; may be `output` (in place) */
    bn_positions positions;
} bn_layer_forward_args;
enum { BN_LAYER_FORWARD_ARGS_LEAST = offsetof(bn_layer_forward_args, activation) };

#define BN_LAYER_FORWARD_ARGS_DEFAULTS .struct_size = sizeof(bn_layer_forward_args)
#define BN_LAYER_FORWARD_ARGS_INIT                                                            \
    { sizeof(bn_layer_forward_args), BN_PASS_NORMAL, BN_ABSENT, BN_ABSENT,                    \
      BN_ACTIVATION_INIT, BN_ABSENT, BN_POSITIONS_INIT }

/* bn_layer_forward with an activation, a residual, masked positions, or another pass.
 *
 * RECOMPUTE writes the last forward's output to the bit if input, residual, weight and bias have the values
 * that they had then. Problem, activation, masked positions and whether there is a residual must be that
 * forward's: BN_STATUS_LAYER_MISMATCH otherwise, for then another forward is meant, as of a layer that is used
 * twice; BN_STATUS_NO_FORWARD before the first. Errors: 1xx to 5xx. */
BN_API bn_status bn_layer_forward_with(bn_layer *layer, const bn_problem *problem,
                                       const bn_layer_forward_args *args);

/* Arguments of bn_layer_backward_with. */
typedef struct bn_layer_backward_args {
    uint32_t struct_size; /* sizeof(bn_layer_backward_args) */
    int32_t reserved;     /* 0 */
    bn_view input;        /* N*C*S of the tensor type, in: the last forward's input */
    bn_view grad_output;  /* N*C*S of the tensor type, in */
    /* N*C*S of the tensor type, out, optional; may be grad_output or input itself (in place) */
    bn_mutable_view grad_input;
    bn_mutable_view grad_weight;   /* C of the parameter type, out, optional */
    bn_mutable_view grad_bias;     /* C of the parameter type, out, optional */
    bn_mutable_view grad_residual; /* N*C*S of the tensor type, out, optional; may be grad_output (in place) */
} bn_layer_backward_args;
enum { BN_LAYER_BACKWARD_ARGS_LEAST = offsetof(bn_layer_backward_args, grad_input) };

#define BN_LAYER_BACKWARD_ARGS_DEFAULTS .struct_size = sizeof(bn_layer_backward_args)
#define BN_LAYER_BACKWARD_ARGS_INIT                                                           \
    { sizeof(bn_layer_backward_args), 0, BN_ABSENT, BN_ABSENT, BN_ABSENT, BN_ABSENT,          \
      BN_ABSENT, BN_ABSENT }

/* bn_layer_backward of whatever the last forward did, also with the residual's gradient. */
BN_API bn_status bn_layer_backward_with(bn_layer *layer, const bn_problem *problem,
                                        const bn_layer_backward_args *args);

/* Copies out of and into the layer: C elements of the parameter type, which is float32 also where the layer's
 * tensors are BFLOAT16 or FLOAT16. `count` must be C. Setters check everything first and then copy all of it. */
BN_API bn_status bn_layer_get_weight(const bn_layer *layer, void *out, int64_t count);
BN_API bn_status bn_layer_set_weight(bn_layer *layer, const void *values, int64_t count);
BN_API bn_status bn_layer_get_bias(const bn_layer *layer, void *out, int64_t count);
BN_API bn_status bn_layer_set_bias(bn_layer *layer, const void *values, int64_t count);
BN_API bn_status bn_layer_get_running_mean(const bn_layer *layer, void *out, int64_t count);
BN_API bn_status bn_layer_set_running_mean(bn_layer *layer, const void *values, int64_t count);
BN_API bn_status bn_layer_get_running_var(const bn_layer *layer, void *out, int64_t count);
BN_API bn_status bn_layer_set_running_var(bn_layer *layer, const void *values, int64_t count);
BN_API bn_status bn_layer_get_num_batches_tracked(const bn_layer *layer, int64_t *count);
BN_API bn_status bn_layer_set_num_batches_tracked(bn_layer *layer, int64_t count);

/* Of the batches in num_batches_tracked, how many each channel's running mean has not taken in, and then
 * how many each running variance: 2*C counters, as in bn_forward_training_args. Setting
 * num_batches_tracked makes all of them 0, so set these afterwards; BN_STATUS_BATCH_COUNTER if one is
 * negative or above num_batches_tracked. */
BN_API bn_status bn_layer_get_skipped_batches(const bn_layer *layer, int64_t *skipped_batches,
                                              int64_t skipped_batches_count);
BN_API bn_status bn_layer_set_skipped_batches(bn_layer *layer, const int64_t *skipped_batches,
                                              int64_t skipped_batches_count);

/* The layer's own weight or bias, C elements of the parameter type, for optimizers that update in place; NULL if
 * the layer has none (or `layer` is NULL). Borrowed: valid until bn_layer_destroy. */
BN_API void *bn_layer_weight_data(bn_layer *layer);
BN_API void *bn_layer_bias_data(bn_layer *layer);

/* Of the last forward: mean and invstd that it normalized with (C float64 values), which statistics
 * these were, and how many channels had NaN or infinity, in the input and in the running statistics that
 * it updated (0 if none: see bn_forward_training_args). BN_STATUS_NO_FORWARD before the first. */
BN_API bn_status bn_layer_get_saved_mean(const bn_layer *layer, double *out, int64_t count);
BN_API bn_status bn_layer_get_saved_invstd(const bn_layer *layer, double *out, int64_t count);
/* What saved_mean lacks of the mean, see bn_saved. */
BN_API bn_status bn_layer_get_saved_mean_rest(const bn_layer *layer, double *out, int64_t count);
BN_API bn_status bn_layer_get_statistics_used(const bn_layer *layer, bn_statistics *statistics);
BN_API bn_status bn_layer_get_nonfinite_channels(const bn_layer *layer, int64_t *channels);
BN_API bn_status bn_layer_get_nonfinite_running_channels(const bn_layer *layer, int64_t *channels);

/* Running statistics back to mean 0, variance 1, all counters 0, as reset_running_stats().
 * BN_STATUS_NO_RUNNING_STATISTICS if the layer keeps none. */
BN_API bn_status bn_layer_reset_running_stats(bn_layer *layer);

/* ------------------------------------------------------------------------------------------
 * 8  STATE
 * ------------------------------------------------------------------------------------------
 * A layer's options, mode, weight, bias, running statistics and their counters as one block of bytes:
 * little-endian, versioned, with a CRC-32 over all of it. It is the same on every machine. What backward
 * needs is not part of it. Loading checks everything before it changes anything. States of version 1,
 * which knew no skipped batches, load as if there were none.
 */

/* The size of bn_layer_save_state's result in bytes. */
BN_API bn_status bn_layer_state_size(const bn_layer *layer, int64_t *size);

/* Writes the state into `out`. BN_STATUS_BUFFER_TOO_SMALL if size is less than bn_layer_state_size;
 * nothing is written beyond that. */
BN_API bn_status bn_layer_save_state(const bn_layer *layer, void *out, int64_t size);

/* Takes over mode, parameters, statistics and counters from a state whose options (dtype, channels,
 * has_weight, has_bias, track_running_stats) are this layer's; BN_STATUS_LAYER_MISMATCH otherwise. */
BN_API bn_status bn_layer_load_state(bn_layer *layer, const void *state, int64_t size);

/* Makes a layer, options and all, from a state. *layer is set only on success. */
BN_API bn_status bn_layer_create_from_state(const void *state, int64_t size, bn_layer **layer);

/* ------------------------------------------------------------------------------------------
 * 9  FOLDING
 * ------------------------------------------------------------------------------------------
 * In inference the statistics are constants, and normalization is one affine map per channel. Behind
 * a convolution or linear layer, that map can go into the layer's own weight and bias, and then costs
 * nothing:
 *
 *     scale         = weight / sqrt(running_var + epsilon)
 *     folded_weight = conv_weight * scale               for every value of the output channel
 *     folded_bias   = (conv_bias - running_mean) * scale + bias
 *
 * It is done once, before a network is shipped: formed in float64 from the values given and rounded once
 * to the dtype. How much rounding has changed is reported.
 */

/* Where the output channels lie in a weight tensor. The tensor is seen as
 *
 *     [groups][outer][channels][inner]
 *
 * dense, and the values of output channel g*channels + c are those at [g][...][c][...]. That covers every
 * layout: `outer` is the product of what lies before the axis of the output channels, `inner` of what
 * lies behind it. Only PyTorch's transposed convolutions count output channels within a group. */
typedef struct bn_weight_shape {
    uint32_t struct_size; /* sizeof(bn_weight_shape) */
    bn_dtype dtype;       /* of all buffers of the call: FLOAT32 or FLOAT64; a layer's parameter type */
    int64_t groups;       /* >= 1 */
    int64_t outer;        /* >= 0 */
    int64_t channels;     /* >= 1, of a group */
    int64_t inner;        /* >= 0 */
} bn_weight_shape;
enum { BN_WEIGHT_SHAPE_LEAST = offsetof(bn_weight_shape, inner) + sizeof(int64_t) };

/* [O][...]: convolutions of PyTorch and ONNX, [O][I/groups][spatial...] (OIHW), also grouped and depthwise
 * ones, also channels-last (OHWI), and linear layers [O][I]. `values`: of one output channel. */
#define BN_WEIGHT_OUTPUT_FIRST(dtype, output, values) \
    { sizeof(bn_weight_shape), BN_AS(bn_dtype, dtype), 1, 1, BN_AS(int64_t, output), \
      BN_AS(int64_t, values) }
/* [...][O]: convolutions [spatial...][I/groups][O] (HWIO) and dense layers [I][O] of Keras, Flax and JAX. Of
 * a Keras depthwise kernel [spatial...][I][multiplier], `output` is I * multiplier. */
#define BN_WEIGHT_OUTPUT_LAST(dtype, values, output) \
    { sizeof(bn_weight_shape), BN_AS(bn_dtype, dtype), 1, BN_AS(int64_t, values), \
      BN_AS(int64_t, output), 1 }
/* [I][O/groups][spatial...]: transposed convolutions of PyTorch and ONNX. */
#define BN_WEIGHT_TRANSPOSED(dtype, groups, input_per_group, output_per_group, spatial)     \
    { sizeof(bn_weight_shape), BN_AS(bn_dtype, dtype), BN_AS(int64_t, groups),               \
      BN_AS(int64_t, input_per_group), BN_AS(int64_t, output_per_group),                    \
      BN_AS(int64_t, spatial) }
/* No layer before: with conv_weight absent, folded_weight and folded_bias are the affine pair, C values each:
 * y = x * folded_weight + folded_bias. */
#define BN_WEIGHT_AFFINE(dtype, c) \
    { sizeof(bn_weight_shape), BN_AS(bn_dtype, dtype), 1, 1, BN_AS(int64_t, c), 1 }

/* Arguments of bn_fold and bn_layer_fold. C is groups*channels, W groups*outer*channels*inner. */
typedef struct bn_fold_args {
    uint32_t struct_size; /* sizeof(bn_fold_args) */
    int32_t reserved;     /* 0 */
    double epsilon;       /* >= 0; with epsilon 0, a channel of variance 0 gets scale 0 */

    bn_view running_mean; /* C of the parameter type, in */
    bn_view running_var;  /* C of the parameter type, in; >= 0 */
    bn_view weight;       /* C of the parameter type, in, optional: absent means 1 */
    bn_view bias;         /* C of the parameter type, in, optional: absent means 0 */

    bn_view conv_weight; /* W of the parameter type, in; optional if W is C: absent means 1 */
    bn_view conv_bias;   /* C of the parameter type, in, optional: absent means 0 */
    bn_mutable_view folded_weight; /* W of the parameter type, out, optional; may be conv_weight itself (in place) */
    bn_mutable_view folded_bias;   /* C of the parameter type, out, optional; may be conv_bias itself (in place) */

    double weight_error; /* out: the largest |rounded - float64| of a folded weight, relative to the largest
                            |weight| of its output channel. float64: 0. float32: up to 6e-8, half a unit,
                            or more if weights underflow */
    double bias_error;   /* out: the largest |rounded - float64| of a folded bias, relative to the larger of
                            |weight| and |bias| of the normalization in its channel, which is the size of
                            its output: how far folding shifts that. It grows with |mean| / deviation */
} bn_fold_args;
enum { BN_FOLD_ARGS_LEAST = offsetof(bn_fold_args, weight_error) };

#define BN_FOLD_ARGS_DEFAULTS .struct_size = sizeof(bn_fold_args), .epsilon = 1e-5
#define BN_FOLD_ARGS_INIT                                                                     \
    { sizeof(bn_fold_args), 0, 1e-5, BN_ABSENT, BN_ABSENT, BN_ABSENT, BN_ABSENT,              \
      BN_ABSENT, BN_ABSENT, BN_ABSENT, BN_ABSENT, 0, 0 }

/* Folds normalization by running statistics into the convolution or linear layer before it, or into an
 * affine pair. Everything is computed and checked before anything is written.
 *
 * BN_STATUS_NUMBER: a number that goes in is NaN or infinite, a variance negative, or a result beyond
 * the range of its dtype; the message tells which. Other errors: 1xx to 3xx, BN_STATUS_EPSILON.
 * Follows torch.nn.utils.fuse_conv_bn_weights (whose result is formed in the weight's dtype). */
BN_API bn_status bn_fold(const bn_weight_shape *shape, bn_fold_args *args);

/* As bn_fold, with the layer's epsilon, running statistics, weight and bias, in either mode; these members of
 * args are ignored. BN_STATUS_NO_RUNNING_STATISTICS if the layer keeps none; BN_STATUS_LAYER_MISMATCH
 * if dtype is not the layer's parameter type, or C differs from the layer's. */
BN_API bn_status bn_layer_fold(const bn_layer *layer, const bn_weight_shape *shape,
                               bn_fold_args *args);

/* ------------------------------------------------------------------------------------------
 * 10  MACHINE
 * ------------------------------------------------------------------------------------------
 * Settings of the whole process; safe to call from any thread. Results have the same bits whatever is
 * set here.
 */

/* The largest number of threads a call may use. 0, the default: what the OpenMP runtime in use (with a
 * pool: AUTO's, see bn_threading) says to the calling thread: OMP_NUM_THREADS, torch.set_num_threads, else
 * the cores. Small problems use fewer. Negative: BN_STATUS_INVALID_OPTION.
 *
 * Any other number may be set; whatever it is, and whatever the default, a call uses no more threads than the
 * most processors that the process has been seen to be allowed (taskset, cpuset), or 64 if these are fewer: a
 * runtime that cannot start a thread ends the process. A pool gets no more members either. A container's share
 * of processor time (CPU quota) is not looked at: set the number there. */
BN_API bn_status bn_set_num_threads(int32_t threads);
/* The number that counts now: what was set or the default, as far as the machine can run it. */
BN_API int32_t bn_get_num_threads(void);

/* Whose threads a call runs on. A process should have one set of threads that compute: those of two
 * OpenMP runtimes take the cores from each other, for they go on spinning after a parallel region.
 * PyTorch, for one, brings a runtime of its own (libgomp).
 * OWN: this library's runtime, libomp. SHARED: the one that others have loaded into this process
 * (libgomp alone; of several files the one loaded first). AUTO: SHARED as soon as there is one, else
 * OWN. A libiomp5 or second libomp is not shared, and LLVM's runtimes may end a process that starts two. POOL: a
 * pool that the caller has given, see bn_set_thread_pool.
 *
 * Threads do not survive a fork, and neither does libgomp: in a forked child SHARED is not to be had,
 * AUTO means OWN, and SHARED and POOL are back at AUTO. That holds also if a pool's `run`, or a thread of the
 * pool, forks in the middle of a call: the child may call the library, and return from `run` if this waits for
 * no other thread; what is left of the call is then done without the pool. */
typedef int32_t bn_threading;
enum {
    BN_THREADING_AUTO = 0,
    BN_THREADING_OWN = 1,
    BN_THREADING_SHARED = 2,
    BN_THREADING_POOL = 3
};

/* Chooses AUTO (the default), OWN or SHARED; the last call of this function or of bn_set_thread_pool
 * counts. BN_STATUS_NO_SHARED_RUNTIME, and nothing changes, if SHARED is not to be had.
 * BN_STATUS_INVALID_OPTION for any other value, POOL included. */
BN_API bn_status bn_set_threading(bn_threading threading);
BN_API bn_threading bn_get_threading(void);

/* One member's part of a call's work. `context` is the library's own. It neither throws nor leaves by
 * longjmp, and blocks for nothing but memory. */
typedef void (*bn_member)(void *context, int32_t member);

/* A pool's way to run a team: calls member(context, i) exactly once for each i from 0 to members - 1,
 * on any threads, at the same time or one after another in any order, and returns when all of these calls
 * have. `pool` is what bn_set_thread_pool got. A call of the library runs up to three such teams, one
 * after another; `members` is from 2 to bn_get_num_threads(). Needs 256 KB of stack on each thread. */
typedef void (*bn_run_members)(void *pool, int32_t members, bn_member member, void *context);

/* Runs the calls of all threads on a pool of the caller's: Grand Central Dispatch, a task scheduler, threads
 * of one's own. `run` may be called by several threads at once. With NULL: back to AUTO.
 *
 * Whoever calls this or bn_set_threading waits until calls that use the pool before have ended, and may
 * then free that one; so no member may call either. Always BN_STATUS_OK. */
BN_API bn_status bn_set_thread_pool(bn_run_members run, void *pool);

/* Whose threads a call made now would run on: "libomp.so.5", "libgomp-24e2ab19.so.1.0.0" (the name of the
 * runtime's file), or "pool". The string lives as long as the process. */
BN_API const char *bn_get_thread_runtime(void);

/* Instruction sets. The best that the CPU has is chosen; the environment variable BATCHNORM_MAX_ISA (generic, avx2,
 * avx512) or bn_set_max_isa caps it, for tests. Those of one family of CPUs build on each other in the order of their
 * numbers; between families there is no order. GENERIC is part of all. */
typedef int32_t bn_isa;
enum { BN_ISA_GENERIC = 0, BN_ISA_AVX2 = 1, BN_ISA_AVX512 = 2 };

/* Leaves the given instruction set and those that it builds on. One that this CPU does not have, be it newer or of
 * another family, is allowed and leaves all that it has; likewise in the environment, where an unknown name does,
 * too. The last call counts, and replaces what the environment said. A value that is no bn_isa:
 * BN_STATUS_INVALID_OPTION. */
BN_API bn_status bn_set_max_isa(bn_isa isa);
/* The instruction set in use. */
BN_API bn_isa bn_get_isa(void);
/* "generic", "avx2", "avx512"; "unknown" for any other value. The string is static. */
BN_API const char *bn_isa_name(bn_isa isa);

/* "MAJOR.MINOR.PATCH" of the library that is loaded. The string is static. */
BN_API const char *bn_version(void);

/* ------------------------------------------------------------------------------------------
 * 11  EXPLAIN
 * ------------------------------------------------------------------------------------------
 * Why is a call as fast, or as slow, as it is? These tell how an operation would be done on this
 * machine with the settings of this moment. Nothing is run and nothing allocated.
 */

/* BACKWARD: of a training forward. BACKWARD_FROZEN: through running statistics. */
typedef int32_t bn_operation;
enum {
    BN_OPERATION_FORWARD_TRAINING = 1,
    BN_OPERATION_FORWARD_INFERENCE = 2,
    BN_OPERATION_BACKWARD = 3,
    BN_OPERATION_BACKWARD_FROZEN = 4
};

/* What is asked about: an operation, and which of its optional arguments the call has, each 1 or 0. What stands at
 * masked positions makes no difference; a mask is explained as if all positions took part. */
typedef struct bn_explain_args {
    uint32_t struct_size; /* sizeof(bn_explain_args) */
    bn_operation operation;
    bn_activation activation; /* as in the operation's arguments */
    int32_t residual;        /* forward: one is added. backward: grad_residual is written */
    int32_t activation_mask; /* forward: it is written. backward: it is read; 0: if there is an activation, output is */
    int32_t mask;            /* positions are masked by a mask, */
    int32_t lengths;         /* or by lengths; not both */
    int32_t grad_input;      /* backward: it is written; a forward does not look at this, */
    int32_t grad_weight;     /* this */
    int32_t grad_bias;       /* and this */
    int32_t reserved;        /* 0 */
} bn_explain_args;
enum { BN_EXPLAIN_ARGS_LEAST = offsetof(bn_explain_args, reserved) + sizeof(int32_t) };

/* By default all three gradients are wanted, and nothing else but the operation. */
#define BN_EXPLAIN_ARGS_DEFAULTS \
    .struct_size = sizeof(bn_explain_args), .grad_input = 1, .grad_weight = 1, .grad_bias = 1
#define BN_EXPLAIN_ARGS_INIT { sizeof(bn_explain_args), 0, BN_ACTIVATION_INIT, 0, 0, 0, 0, 1, 1, 1, 0 }

/* The plan of a call. The tensor is seen as rows x channels x inner values: N x C x S if NCHW,
 * N*S x C x 1 if NHWC. It is cut into pieces, each of which one thread reduces; those at the ends of the
 * tensor may be smaller. Of an empty batch, and of a backward of which nothing is wanted, members from by_columns to
 * limit_bytes_written are 0, but for tensor_bytes, and for the workspace_bytes of lengths. */
typedef struct bn_plan_info {
    uint32_t struct_size; /* sizeof(bn_plan_info) */
    bn_isa isa;
    int32_t threads;      /* of the call; 1: without a parallel region */
    int32_t by_columns;   /* 0: the inner values of one channel fill the vectors. 1: neighbouring channels do */
    int32_t steps;        /* 1: each run of channels is reduced and then applied by one thread (inference: only
                             applied). 3: all pieces are reduced, then merged, then all is applied. 2: the same, where
                             a backward needs no sums or applies nothing */
    int32_t nontemporal;  /* 1: stores bypass the caches */
    int64_t run_channels; /* neighbouring channels that are taken together */
    int64_t rows_per_line; /* rows that lie behind one another and count as one longer row; 1: each by itself */
    int64_t piece_rows;   /* a piece is piece_rows x run_channels x piece_values */
    int64_t piece_values;
    int64_t pieces;          /* of the whole tensor */
    int64_t workspace_bytes; /* what the call allocates, N*L for lengths among it; a layer keeps it for its next call */
    int64_t tensor_bytes;    /* one tensor */
    int64_t bytes_read;      /* of tensors and masks, from memory or from a cache that the caller left them in. A second
                                read counts only if what the first one brought is not expected to stay in cache */
    int64_t bytes_written;
    int64_t limit_bytes_read; /* what any implementation must: each tensor and mask that results depend on once,
                                 and each result once */
    int64_t limit_bytes_written;
    int64_t l2_bytes; /* one core's second-level cache, as the plan assumes it */
    int64_t l3_bytes; /* what the plan counts on of the last-level cache: of more than 64 MiB at most 8 MiB for each of the
                         machine's cores, for they are a whole socket's, and a virtual machine is shown them all */
} bn_plan_info;
enum { BN_PLAN_INFO_LEAST = offsetof(bn_plan_info, threads) };

#define BN_PLAN_INFO_INIT                                                                     \
    { sizeof(bn_plan_info), BN_ISA_GENERIC, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

/* Writes the plan's numbers. `info->struct_size` must be set. One value per channel is explained as
 * BN_ONE_VALUE_ALLOW would run it. Errors: those of the operation for problem, activation and lengths (1xx, 2xx,
 * BN_STATUS_NEGATIVE_SLOPE); BN_STATUS_EXCLUSIVE for a mask and lengths.
 *
 *     bn_explain_args args = { BN_EXPLAIN_ARGS_DEFAULTS,
 *                              .operation = BN_OPERATION_FORWARD_TRAINING,
 *                              .activation = BN_RELU,
 *                              .residual = 1 };
 *     bn_plan_info info = BN_PLAN_INFO_INIT;
 *     bn_explain(&problem, &args, &info);
 */
BN_API bn_status bn_explain(const bn_problem *problem, const bn_explain_args *args, bn_plan_info *info);

/* Room for every text that bn_explain_text writes. */
#define BN_EXPLAIN_TEXT_SIZE 2048

/* Writes the plan in words: a dozen lines of English or a few more, zero-terminated, without a line end after the
 * last. The wording may change from version to version; programs take the numbers. size: of `out`, in
 * bytes; BN_STATUS_BUFFER_TOO_SMALL, and nothing is written, if the text is longer, which it never is
 * with BN_EXPLAIN_TEXT_SIZE. Other errors: those of bn_explain. */
BN_API bn_status bn_explain_text(const bn_problem *problem, const bn_explain_args *args, char *out,
                                 int64_t size);

#ifdef __cplusplus
}
#endif

#endif /* BATCHNORM_H */
