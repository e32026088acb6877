/*
 * The same bits on any number of threads, whosever they are, with any instruction set, after a fork, and
 * in many threads at once; with the plans that the library itself makes.
 */
#include "check.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "layers.h"
#include "pools.h"

/* Shapes that are cut in different ways; all but the first are large enough for several threads. */
static const struct {
    int rank;
    int64_t sizes[5];
} shapes[] = {
    { 4, { 2, 3, 5, 7 } },
    { 4, { 8, 3, 64, 64 } },
    { 4, { 1, 1, 300, 300 } },
    { 4, { 32, 17, 14, 14 } },
    { 4, { 16, 130, 7, 7 } },
    { 2, { 4096, 33 } },
    { 2, { 64, 1500 } },
    { 2, { 100000, 1 } },
    { 5, { 3, 16, 5, 20, 21 } },
    { 3, { 1, 2048, 65 } },
    { 4, { 1, 5, 1, 40009 } },
    { 4, { 8, 16, 170, 170 } }, /* larger than most caches: written past them */
};

static const int32_t threads[] = { 1, 2, 3, 5, 8 };

/* All results of all operations of one fixture, one after the other. */
typedef struct results {
    elements arrays[16];
    int count;
} results;

static void add(results *r, elements from)
{
    r->arrays[r->count++] = guarded_copy(from);
}

static results all_results(fixture *f)
{
    results r = { .count = 0 };
    fixture_recall(f);
    run_training(f);
    add(&r, f->output);
    add(&r, f->saved_mean);
    add(&r, f->saved_invstd);
    add(&r, f->running_mean);
    add(&r, f->running_var);
    fixture_restore_args(f);
    run_backward(f);
    add(&r, f->grad_input);
    add(&r, f->grad_weight);
    add(&r, f->grad_bias);
    run_inference(f);
    add(&r, f->output);
    f->backward.statistics = BN_STATISTICS_RUNNING;
    run_backward(f);
    add(&r, f->grad_input);
    add(&r, f->grad_weight);
    add(&r, f->grad_bias);
    fixture_restore_args(f);
    return r;
}

static void free_results(results *r)
{
    for (int i = 0; i < r->count; i++) guarded_free(r->arrays[i].data);
}

static const char *const result_names[] = {
    "output",      "saved_mean",        "saved_invstd",       "running_mean",
    "running_var", "grad_input",        "grad_weight",        "grad_bias",
    "inference",   "frozen grad_input", "frozen grad_weight", "frozen grad_bias",
};

static int differing(const results *a, const results *b)
{
    for (int i = 0; i < a->count; i++)
        if (elements_first_difference(a->arrays[i], b->arrays[i]) >= 0) return i;
    return -1;
}

static void for_every_shape(void (*test)(fixture *f))
{
    for (size_t s = 0; s < LENGTH(shapes); s++)
        for (int dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT64; dtype++)
            for (int layout = BN_LAYOUT_NCHW; layout <= BN_LAYOUT_NHWC; layout++) {
                if (shapes[s].rank == 2 && layout == BN_LAYOUT_NHWC) continue;
                fixture f = fixture_make(problem_of(dtype, layout, shapes[s].rank, shapes[s].sizes),
                                         (placement)(s % 3));
                fixture_remember(&f);
                test(&f);
                guarded_free_all();
            }
}

static void threads_and_isa(fixture *f)
{
    bn_set_max_isa(BN_ISA_AVX512);
    const bn_isa best = bn_get_isa();
    bn_set_num_threads(1);
    results expected = all_results(f);
    for (bn_isa isa = BN_ISA_GENERIC; isa <= best; isa++)
        for (size_t t = 0; t < LENGTH(threads); t++) {
            /* The generic code is slow; its threads are those of the others. */
            if (isa != best && threads[t] != 1 && threads[t] != 3) continue;
            bn_set_max_isa(isa);
            bn_set_num_threads(threads[t]);
            check(bn_get_isa() == isa, "isa is %d, set to %d", bn_get_isa(), isa);
            results r = all_results(f);
            const int at = differing(&r, &expected);
            check(at < 0, "%s: %s differs with %s and %d threads", problem_text(&f->problem),
                  result_names[at], bn_isa_name(isa), threads[t]);
            free_results(&r);
        }
    if (best < BN_ISA_AVX512 && f->grid.rows * f->grid.inner == 70)
        print_message("skipped on this machine: avx512\n");
}

static void on_any_number_of_threads_with_any_instruction_set(void **state)
{
    (void)state;
    for_every_shape(threads_and_isa);
}

/* Channels that are applied value by value, among others that are not. */
static void extreme_channels(void **state)
{
    (void)state;
    for (size_t s = 0; s < LENGTH(shapes) - 1; s++)
        for (int dtype = BN_DTYPE_FLOAT32; dtype <= BN_DTYPE_FLOAT64; dtype++) {
            const bn_layout layout = s % 2 == 0 ? BN_LAYOUT_NCHW : BN_LAYOUT_NHWC;
            fixture f = fixture_make(problem_of(dtype, layout, shapes[s].rank, shapes[s].sizes),
                                     (placement)(s % 3));
            fixture_make_extreme(&f);
            fixture_remember(&f);
            threads_and_isa(&f);
            guarded_free_all();
        }
}

/* ---- whosever the threads are ---- */

static void with_threads_of(fixture *f, const char *whose, const results *expected)
{
    for (int32_t n = 2; n <= 5; n += 3) {
        bn_set_num_threads(n);
        results r = all_results(f);
        const int at = differing(&r, expected);
        check(at < 0, "%s: %s differs with %d threads of %s", problem_text(&f->problem),
              result_names[at], n, whose);
        free_results(&r);
    }
}

static void every_kind_of_threads(fixture *f)
{
    bn_set_num_threads(1);
    results expected = all_results(f);
    for (bn_threading threading = BN_THREADING_AUTO; threading <= BN_THREADING_SHARED;
         threading++) {
        check(bn_set_threading(threading) == BN_STATUS_OK, "%s", bn_last_error_message());
        with_threads_of(f, bn_get_thread_runtime(), &expected);
    }
    for (size_t p = 0; p < LENGTH(pools); p++) {
        pool_log log = { 0, 0, 0 };
        check(bn_set_thread_pool(pools[p].run, &log) == BN_STATUS_OK, "bn_set_thread_pool");
        with_threads_of(f, pools[p].name, &expected);
        /* Every shape but the first is large enough for several threads. */
        check((log.calls > 0) == (f->grid.rows * f->grid.inner != 70), "%s: the pool had %d calls",
              problem_text(&f->problem), log.calls);
        check(log.widest <= 5, "%d members on 5 threads", log.widest);
    }
    bn_set_thread_pool(NULL, NULL);
}

static void on_anybodys_threads(void **state)
{
    (void)state;
    load_libgomp();
    for_every_shape(every_kind_of_threads);
}

/* The bits depend on the values, not on where they lie in memory. */
static void wherever_the_buffers_lie(void **state)
{
    (void)state;
    for (size_t s = 0; s + 1 < LENGTH(shapes); s++) {
        results r[3];
        for (int where = 0; where < 3; where++) {
            fixture f = fixture_make(
                problem_of(BN_DTYPE_FLOAT32, BN_LAYOUT_NHWC, shapes[s].rank, shapes[s].sizes),
                (placement)where);
            fixture_remember(&f);
            r[where] = all_results(&f);
            const int at = differing(&r[where], &r[0]);
            check(at < 0, "%s: %s differs with placement %d", problem_text(&f.problem),
                  result_names[at], where);
        }
        guarded_free_all();
    }
}

/* ---- after a fork ---- */

static void after_a_fork(void **state)
{
    (void)state;
    const bn_problem problem = BN_PROBLEM_2D(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 8, 3, 64, 64);
    fixture f = fixture_make(problem, PLACE_END);
    fixture_remember(&f);
    bn_set_num_threads(3);
    results expected = all_results(&f); /* the threads are there now */
    for (int child_threads = 1; child_threads <= 3; child_threads += 2) {
        fflush(NULL);
        const pid_t child = fork();
        check(child >= 0, "fork");
        if (child == 0) { /* no cmocka in here: the child only says what it found */
            alarm(60);
            bn_set_num_threads(child_threads);
            fixture_recall(&f);
            if (bn_forward_training(&f.problem, &f.training) != BN_STATUS_OK) _exit(2);
            if (elements_first_difference(f.output, expected.arrays[0]) >= 0) _exit(3);
            if (bn_backward(&f.problem, &f.backward) != BN_STATUS_OK) _exit(4);
            if (elements_first_difference(f.grad_input, expected.arrays[5]) >= 0) _exit(5);
            _exit(0);
        }
        int status = 0;
        check(waitpid(child, &status, 0) == child, "waitpid");
        check(WIFEXITED(status) && WEXITSTATUS(status) == 0,
              "the child with %d threads ended with %s %d", child_threads,
              WIFEXITED(status) ? "exit code" : "signal",
              WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
        /* The parent goes on. */
        results again = all_results(&f);
        check(differing(&again, &expected) < 0, "the parent's results changed after fork");
        free_results(&again);
    }
}

/* ---- many threads, each with a layer of its own ---- */

enum { WORKERS = 4, STEPS = 12 };

typedef struct worker {
    pthread_t thread;
    int number;
    float *input, *output, *grad_output, *grad_input;
    state_bytes state;
    const char *failure;
} worker;

enum { WORKER_VALUES = 4 * 6 * 50 * 50 }; /* large enough for several OpenMP threads */

static void *work(void *context)
{
    worker *w = context;
    const bn_problem problem = BN_PROBLEM_2D(
        BN_DTYPE_FLOAT32, w->number % 2 == 0 ? BN_LAYOUT_NCHW : BN_LAYOUT_NHWC, 4, 6, 50, 50);
    bn_layer_options options = BN_LAYER_OPTIONS_INIT;
    options.num_features = 6;
    bn_layer *layer = NULL;
    w->failure = "bn_layer_create";
    if (bn_layer_create(&options, &layer) != BN_STATUS_OK) return NULL;
    for (int step = 0; step < STEPS; step++) {
        elements_fill_normal((elements){ w->input, WORKER_VALUES, false },
                             (uint64_t)(1000 * w->number + step), w->number, 1);
        elements_fill_normal((elements){ w->grad_output, WORKER_VALUES, false },
                             (uint64_t)(1000 * w->number + step + 500), 0, 1);
        w->failure = "bn_layer_forward";
        if (bn_layer_forward(layer, &problem, w->input, WORKER_VALUES, w->output, WORKER_VALUES) !=
            BN_STATUS_OK)
            return NULL;
        float weight_gradient[6];
        w->failure = "bn_layer_backward";
        if (bn_layer_backward(layer, &problem, w->input, WORKER_VALUES, w->grad_output,
                              WORKER_VALUES, w->grad_input, WORKER_VALUES, weight_gradient, 6, NULL,
                              0) != BN_STATUS_OK)
            return NULL;
        float *weight = bn_layer_weight_data(layer);
        for (int c = 0; c < 6; c++) weight[c] -= 1e-4f * weight_gradient[c];
        /* A failure in one thread is none of the others' business. */
        w->failure = "the error message";
        if (bn_layer_forward(layer, &problem, w->input, 1000 + w->number, w->output,
                             WORKER_VALUES) != BN_STATUS_COUNT_MISMATCH)
            return NULL;
        char number[16];
        snprintf(number, sizeof number, "%d", 1000 + w->number);
        if (strstr(bn_last_error_message(), number) == NULL) return NULL;
    }
    w->failure = "state";
    if (bn_layer_state_size(layer, &w->state.size) != BN_STATUS_OK) return NULL;
    w->state.bytes = malloc((size_t)w->state.size);
    if (bn_layer_save_state(layer, w->state.bytes, w->state.size) != BN_STATUS_OK) return NULL;
    bn_layer_destroy(layer);
    w->failure = NULL;
    return NULL;
}

static float *values(void)
{
    return guarded(WORKER_VALUES * sizeof(float), sizeof(float), PLACE_END);
}

static void many_threads_each_with_its_layer(void **state)
{
    (void)state;
    bn_set_num_threads(2);
    worker together[WORKERS], alone[WORKERS];
    for (int i = 0; i < WORKERS; i++) {
        together[i] = (worker){ .number = i,
                                .input = values(),
                                .output = values(),
                                .grad_output = values(),
                                .grad_input = values() };
        alone[i] = (worker){ .number = i,
                             .input = values(),
                             .output = values(),
                             .grad_output = values(),
                             .grad_input = values() };
    }
    for (int i = 0; i < WORKERS; i++)
        check(pthread_create(&together[i].thread, NULL, work, &together[i]) == 0, "pthread_create");
    for (int i = 0; i < WORKERS; i++)
        check(pthread_join(together[i].thread, NULL) == 0, "pthread_join");
    for (int i = 0; i < WORKERS; i++) {
        work(&alone[i]);
        check(together[i].failure == NULL && alone[i].failure == NULL, "worker %d failed: %s", i,
              together[i].failure ? together[i].failure : alone[i].failure);
        check(memcmp(together[i].output, alone[i].output, WORKER_VALUES * sizeof(float)) == 0 &&
                  memcmp(together[i].grad_input, alone[i].grad_input,
                         WORKER_VALUES * sizeof(float)) == 0 &&
                  memcmp(together[i].state.bytes, alone[i].state.bytes,
                         (size_t)alone[i].state.size) == 0,
              "worker %d computed something else than alone", i);
        free(together[i].state.bytes);
        free(alone[i].state.bytes);
    }
    check(guarded_intact(), "something was written beside a buffer");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(on_any_number_of_threads_with_any_instruction_set,
                                  fixture_teardown),
        cmocka_unit_test_teardown(extreme_channels, fixture_teardown),
        cmocka_unit_test_teardown(wherever_the_buffers_lie, fixture_teardown),
        cmocka_unit_test_teardown(after_a_fork, fixture_teardown),
        cmocka_unit_test_teardown(many_threads_each_with_its_layer, fixture_teardown),
        /* libgomp comes into the process here, and stays. */
        cmocka_unit_test_teardown(on_anybodys_threads, fixture_teardown),
        cmocka_unit_test_teardown(after_a_fork, fixture_teardown),
        cmocka_unit_test_teardown(many_threads_each_with_its_layer, fixture_teardown),
    };
    return cmocka_run_group_tests_name("abi: reproducibility", tests, NULL, NULL);
}
