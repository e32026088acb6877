/*
 * Memory: a refused allocation is BN_STATUS_OUT_OF_MEMORY and changes nothing, a layer in its steady state allocates
 * nothing, and no allocation grows with N or S.
 *
 * The allocation functions below stand before libc's, for this program and the library in it. Not
 * for the sanitizer build, which has its own.
 */
#include "check.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "layers.h"
#include "zero_call.h"

/* ---- the allocator in between ---- */

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *memory, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);
extern void __libc_free(void *memory);

/* From `watch` to `stop`, in all threads. */
static struct {
    bool on;
    int64_t allocations;
    int64_t bytes;
    int64_t freed; /* allocations, not bytes */
    int64_t
        workspaces; /* those that begin at a cache line: the library's, and nobody else's here */
    int64_t workspace_bytes;
    int64_t refuse; /* which of these to refuse, counted from 1; 0: none */
} seen;

static void watch(int64_t refuse)
{
    memset(&seen, 0, sizeof seen);
    seen.refuse = refuse;
    __atomic_store_n(&seen.on, true, __ATOMIC_SEQ_CST);
}

static void stop(void)
{
    __atomic_store_n(&seen.on, false, __ATOMIC_SEQ_CST);
}

/* False if this allocation is to be refused. */
static bool note(size_t alignment, size_t size)
{
    if (!__atomic_load_n(&seen.on, __ATOMIC_SEQ_CST)) return true;
    __atomic_add_fetch(&seen.allocations, 1, __ATOMIC_SEQ_CST);
    __atomic_add_fetch(&seen.bytes, (int64_t)size, __ATOMIC_SEQ_CST);
    if (alignment < 64) return true;
    __atomic_add_fetch(&seen.workspace_bytes, (int64_t)size, __ATOMIC_SEQ_CST);
    return __atomic_add_fetch(&seen.workspaces, 1, __ATOMIC_SEQ_CST) != seen.refuse;
}

void *malloc(size_t size)
{
    return note(0, size) ? __libc_malloc(size) : NULL;
}

void *calloc(size_t count, size_t size)
{
    return note(0, count * size) ? __libc_calloc(count, size) : NULL;
}

void *realloc(void *memory, size_t size)
{
    return note(0, size) ? __libc_realloc(memory, size) : NULL;
}

void *aligned_alloc(size_t alignment, size_t size)
{
    return note(alignment, size) ? __libc_memalign(alignment, size) : NULL;
}

int posix_memalign(void **memory, size_t alignment, size_t size)
{
    if (!note(alignment, size)) return ENOMEM;
    *memory = __libc_memalign(alignment, size);
    return *memory == NULL ? ENOMEM : 0;
}

void free(void *memory)
{
    if (memory != NULL && __atomic_load_n(&seen.on, __ATOMIC_SEQ_CST))
        __atomic_add_fetch(&seen.freed, 1, __ATOMIC_SEQ_CST);
    __libc_free(memory);
}

/* ---- refused ---- */

/* Three channels on two threads: too few to give each thread its own, so that the operation needs memory. */
static fixture needy(int dtype, int layout)
{
    const bn_problem problem = BN_PROBLEM_2D(dtype, layout, 4, 3, 100, 100);
    return fixture_make(problem, PLACE_END);
}

typedef bn_status operation(fixture *f);
static bn_status training(fixture *f)
{
    return bn_forward_training(&f->problem, &f->training);
}
static bn_status backward(fixture *f)
{
    return bn_backward(&f->problem, &f->backward);
}

/* The same in two parts; a first one that is refused writes nothing. */
enum { MOST_CHANNELS = 100 };
static double kept[3][MOST_CHANNELS];

static void check_kept(void)
{
    for (int i = 0; i < 3; i++) check(kept[i][0] == -7, "without memory a half wrote");
}

static bn_status training_in_halves(fixture *f)
{
    bn_moments m = BN_MOMENTS_INIT;
    m.channels = f->grid.channels;
    m.mean = kept[0], m.mean_rest = kept[1], m.m2 = kept[2];
    kept[0][0] = kept[1][0] = kept[2][0] = -7;
    const bn_status status =
        bn_moments_compute(&f->problem, f->input.data, f->input.count, NULL, &m);
    if (status == BN_STATUS_OK) return bn_normalize(&f->problem, &m, &f->training);
    check_kept();
    return status;
}

static bn_status backward_in_halves(fixture *f)
{
    bn_gradient_sums s = BN_GRADIENT_SUMS_INIT;
    s.channels = f->grid.channels;
    s.sum_dy = kept[0], s.sum_dy_xmu = kept[1];
    kept[0][0] = kept[1][0] = kept[2][0] = -7;
    const bn_status status = bn_backward_reduce(&f->problem, &f->backward, &s);
    if (status == BN_STATUS_OK) return bn_backward_apply(&f->problem, &s, &f->backward);
    check_kept();
    return status;
}

/* Refuses the first, second, ... allocation until there are no more; how many there were. */
static int64_t refuse_in_turn(fixture *f, operation *run)
{
    for (int64_t turn = 1;; turn++) {
        fixture_recall(f);
        const bn_forward_training_args before = f->training;
        watch(turn);
        const bn_status status = run(f);
        stop();
        if (seen.workspaces < turn) {
            check_ok(status, "with all memory");
            return turn - 1;
        }
        check_refused(status, BN_STATUS_OUT_OF_MEMORY, "allocate|bytes");
        check(fixture_changed(f) == NULL, "%s: without memory %s changed",
              problem_text(&f->problem), fixture_changed(f));
        check(memcmp(&before, &f->training, sizeof before) == 0, "the args changed");
        check(turn < 100, "there is no end to it");
    }
}

static void a_refused_workspace_changes_nothing(void **state)
{
    (void)state;
    bn_set_num_threads(2);
    int64_t refused = 0;
    for (int dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT64; dtype++)
        for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++) {
            fixture f = needy(dtype, layout);
            run_training(&f); /* OpenMP has its threads from here on */
            fixture_remember(&f);
            refused += refuse_in_turn(&f, training);
            refused += refuse_in_turn(&f, backward);
            const int64_t halves =
                refuse_in_turn(&f, training_in_halves) + refuse_in_turn(&f, backward_in_halves);
            check(halves == 4, "each of 4 halves has a workspace, but %lld were there to refuse",
                  (long long)halves);
            guarded_free_all();
        }
    check(refused >= 4, "only %lld allocations were there to refuse: this test needs other shapes",
          (long long)refused);
}

/* The activation's mask, and memory for the lengths', are no exception; 9 * 3 * 301 values end within a byte. */
static void a_refused_workspace_changes_no_extras(void **state)
{
    (void)state;
    static const int64_t sizes[] = { 9, 3, 301 };
    static const extras kinds[] = {
        { .activation = BN_ACTIVATION_RELU, .residual = true, .mask = true },
        { .activation = BN_ACTIVATION_LEAKY_RELU, .slope = 2, .lengths = true },
    };
    bn_set_num_threads(2);
    for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++)
        for (size_t k = 0; k < LENGTH(kinds); k++) {
            fixture f = fixture_make(problem_of(BN_DTYPE_FLOAT32, layout, 3, sizes), PLACE_END);
            fixture_add_extras(&f);
            fixture_use(&f, kinds[k]);
            run_training(&f);
            memset(f.bits, 0xFF, (size_t)f.bits_count);
            fixture_remember(&f);
            const int64_t forwards =
                refuse_in_turn(&f, training) + refuse_in_turn(&f, training_in_halves);
            check(forwards >= 2, "only %lld allocations were there to refuse", (long long)forwards);
            const int64_t backwards = refuse_in_turn(&f, backward);
            check(!kinds[k].lengths || (forwards >= 4 && backwards >= 1),
                  "lengths need memory: %lld and %lld allocations", (long long)forwards,
                  (long long)backwards);
            guarded_free_all();
        }
}

static void a_refused_layer_is_none(void **state)
{
    (void)state;
    bn_layer_options options = BN_LAYER_OPTIONS_INIT;
    options.num_features = 1000;
    for (int64_t turn = 1;; turn++) {
        bn_layer *layer = (bn_layer *)&options;
        watch(turn);
        const bn_status status = bn_layer_create(&options, &layer);
        stop();
        if (seen.workspaces < turn) {
            check_ok(status, "bn_layer_create");
            bn_layer_destroy(layer);
            check(turn > 1, "a layer of 1000 channels needs no memory");
            return;
        }
        check_refused(status, BN_STATUS_OUT_OF_MEMORY, "allocate|bytes");
        check(layer == (bn_layer *)&options, "*layer was set");
    }
}

static void a_layer_without_memory_stays_as_it_is(void **state)
{
    (void)state;
    bn_set_num_threads(2);
    int64_t refused = 0;
    for (int training_mode = 0; training_mode < 2; training_mode++)
        for (int64_t turn = 1;; turn++) {
            fixture f = needy(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW);
            run_training(&f);
            const bn_layer_options options = options_for(&f);
            bn_layer *layer = layer_with_values(&f, &options);
            check_ok(bn_layer_set_training(layer, training_mode), "set_training");
            const state_bytes before = state_of(layer);
            fixture_remember(&f);
            watch(turn);
            const bn_status status = layer_forward(layer, &f);
            stop();
            const bool done = seen.workspaces < turn;
            if (done) {
                check_ok(status, "bn_layer_forward");
                /* Backward needs memory of its own, and can be tried again. */
                watch(1);
                const bn_status first = layer_backward(layer, &f);
                stop();
                if (seen.workspaces > 0 && first != BN_STATUS_OK)
                    check_refused(first, BN_STATUS_OUT_OF_MEMORY, "allocate");
                check_ok(layer_backward(layer, &f), "bn_layer_backward");
            } else {
                check_refused(status, BN_STATUS_OUT_OF_MEMORY, "allocate|bytes");
                refused++;
                const state_bytes after = state_of(layer);
                check(memcmp(before.bytes, after.bytes, (size_t)after.size) == 0,
                      "the layer changed");
                check(fixture_changed(&f) == NULL, "%s changed", fixture_changed(&f));
                free(after.bytes);
                check_refused(layer_backward(layer, &f), BN_STATUS_NO_FORWARD, "forward");
            }
            free(before.bytes);
            bn_layer_destroy(layer);
            guarded_free_all();
            if (done) break;
        }
    check(refused >= 2, "only %lld allocations were refused", (long long)refused);
}

static void a_state_without_memory(void **state)
{
    (void)state;
    bn_layer_options options = BN_LAYER_OPTIONS_INIT;
    options.num_features = 100;
    bn_layer *layer = layer_of(&options), *made = NULL;
    const state_bytes saved = state_of(layer);
    watch(1);
    const bn_status status = bn_layer_create_from_state(saved.bytes, saved.size, &made);
    stop();
    check_refused(status, BN_STATUS_OUT_OF_MEMORY, "allocate|bytes");
    check(made == NULL, "*layer was set");
    free(saved.bytes);
    bn_layer_destroy(layer);
}

/* A number of channels that nobody has backed by data: a state of 92 bytes may say any. */
static void channels_alone_take_no_memory(void **state)
{
    (void)state;
    enum { FEW_BYTES = 4096 };
    const int64_t channels = (int64_t)1 << 50;
    bn_layer_options options = BN_LAYER_OPTIONS_INIT;
    options.num_features = channels;
    options.has_weight = options.has_bias = options.track_running_stats = 0;
    bn_layer *layer = layer_of(&options), *made = NULL;
    const state_bytes saved = state_of(layer);
    check(saved.size == 92, "the state has %lld bytes", (long long)saved.size);
    const bn_problem one = BN_PROBLEM_MATRIX(BN_DTYPE_FLOAT32, 1, channels);
    const bn_problem none = BN_PROBLEM_1D(BN_DTYPE_FLOAT32, BN_LAYOUT_NHWC, 2, channels, 0);
    float value = 0, result = 0;
    double saved_mean = 0;
    watch(0);
    check_ok(bn_layer_create_from_state(saved.bytes, saved.size, &made), "create_from_state");
    for (int training = 0; training < 2; training++) {
        check_ok(bn_layer_set_training(made, training), "set_training");
        check_refused(bn_layer_forward(made, &one, NULL, 0, NULL, 0), BN_STATUS_NULL_POINTER,
                      "input");
        check_refused(bn_layer_forward(made, &one, &value, 1, &result, 1), BN_STATUS_COUNT_MISMATCH,
                      "input.count|1|1125899906842624");
        check_refused(
            bn_layer_backward(made, &one, &value, 1, &value, 1, NULL, 0, NULL, 0, NULL, 0),
            training ? BN_STATUS_LAYER_MISMATCH : BN_STATUS_NO_FORWARD, "forward");
        /* An empty batch has no values either. */
        check_ok(bn_layer_forward(made, &none, NULL, 0, NULL, 0), "an empty forward");
        check_ok(bn_layer_backward(made, &none, NULL, 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0),
                 "an empty backward");
        bn_layer_forward_args again = BN_LAYER_FORWARD_ARGS_INIT;
        again.pass = BN_PASS_RECOMPUTE;
        check_ok(bn_layer_forward_with(made, &none, &again), "an empty recomputation");
        check_refused(bn_layer_get_saved_mean(made, &saved_mean, 1), BN_STATUS_COUNT_MISMATCH,
                      "count|1|1125899906842624");
    }
    stop();
    check(seen.bytes < FEW_BYTES, "%lld bytes for no values", (long long)seen.bytes);
    free(saved.bytes);
    bn_layer_destroy(layer);
    bn_layer_destroy(made);
}

/* Until a forward had values, its statistics are 0. */
static void after_an_empty_batch_comes_another(void **state)
{
    (void)state;
    bn_layer_options options = BN_LAYER_OPTIONS_INIT;
    options.num_features = 2;
    options.track_running_stats = 0;
    bn_layer *layer = layer_of(&options);
    const bn_problem none = BN_PROBLEM_MATRIX(BN_DTYPE_FLOAT32, 0, 2);
    const bn_problem some = BN_PROBLEM_MATRIX(BN_DTYPE_FLOAT32, 2, 2);
    const float input[] = { 1, 10, 3, 30 };
    float output[4], gradient[2] = { 7, 7 };
    double mean[2] = { 7, 7 }, invstd[2] = { 7, 7 };
    check_ok(bn_layer_forward(layer, &none, NULL, 0, NULL, 0), "an empty forward");
    check_ok(bn_layer_get_saved_mean(layer, mean, 2), "get_saved_mean");
    check_ok(bn_layer_get_saved_invstd(layer, invstd, 2), "get_saved_invstd");
    check(mean[0] == 0 && mean[1] == 0 && invstd[0] == 0 && invstd[1] == 0, "not 0");
    check_ok(bn_layer_backward(layer, &none, NULL, 0, NULL, 0, NULL, 0, gradient, 2, NULL, 0),
             "an empty backward");
    check(gradient[0] == 0 && gradient[1] == 0, "grad_weight is %g", gradient[0]);
    check_ok(bn_layer_forward(layer, &some, input, 4, output, 4), "a forward");
    check_ok(bn_layer_get_saved_mean(layer, mean, 2), "get_saved_mean");
    check(mean[0] == 2 && mean[1] == 20, "means %g, %g", mean[0], mean[1]);
    bn_layer_destroy(layer);
}

/* ---- none in the steady state ---- */

static void the_steady_state_allocates_nothing(void **state)
{
    (void)state;
    for (int32_t threads = 1; threads <= 2; threads++)
        for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++) {
            bn_set_num_threads(threads);
            fixture f = needy(BN_DTYPE_FLOAT32, layout);
            const bn_layer_options options = options_for(&f);
            bn_layer *layer = layer_with_values(&f, &options);
            for (int step = 0; step < 10; step++) {
                if (step == 3) watch(0);
                check_ok(bn_layer_set_training(layer, step % 3 != 0), "set_training");
                check_ok(layer_forward(layer, &f), "bn_layer_forward");
                check_ok(layer_backward(layer, &f), "bn_layer_backward");
            }
            stop();
            check(seen.allocations == 0, "%s on %d threads: %lld allocations, %lld bytes",
                  problem_text(&f.problem), threads, (long long)seen.allocations,
                  (long long)seen.bytes);
            bn_layer_destroy(layer);
            guarded_free_all();
        }
}

/* What a layer took is given back, also by one that could not be made or whose calls failed. */
static void nothing_is_left_behind(void **state)
{
    (void)state;
    bn_set_num_threads(2);
    fixture f = needy(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW);
    run_training(&f); /* OpenMP has its threads from here on */
    const bn_layer_options options = options_for(&f);
    bn_layer *first = layer_with_values(&f, &options);
    const state_bytes saved = state_of(first);
    bn_layer_destroy(first);
    for (int64_t refuse = 0; refuse < 5; refuse++) {
        bn_layer *layer = NULL, *made = NULL;
        watch(refuse);
        const bn_status status = bn_layer_create(&options, &layer);
        if (status == BN_STATUS_OK) {
            layer_forward(layer, &f);
            layer_backward(layer, &f);
            bn_layer_load_state(layer, saved.bytes, saved.size);
            bn_layer_load_state(layer, saved.bytes, saved.size - 1);
            bn_layer_destroy(layer);
        }
        if (bn_layer_create_from_state(saved.bytes, saved.size, &made) == BN_STATUS_OK)
            bn_layer_destroy(made);
        training(&f);
        backward(&f);
        stop();
        check(seen.allocations > 2, "only %lld allocations", (long long)seen.allocations);
        /* A refused one has nothing to free. */
        const int64_t refused = refuse > 0 && seen.workspaces >= refuse;
        check(seen.allocations - refused == seen.freed,
              "%lld allocations, %lld refused, %lld freed", (long long)seen.allocations,
              (long long)refused, (long long)seen.freed);
    }
    free(saved.bytes);
}

/* Errors are told without memory, too. */
static void errors_allocate_nothing(void **state)
{
    (void)state;
    fixture f = needy(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW);
    f.training.weight.count = 17;
    f.inference.epsilon = -1;
    watch(0);
    const bn_status one = training(&f);
    const bn_status two = bn_forward_inference(&f.problem, &f.inference);
    stop();
    check(one == BN_STATUS_COUNT_MISMATCH && two == BN_STATUS_EPSILON, "%s, %s",
          bn_status_name(one), bn_status_name(two));
    check(seen.allocations == 0, "%lld allocations", (long long)seen.allocations);
}

static void explaining_allocates_nothing(void **state)
{
    (void)state;
    static const int64_t sizes[] = { 4000, 3000, 100, 100 };
    const bn_problem problem = problem_of(BN_DTYPE_FLOAT32, BN_LAYOUT_NHWC, 4, sizes);
    for (bn_operation op = BN_OPERATION_FORWARD_TRAINING; op <= BN_OPERATION_BACKWARD_FROZEN;
         op++) {
        const bn_explain_args args = { BN_EXPLAIN_ARGS_DEFAULTS, .operation = op,
                                       .activation = BN_LEAKY_RELU(0.1), .residual = 1, .mask = 1 };
        bn_plan_info info = BN_PLAN_INFO_INIT;
        char text[BN_EXPLAIN_TEXT_SIZE];
        watch(0);
        const bn_status one = bn_explain(&problem, &args, &info);
        const bn_status two = bn_explain_text(&problem, &args, text, sizeof text);
        stop();
        check_ok(one, "bn_explain");
        check_ok(two, "bn_explain_text");
        check(seen.allocations == 0, "%lld allocations", (long long)seen.allocations);
    }
}

/* ---- bounded ---- */

/* What a call may take: a constant, something a channel, something a thread; nothing a value. */
static int64_t allowed_bytes(int64_t channels, int64_t threads)
{
    return (64 << 10) + 4096 * channels + 4096 * threads;
}

static void no_memory_grows_with_the_batch(void **state)
{
    (void)state;
    static const int64_t sizes[][4] = {
        { 2, 3, 100, 100 }, { 200, 3, 100, 100 }, { 1, 1, 1500, 1500 }, { 20, 1, 400, 400 },
        { 4000, 64, 2, 2 }, { 300000, 3, 1, 1 },  { 64, 100, 14, 14 },
    };
    for (size_t i = 0; i < LENGTH(sizes); i++)
        for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++)
            for (int32_t threads = 1; threads <= 8; threads += 7) {
                bn_set_num_threads(threads);
                fixture f =
                    fixture_make(problem_of(BN_DTYPE_FLOAT32, layout, 4, sizes[i]), PLACE_END);
                run_training(&f); /* OpenMP has its threads from here on */
                const int64_t allowed = allowed_bytes(sizes[i][1], threads);
                operation *const operations[] = { training, backward, training_in_halves,
                                                  backward_in_halves };
                for (int op = 0; op < 4; op++) {
                    watch(0);
                    const bn_status status = operations[op](&f);
                    stop();
                    check_ok(status, "a large call");
                    check(seen.bytes <= allowed,
                          "%s on %d threads: %s took %lld bytes, at most %lld",
                          problem_text(&f.problem), threads, op % 2 == 0 ? "training" : "backward",
                          (long long)seen.bytes, (long long)allowed);
                }
                watch(0);
                const bn_status status = bn_forward_inference(&f.problem, &f.inference);
                stop();
                check_ok(status, "inference");
                check(seen.bytes == 0, "inference took %lld bytes", (long long)seen.bytes);
                guarded_free_all();
            }
}

/* bn_explain's workspace is what a call takes, in whole cache lines; the mask made of lengths lies by itself. */
static int64_t check_takes_what_is_explained(const bn_problem *problem, const bn_explain_args *args)
{
    bn_plan_info info = BN_PLAN_INFO_INIT;
    check_ok(bn_explain(problem, args, &info), "bn_explain");
    zero_call call = zero_call_make(problem, args);
    check_ok(zero_call_run(&call), "a call"); /* OpenMP has its threads from here on */
    watch(0);
    const bn_status status = zero_call_run(&call);
    stop();
    check_ok(status, "a call");
    const int64_t mask = args->lengths ? problem->sizes[0] * problem->sizes[2] : 0;
    const int64_t lines = (mask + 63) / 64 + (info.workspace_bytes - mask + 63) / 64;
    check(info.workspace_bytes >= mask && seen.workspace_bytes == lines * 64,
          "%s on %d threads: took %lld bytes, explained %lld", asked_text(problem, args),
          bn_get_num_threads(), (long long)seen.workspace_bytes, (long long)info.workspace_bytes);
    guarded_free_all();
    return seen.workspace_bytes;
}

static void calls_take_what_is_explained(void **state)
{
    (void)state;
    static const int64_t sizes[][3] = {
        { 2, 3, 10000 }, { 1, 1, 300000 }, { 64, 100, 49 }, { 4, 2, 9 }
    };
    static const bn_explain_args kinds[] = {
        { BN_EXPLAIN_ARGS_DEFAULTS },
        { BN_EXPLAIN_ARGS_DEFAULTS, .activation = BN_RELU, .residual = 1, .activation_mask = 1 },
        { BN_EXPLAIN_ARGS_DEFAULTS, .activation = BN_LEAKY_RELU(0.5), .mask = 1 },
        { BN_EXPLAIN_ARGS_DEFAULTS, .residual = 1, .lengths = 1 },
        { .struct_size = sizeof(bn_explain_args), .grad_input = 1 },
        { .struct_size = sizeof(bn_explain_args), .grad_bias = 1, .activation = BN_RELU },
        { .struct_size = sizeof(bn_explain_args), .residual = 1 },
        { .struct_size = sizeof(bn_explain_args), .lengths = 1 },
    };
    int64_t total = 0;
    for (size_t i = 0; i < LENGTH(sizes); i++)
        for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++)
            for (int dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT16; dtype++)
                for (int32_t threads = 1; threads <= 8; threads += 7)
                    for (size_t kind = 0; kind < LENGTH(kinds); kind++)
                        for (bn_operation op = BN_OPERATION_FORWARD_TRAINING;
                             op <= BN_OPERATION_BACKWARD_FROZEN; op++) {
                            bn_set_num_threads(threads);
                            const bn_problem problem = problem_of(dtype, layout, 3, sizes[i]);
                            bn_explain_args args = kinds[kind];
                            args.operation = op;
                            total += check_takes_what_is_explained(&problem, &args);
                        }
    check(total > 0, "no call took anything");
}

/* The instrument itself: this program's allocations pass through it. */
static void the_allocator_in_between_works(void **state)
{
    (void)state;
    void *memory = NULL;
    watch(1);
    void *volatile plain = malloc(100);
    const int refused = posix_memalign(&memory, 64, 1000);
    stop();
    free(plain);
    check(seen.allocations == 2 && seen.bytes == 1100 && seen.workspaces == 1,
          "it saw %lld allocations of %lld bytes", (long long)seen.allocations,
          (long long)seen.bytes);
    check(refused == ENOMEM && memory == NULL, "it does not refuse");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(the_allocator_in_between_works, fixture_teardown),
        cmocka_unit_test_teardown(a_refused_workspace_changes_nothing, fixture_teardown),
        cmocka_unit_test_teardown(a_refused_workspace_changes_no_extras, fixture_teardown),
        cmocka_unit_test_teardown(a_refused_layer_is_none, fixture_teardown),
        cmocka_unit_test_teardown(a_layer_without_memory_stays_as_it_is, fixture_teardown),
        cmocka_unit_test_teardown(a_state_without_memory, fixture_teardown),
        cmocka_unit_test_teardown(channels_alone_take_no_memory, fixture_teardown),
        cmocka_unit_test_teardown(after_an_empty_batch_comes_another, fixture_teardown),
        cmocka_unit_test_teardown(the_steady_state_allocates_nothing, fixture_teardown),
        cmocka_unit_test_teardown(nothing_is_left_behind, fixture_teardown),
        cmocka_unit_test_teardown(errors_allocate_nothing, fixture_teardown),
        cmocka_unit_test_teardown(explaining_allocates_nothing, fixture_teardown),
        cmocka_unit_test_teardown(no_memory_grows_with_the_batch, fixture_teardown),
        cmocka_unit_test_teardown(calls_take_what_is_explained, fixture_teardown),
    };
    return cmocka_run_group_tests_name("abi: memory", tests, NULL, NULL);
}
