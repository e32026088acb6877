/*
 * Settings of the process: threads, instruction sets, version, and the environment variable.
 */
#include "check.h"

#include <batchnorm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fixture.h"
#include "pools.h"

static void version(void **state)
{
    (void)state;
    char expected[48];
    snprintf(expected, sizeof expected, "%d.%d.%d", BN_VERSION_MAJOR, BN_VERSION_MINOR,
             BN_VERSION_PATCH);
    check(strcmp(bn_version(), expected) == 0, "the library is %s, the header %s", bn_version(),
          expected);
    check(bn_version() == bn_version(), "the text moves");
}

static void threads(void **state)
{
    (void)state;
    const int32_t usual = bn_get_num_threads();
    check(usual >= 1, "%d threads by default", usual);
    for (int32_t n = 1; n <= 9; n++) {
        check(bn_set_num_threads(n) == BN_STATUS_OK, "%d threads: %s", n, bn_last_error_message());
        check(bn_get_num_threads() == n, "%d threads, set to %d", bn_get_num_threads(), n);
    }
    check_refused(bn_set_num_threads(-1), BN_STATUS_INVALID_OPTION, "threads|-1|0");
    check_refused(bn_set_num_threads(INT32_MIN), BN_STATUS_INVALID_OPTION, "threads|-2147483648");
    check(bn_get_num_threads() == 9, "a refused setting changed the threads to %d",
          bn_get_num_threads());
    /* Any number may be set; what is told, and used, is what the machine can run. */
    bn_set_num_threads(INT32_MAX);
    const int32_t most = bn_get_num_threads();
    check(most >= 64 && most < 100000, "%d threads, set to %d", most, INT32_MAX);
    bn_set_num_threads(1000000);
    check(bn_get_num_threads() == most, "%d threads, before %d", bn_get_num_threads(), most);
    check(bn_set_num_threads(0) == BN_STATUS_OK, "0 threads: %s", bn_last_error_message());
    check(bn_get_num_threads() == usual, "back to the default: %d, was %d", bn_get_num_threads(),
          usual);
}

/* libomp ends a process whose threads it cannot start; a pool is not asked for more members either. */
static void no_number_of_threads_is_too_large(void **state)
{
    (void)state;
    const bn_problem problem = BN_PROBLEM_2D(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 1000, 64, 8, 8);
    fixture f = fixture_make(problem, PLACE_END);
    pool_log log = { .calls = 0 };
    bn_set_num_threads(1000000);
    const int32_t most = bn_get_num_threads();
    for (int on_pool = 0; on_pool < 2; on_pool++) {
        if (on_pool) bn_set_thread_pool(pool_forward, &log);
        run_training(&f);
        run_inference(&f);
        run_backward(&f);
        const bn_explain_args asked = asking(BN_OPERATION_BACKWARD);
        bn_plan_info plan = BN_PLAN_INFO_INIT;
        check(bn_explain(&problem, &asked, &plan) == BN_STATUS_OK, "explain");
        check(plan.threads <= most, "%d threads of at most %d", plan.threads, most);
    }
    check(log.widest > 2 && log.widest <= most, "%d members of at most %d", log.widest, most);
}

/* The first part runs before there is another OpenMP runtime in the process. */
static void threading(void **state)
{
    (void)state;
    check(bn_get_threading() == BN_THREADING_AUTO, "threading is %d", bn_get_threading());
    const char *own = bn_get_thread_runtime();
    check(strncmp(own, "libomp", 6) == 0 || strncmp(own, "libiomp5", 8) == 0, "it is %s", own);
    check_refused(bn_set_threading(BN_THREADING_SHARED), BN_STATUS_NO_SHARED_RUNTIME,
                  "threading is 2 (shared)|no OpenMP runtime|0 (auto) or 1 (own)");
    check(bn_get_threading() == BN_THREADING_AUTO, "a refused setting made it %d",
          bn_get_threading());

    load_libgomp();
    check(strcmp(bn_get_thread_runtime(), "libgomp.so.1") == 0, "auto is %s",
          bn_get_thread_runtime());
    for (bn_threading kind = BN_THREADING_AUTO; kind <= BN_THREADING_SHARED; kind++) {
        check(bn_set_threading(kind) == BN_STATUS_OK, "%d: %s", kind, bn_last_error_message());
        check(bn_get_threading() == kind, "%d, set to %d", bn_get_threading(), kind);
        const char *expected = kind == BN_THREADING_OWN ? own : "libgomp.so.1";
        check(strcmp(bn_get_thread_runtime(), expected) == 0, "%d is %s, expected %s", kind,
              bn_get_thread_runtime(), expected);
    }
    check_refused(bn_set_threading(BN_THREADING_POOL), BN_STATUS_INVALID_OPTION,
                  "threading|3|0 (auto)|1 (own)|2 (shared)");
    check_refused(bn_set_threading(4), BN_STATUS_INVALID_OPTION, "threading|4|0|1|2");
    check_refused(bn_set_threading(-1), BN_STATUS_INVALID_OPTION, "threading|-1|0|1|2");
    check(bn_get_threading() == BN_THREADING_SHARED, "a refused setting made it %d",
          bn_get_threading());

    check(bn_set_thread_pool(pool_forward, NULL) == BN_STATUS_OK, "%s", bn_last_error_message());
    check(bn_get_threading() == BN_THREADING_POOL, "threading is %d", bn_get_threading());
    check(strcmp(bn_get_thread_runtime(), "pool") == 0, "it is %s", bn_get_thread_runtime());
    check(bn_set_thread_pool(NULL, NULL) == BN_STATUS_OK, "%s", bn_last_error_message());
    check(bn_get_threading() == BN_THREADING_AUTO, "threading is %d", bn_get_threading());
    bn_set_thread_pool(pool_forward, NULL);
    bn_set_threading(BN_THREADING_OWN);
    check(strcmp(bn_get_thread_runtime(), own) == 0, "it is %s", bn_get_thread_runtime());
}

/* What a person set for the runtime in use counts. */
static void threads_of_a_shared_runtime(void **state)
{
    (void)state;
    load_libgomp();
    const int32_t usual = bn_get_num_threads();
    libgomp_set_threads(3);
    check(bn_get_num_threads() == 3, "%d threads, libgomp was set to 3", bn_get_num_threads());
    bn_set_threading(BN_THREADING_OWN);
    check(bn_get_num_threads() != 3 || usual == 3, "libgomp's setting reached libomp");
    libgomp_set_threads(usual);
}

static void instruction_sets(void **state)
{
    (void)state;
    const bn_isa best = bn_get_isa();
    check(best >= BN_ISA_GENERIC && best <= BN_ISA_AVX512, "isa is %d", best);
    for (bn_isa isa = BN_ISA_GENERIC; isa <= BN_ISA_AVX512; isa++) {
        check(bn_set_max_isa(isa) == BN_STATUS_OK, "isa %d: %s", isa, bn_last_error_message());
        const bn_isa expected = isa < best ? isa : best;
        check(bn_get_isa() == expected, "isa is %d, capped at %d of %d", bn_get_isa(), isa, best);
    }
    bn_set_max_isa(BN_ISA_GENERIC);
    check_refused(bn_set_max_isa(3), BN_STATUS_INVALID_OPTION, "isa|3|0|1|2");
    check_refused(bn_set_max_isa(-1), BN_STATUS_INVALID_OPTION, "isa|-1|0|1|2");
    check(bn_get_isa() == BN_ISA_GENERIC, "a refused setting changed the isa to %d", bn_get_isa());
    bn_set_max_isa(BN_ISA_AVX512);
    check(bn_get_isa() == best, "isa is %d, was %d", bn_get_isa(), best);
}

static void instruction_set_names(void **state)
{
    (void)state;
    static const char *const names[] = { "generic", "avx2", "avx512" };
    for (int isa = 0; isa < 3; isa++)
        check(strcmp(bn_isa_name(isa), names[isa]) == 0, "isa %d is %s", isa, bn_isa_name(isa));
    check(strcmp(bn_isa_name(3), "unknown") == 0 && strcmp(bn_isa_name(-1), "unknown") == 0,
          "unknown sets are %s and %s", bn_isa_name(3), bn_isa_name(-1));
}

/* This program again, which then tells its instruction set by the exit code. */
static int isa_of_child(const char *environment)
{
    fflush(NULL);
    const pid_t child = fork();
    check(child >= 0, "fork");
    if (child == 0) {
        if (environment == NULL)
            unsetenv("BATCHNORM_MAX_ISA");
        else
            setenv("BATCHNORM_MAX_ISA", environment, 1);
        execl("/proc/self/exe", "test_machine", "tell-isa", (char *)NULL);
        _exit(98);
    }
    int status = 0;
    check(waitpid(child, &status, 0) == child, "waitpid");
    check(WIFEXITED(status) && WEXITSTATUS(status) < 90, "the child ended with status %x",
          (unsigned)status);
    return WEXITSTATUS(status);
}

static void the_environment_caps_the_instruction_set(void **state)
{
    (void)state;
    const int best = isa_of_child(NULL);
    static const char *const names[] = { "generic", "avx2", "avx512" };
    for (int cap = 0; cap < 3; cap++) {
        const int isa = isa_of_child(names[cap]);
        check(isa == (cap < best ? cap : best), "BATCHNORM_MAX_ISA=%s gives isa %d of %d",
              names[cap], isa, best);
    }
    check(isa_of_child("sse9") == best, "an unknown name caps");
    check(isa_of_child("") == best, "an empty name caps");
}

/* This program again, with libomp's number from the environment. */
static void the_environment_s_number_of_threads_has_an_end(void **state)
{
    (void)state;
    static const char *const numbers[] = { "1000000", "0", "64", "65" };
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        fflush(NULL);
        const pid_t child = fork();
        check(child >= 0, "fork");
        if (child == 0) {
            setenv("OMP_NUM_THREADS", numbers[i], 1);
            freopen("/dev/null", "w", stderr); /* libomp says what it thinks of them */
            execl("/proc/self/exe", "test_machine", "use-threads", (char *)NULL);
            _exit(98);
        }
        int status = 0;
        check(waitpid(child, &status, 0) == child, "waitpid");
        check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "OMP_NUM_THREADS=%s: status %x",
              numbers[i], (unsigned)status);
    }
}

static int use_threads(void)
{
    static float values[64 * 64 * 1024];
    const bn_problem problem = BN_PROBLEM_2D(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW, 64, 64, 32, 32);
    bn_forward_training_args args = BN_FORWARD_TRAINING_ARGS_INIT;
    args.input.data = args.output.data = values;
    args.input.count = args.output.count = 64 * 64 * 1024;
    if (bn_get_num_threads() < 1) return 1;
    return bn_forward_training(&problem, &args) == BN_STATUS_OK ? 0 : 2;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "use-threads") == 0) return use_threads();
    if (argc == 2 && strcmp(argv[1], "tell-isa") == 0) return bn_get_isa();
    unsetenv("BATCHNORM_MAX_ISA"); /* whoever runs the tests may have set it */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(version, fixture_teardown),
        cmocka_unit_test_teardown(threads, fixture_teardown),
        cmocka_unit_test_teardown(no_number_of_threads_is_too_large, fixture_teardown),
        cmocka_unit_test_teardown(threading, fixture_teardown),
        cmocka_unit_test_teardown(threads_of_a_shared_runtime, fixture_teardown),
        cmocka_unit_test_teardown(instruction_sets, fixture_teardown),
        cmocka_unit_test_teardown(instruction_set_names, fixture_teardown),
        cmocka_unit_test_teardown(the_environment_caps_the_instruction_set, fixture_teardown),
        cmocka_unit_test_teardown(the_environment_s_number_of_threads_has_an_end, fixture_teardown),
    };
    return cmocka_run_group_tests_name("abi: machine", tests, NULL, NULL);
}
