/*
 * harness.c — times libbatchnorm and the limit (copy, triad, tetrad) in one process, on the same buffers.
 *
 * By hand: `harness --op forward --shape 32x64x56x56`; `harness --serve` takes commands, so that it can be
 * interleaved with the peers. The library is loaded by path, so that any build can be timed.
 * Every contender of a cell is timed in turn, round by round: what disturbs one disturbs all.
 */
#define _GNU_SOURCE
#include "harness.h"

#include <dlfcn.h>
#include <errno.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "../include/batchnorm.h"
#include "cell.h"

enum { MAX_ROUNDS = 1000 };

/* ---- the library --------------------------------------------------------------------------- */

static struct {
    __typeof__(&bn_forward_training) forward_training;
    __typeof__(&bn_forward_inference) forward_inference;
    __typeof__(&bn_backward) backward;
    __typeof__(&bn_last_error_message) last_error_message;
    __typeof__(&bn_set_num_threads) set_num_threads;
    __typeof__(&bn_get_isa) get_isa;
    __typeof__(&bn_isa_name) isa_name;
    __typeof__(&bn_version) version;
    __typeof__(&bn_layer_create) layer_create;
    __typeof__(&bn_layer_destroy) layer_destroy;
    __typeof__(&bn_layer_set_training) layer_set_training;
    __typeof__(&bn_layer_forward) layer_forward;
    __typeof__(&bn_layer_backward) layer_backward;
} bn;

static void load_library(const char *path)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) die("cannot load the library: %s", dlerror());
#define LOAD(name)                                                     \
    if (!(bn.name = (__typeof__(bn.name))dlsym(library, "bn_" #name))) \
        die("%s has no bn_" #name, path);
    LOAD(forward_training)
    LOAD(forward_inference)
    LOAD(backward)
    LOAD(last_error_message)
    LOAD(set_num_threads)
    LOAD(get_isa)
    LOAD(isa_name)
    LOAD(version)
    LOAD(layer_create)
    LOAD(layer_destroy)
    LOAD(layer_set_training)
    LOAD(layer_forward)
    LOAD(layer_backward)
#undef LOAD
}

/* ---- this library --------------------------------------------------------------------------- */

static bn_problem problem;
static bn_layer *layer;

static void open_ours(cell *k)
{
    problem = (bn_problem)BN_PROBLEM_INIT;
    static const bn_dtype dtypes[DTYPES] = { BN_DTYPE_FLOAT32, BN_DTYPE_FLOAT64, BN_DTYPE_BFLOAT16,
                                             BN_DTYPE_FLOAT16 };
    problem.dtype = dtypes[k->dtype];
    problem.layout = k->nhwc ? BN_LAYOUT_NHWC : BN_LAYOUT_NCHW;
    problem.rank = k->rank;
    memcpy(problem.sizes, k->sizes, sizeof problem.sizes);
    omp_set_num_threads(k->threads);
    bn.set_num_threads(k->threads);
    if (!k->layer) return;
    if (k->lengths || k->add || k->relu)
        die("api is layer, expected stateless with +lengths, +add and +relu");
    bn_layer_options options = BN_LAYER_OPTIONS_INIT;
    options.dtype = problem.dtype;
    options.num_features = k->c;
    if (bn.layer_create(&options, &layer)) die("%s", bn.last_error_message());
    bn.layer_set_training(layer, k->op == FORWARD || k->op == BACKWARD);
    if (has_gradient(k) &&
        bn.layer_forward(layer, &problem, input_of(k, 0), k->count, output_of(k, 0), k->count))
        die("%s", bn.last_error_message());
}

static void close_ours(void)
{
    bn.layer_destroy(layer);
    layer = NULL;
}

/* What the arguments of all three functions have in common. */
static bn_activation activation(const cell *k)
{
    return k->relu ? (bn_activation)BN_RELU : (bn_activation)BN_ACTIVATION_INIT;
}
static bn_positions positions(const cell *k)
{
    return (bn_positions){ .lengths = { k->sample_lengths, k->lengths ? k->n : 0 } };
}
static bn_saved saved(const cell *k)
{
    return (bn_saved){ .mean = { k->parameters[SAVED_MEAN], k->c },
                       .invstd = { k->parameters[SAVED_INVSTD], k->c } };
}

static bn_status call_forward(cell *k, int set)
{
    void *const *p = k->parameters;
    bn_forward_training_args a = {
        BN_FORWARD_TRAINING_ARGS_DEFAULTS,
        .input = { input_of(k, set), k->count },
        .output = { output_of(k, set), k->count },
        .weight = { p[WEIGHT], k->c },
        .bias = { p[BIAS], k->c },
        .running_mean = { p[RUNNING_MEAN], k->c },
        .running_var = { p[RUNNING_VAR], k->c },
        .saved = saved(k),
        .activation = activation(k),
        .positions = positions(k),
    };
    if (k->relu) a.activation_mask = (bn_mutable_byte_view){ bits_of(k, set), bits_count(k) };
    if (k->add) a.residual = (bn_view){ residual_of(k, set), k->count };
    return bn.forward_training(&problem, &a);
}

/* No backward follows, and so no activation mask is wanted. */
static bn_status call_inference(cell *k, int set)
{
    void *const *p = k->parameters;
    bn_forward_inference_args a = {
        BN_FORWARD_INFERENCE_ARGS_DEFAULTS,
        .input = { input_of(k, set), k->count },
        .output = { output_of(k, set), k->count },
        .weight = { p[WEIGHT], k->c },
        .bias = { p[BIAS], k->c },
        .running_mean = { p[RUNNING_MEAN], k->c },
        .running_var = { p[RUNNING_VAR], k->c },
        .activation = activation(k),
        .positions = positions(k),
    };
    if (k->add) a.residual = (bn_view){ residual_of(k, set), k->count };
    return bn.forward_inference(&problem, &a);
}

static bn_status call_backward(cell *k, int set)
{
    void *const *p = k->parameters;
    bn_backward_args a = {
        BN_BACKWARD_ARGS_DEFAULTS,
        .statistics = k->op == FROZEN ? BN_STATISTICS_RUNNING : BN_STATISTICS_BATCH,
        .input = { input_of(k, set), k->count },
        .grad_output = { gradient_of(k, set), k->count },
        .grad_input = { output_of(k, set), k->count },
        .grad_weight = { p[GRAD_WEIGHT], k->c },
        .grad_bias = { p[GRAD_BIAS], k->c },
        .weight = { p[WEIGHT], k->c },
        .saved = saved(k),
        .running_mean = { p[RUNNING_MEAN], k->c },
        .running_var = { p[RUNNING_VAR], k->c },
        .activation = activation(k),
        .positions = positions(k),
    };
    if (k->relu) a.activation_mask = (bn_byte_view){ bits_of(k, set), bits_count(k) };
    if (k->add) a.grad_residual = (bn_mutable_view){ residual_of(k, set), k->count };
    return bn.backward(&problem, &a);
}

static bn_status call_layer(cell *k, int set)
{
    const void *x = input_of(k, set);
    void *y = output_of(k, set), *const *p = k->parameters;
    return has_gradient(k)
               ? bn.layer_backward(layer, &problem, x, k->count, gradient_of(k, set), k->count, y,
                                   k->count, p[GRAD_WEIGHT], k->c, p[GRAD_BIAS], k->c)
               : bn.layer_forward(layer, &problem, x, k->count, y, k->count);
}

static void call_ours(const contender *self, cell *k, int set)
{
    (void)self;
    const bn_status status = k->layer             ? call_layer(k, set)
                             : k->op == FORWARD   ? call_forward(k, set)
                             : k->op == INFERENCE ? call_inference(k, set)
                                                  : call_backward(k, set);
    if (status != BN_STATUS_OK) die("status %d: %s", status, bn.last_error_message());
}

/* A benchmark of wrong results is worth nothing: checks the first and the last channel. */
static int64_t at(const cell *k, int64_t n, int64_t c, int64_t s)
{
    return k->nhwc ? (n * k->s + s) * k->c + c : (n * k->c + c) * k->s + s;
}
static int takes_part(const cell *k, int64_t n, int64_t s)
{
    return !k->lengths || s < k->sample_lengths[n];
}
static int bit(const cell *k, int64_t index)
{
    return bits_of(k, 0)[index / 8] >> index % 8 & 1;
}
/* The output's gradient behind the activation. */
static double gradient_at(const cell *k, int64_t index)
{
    return k->relu && !bit(k, index) ? 0 : get(k, gradient_of(k, 0), index);
}

static void check_value(const cell *k, const char *what, int64_t index, double have, double want)
{
    /* The half types have 8 and 11 bits, and what is checked is rounded once. */
    double tolerance = k->dtype == BFLOAT16 ? 5e-3 : k->dtype == FLOAT16 ? 6e-4 : 1e-4;
    if (!(fabs(have - want) <= tolerance * (1 + fabs(want))))
        die("wrong result: %s %lld is %.9g, expected %.9g", what, (long long)index, have, want);
}

static void check_result(cell *k)
{
    call_ours(NULL, k, 0);
    const void *x = input_of(k, 0), *y = output_of(k, 0);
    for (int64_t c = 0; c < k->c; c += k->c > 1 ? k->c - 1 : 1) {
        double m = 0, sum = 0, square = 0, s1 = 0, s2 = 0;
        for (int64_t n = 0; n < k->n; n++)
            for (int64_t s = 0; s < k->s; s++)
                if (takes_part(k, n, s)) m++, sum += get(k, x, at(k, n, c, s));
        double mean = sum / m;
        for (int64_t n = 0; n < k->n; n++)
            for (int64_t s = 0; s < k->s; s++)
                if (takes_part(k, n, s)) {
                    double d = get(k, x, at(k, n, c, s)) - mean;
                    square += d * d / m;
                }
        double weight = parameter(k, WEIGHT, c), bias = parameter(k, BIAS, c);
        if (k->layer) weight = 1, bias = 0;
        double r = 1 / sqrt(square + 1e-5);
        if (k->op == INFERENCE || k->op == FROZEN) {
            mean = k->layer ? 0 : parameter(k, RUNNING_MEAN, c);
            r = 1 / sqrt((k->layer ? 1 : parameter(k, RUNNING_VAR, c)) + 1e-5);
        } else if (k->op == BACKWARD && !k->layer) {
            mean = ((double *)k->parameters[SAVED_MEAN])[c];
            r = ((double *)k->parameters[SAVED_INVSTD])[c];
        }
        if (k->op == BACKWARD)
            for (int64_t n = 0; n < k->n; n++)
                for (int64_t s = 0; s < k->s; s++)
                    if (takes_part(k, n, s)) {
                        double g = gradient_at(k, at(k, n, c, s));
                        s1 += g;
                        s2 += g * (get(k, x, at(k, n, c, s)) - mean);
                    }
        for (int64_t i = 0; i < k->n * k->s; i += 1 + k->n * k->s / 97) {
            int64_t index = at(k, i / k->s, c, i % k->s);
            double centered = get(k, x, index) - mean, want = 0;
            int taken = takes_part(k, i / k->s, i % k->s);
            if (taken && has_gradient(k)) {
                double g = gradient_at(k, index);
                want = weight * r * (g - s1 / m - centered * r * r * s2 / m);
                if (k->add)
                    check_value(k, "grad_residual", index, get(k, residual_of(k, 0), index), g);
            } else if (taken) {
                want = centered * r * weight + bias;
                if (k->add) want += get(k, residual_of(k, 0), index);
                if (k->relu) want = fmax(want, 0);
                if (k->relu && k->op == FORWARD && bit(k, index) != (get(k, y, index) > 0))
                    die("wrong result: activation mask %lld is %d", (long long)index,
                        bit(k, index));
            }
            check_value(k, has_gradient(k) ? "grad_input" : "output", index, get(k, y, index),
                        want);
        }
    }
}

/* ---- contenders ----------------------------------------------------------------------------- */

static void call_bare(const contender *self, cell *k, int set)
{
    (void)self;
    void *const *p = k->parameters;
    bare_job job = { k->n,
                     k->c,
                     k->s,
                     k->nhwc,
                     k->op == INFERENCE || k->op == FROZEN,
                     input_of(k, set),
                     has_gradient(k) ? gradient_of(k, set) : NULL,
                     output_of(k, set),
                     p[WEIGHT],
                     p[BIAS],
                     p[RUNNING_MEAN],
                     p[RUNNING_VAR],
                     p[GRAD_WEIGHT],
                     p[GRAD_BIAS],
                     p[SAVED_MEAN],
                     p[SAVED_INVSTD] };
    (k->dtype == FLOAT64 ? bare_run_f64 : bare_run_f32)(&job);
}

static const char *only; /* --only batchnorm: nothing to compare with */

/* Whose arithmetic bare.c has. */
static int has_bare(const cell *k)
{
    return k->count <= BARE_MAX && (k->dtype == FLOAT32 || k->dtype == FLOAT64) && !k->lengths &&
           !k->add && !k->relu;
}

static int line_up(cell *k, contender *list)
{
    if (k->op == MEMORY) {
        omp_set_num_threads(k->threads);
        return add_memory_sweeps(k, list, 0);
    }
    open_ours(k);
    check_result(k);
    int count = 0;
    list[count++] = (contender){ .name = "batchnorm", .call = call_ours };
    if (only) return count;
    count = add_limits(k, list, count);
    if (has_bare(k)) list[count++] = (contender){ .name = "bare", .call = call_bare };
    return count;
}

/* libomp's threads spin for 200 ms after a region, a time that they take with them from its start. (A
 * soft omp_pause_resource_all changes nothing there.) The barrier keeps the region from being optimized
 * away. */
static int usual_blocktime;

static void pause_threads(void)
{
    kmp_set_blocktime(0);
#pragma omp parallel
    {
#pragma omp barrier
    }
}

static void resume_threads(void)
{
    kmp_set_blocktime(usual_blocktime);
}

/* ---- commands ------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static double median(double *values, int count)
{
    qsort(values, (size_t)count, sizeof *values, by_value);
    return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

static void report(cell *k, int rounds)
{
    static contender list[MAX_CONTENDERS];
    static double times[MAX_CONTENDERS][MAX_ROUNDS];
    int count = line_up(k, list);
    for (int i = 0; i < count; i++) calibrate(&list[i], k);
    for (int r = 0; r < rounds; r++)
        for (int i = 0; i < count; i++) times[i][r] = timed(&list[i], k);

    double first[MAX_ROUNDS];
    memcpy(first, times[0], sizeof first); /* median() sorts */
    printf("%-40s %11s %11s %8s %9s %16s\n", "", "median us", "min us", "GB/s", "spread",
           "first / this");
    for (int i = 0; i < count; i++) {
        double ratios[MAX_ROUNDS];
        for (int r = 0; r < rounds; r++) ratios[r] = first[r] / times[i][r];
        double middle = median(times[i], rounds);
        int moved = k->op == MEMORY ? tensors_swept(&list[i]) : k->tensors;
        printf("%-40s %11.2f %11.2f %8.2f %8.1f%% %16.3f\n", list[i].name, 1e6 * middle,
               1e6 * times[i][0], (double)k->bytes * moved / middle * 1e-9,
               100 * (times[i][rounds * 3 / 4] - times[i][rounds / 4]) / middle,
               median(ratios, rounds));
    }
    close_ours();
}

/* What the library takes beyond the caller's buffers; see allocations.c, which must be preloaded. */
static void memory(cell *k, long calls)
{
    void (*reset)(void) = (void (*)(void))dlsym(RTLD_DEFAULT, "allocations_reset");
    void (*read)(long *, long *, long *) =
        (void (*)(long *, long *, long *))dlsym(RTLD_DEFAULT, "allocations_read");
    if (!reset || !read) die("--memory needs LD_PRELOAD=liballocations.so");
    struct rusage before, after;
    for (int i = 0; i < 3; i++) call_ours(NULL, k, 0);
    getrusage(RUSAGE_SELF, &before);
    reset();
    for (long i = 0; i < calls; i++) call_ours(NULL, k, 0);
    long count, peak, kept;
    read(&count, &peak, &kept);
    getrusage(RUSAGE_SELF, &after);
    printf("calls=%ld allocations_per_call=%g peak_bytes=%ld kept_bytes=%ld rss_growth_kb=%ld\n",
           calls, (double)count / (double)calls, peak, kept, after.ru_maxrss - before.ru_maxrss);
}

static const char usage[] =
    "harness [--op forward|inference|backward|frozen, then +lengths, +add, +relu as wanted;\n"
    "         or memory: the speed of the machine]\n"
    "        [--dtype float32|float64|bfloat16|float16] [--layout nchw|nhwc]\n"
    "        [--shape NxCx...] [--threads T] [--buffers warm|cold] [--pages huge|small]\n"
    "        [--api stateless|layer] [--rounds 15] [--ms 20] [--only batchnorm] [--library FILE]\n"
    "        [--calls K   no timing, K calls: for valgrind and perf]\n"
    "        [--memory K  allocations of K calls, with LD_PRELOAD=liballocations.so]\n"
    "        [--serve     commands from standard input, see cell.h]\n";

/* <repository>/build-bench/harness -> <repository>/build/libbatchnorm.so */
static const char *default_library(void)
{
    static char path[4096];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 64);
    if (length < 0) die("cannot find myself: %s", strerror(errno));
    path[length] = 0;
    *strrchr(path, '/') = 0;
    return strcat(path, "/../build/libbatchnorm.so");
}

int main(int argc, char **argv)
{
    cell k;
    cell_initialize(&k, omp_get_max_threads());
    const char *library = getenv("BATCHNORM_LIBRARY");
    int serving = 0, rounds = 15;
    long calls = 0, counted = 0;
    for (int i = 1; i < argc; i++) {
        const char *key = argv[i];
        if (!strcmp(key, "--serve")) {
            serving = 1;
            continue;
        }
        if (strncmp(key, "--", 2) || i + 1 == argc) {
            fputs(usage, stderr);
            return 1;
        }
        const char *value = argv[++i];
        if (!strcmp(key, "--library"))
            library = value;
        else if (!strcmp(key, "--only"))
            only = value;
        else if (!strcmp(key, "--rounds"))
            rounds = atoi(value);
        else if (!strcmp(key, "--calls"))
            calls = atol(value);
        else if (!strcmp(key, "--memory"))
            counted = atol(value);
        else
            cell_set(&k, key + 2, value);
    }
    if (rounds < 1 || rounds > MAX_ROUNDS)
        die("rounds is %d, expected 1 to %d", rounds, MAX_ROUNDS);
    if (only && strcmp(only, "batchnorm")) die("only is '%s', expected batchnorm", only);
    load_library(library ? library : default_library());

    if (serving) {
        worker w = { .line_up = line_up,
                     .close = close_ours,
                     .resume = resume_threads,
                     .pause = pause_threads };
        usual_blocktime = kmp_get_blocktime();
        snprintf(w.ready, sizeof w.ready, "batchnorm=%s isa=%s", bn.version(),
                 bn.isa_name(bn.get_isa()));
        serve(&w, &k);
        return 0;
    }
    cell_open(&k);
    if (calls || counted) {
        open_ours(&k);
        if (counted) memory(&k, counted);
        for (long i = 0; i < calls; i++) call_ours(NULL, &k, (int)(i % k.sets));
        close_ours();
    } else {
        printf("%s%s%s%s %s %s, %d thread%s, %s buffers, %s pages, version %s, %s\n",
               operation_names[k.op], k.lengths ? "+lengths" : "", k.add ? "+add" : "",
               k.relu ? "+relu" : "", k.nhwc ? "NHWC" : "NCHW", datatype_names[k.dtype], k.threads,
               k.threads > 1 ? "s" : "", k.cold ? "cold" : "warm", k.small_pages ? "small" : "huge",
               bn.version(), bn.isa_name(bn.get_isa()));
        report(&k, rounds);
    }
    cell_close(&k);
}
