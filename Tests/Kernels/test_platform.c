/*
 * What the kernels say of the machine, and memory.
 */
#include "check.h"

#include <pthread.h>
#include <string.h>

#include "../../Sources/CBatchNormKernels/leaves.h"
#include "bnk.h"

static void the_instruction_sets_are_ours(void **state)
{
    (void)state;
    const uint32_t isas = bnk_supported_isas();
    check(isas >> BNK_ISA_GENERIC & 1, "generic is not among %x", isas);
    check(isas >> BNK_ISA_COUNT == 0, "sets %x, only %d are known", isas, BNK_ISA_COUNT);
    check(isas == bnk_supported_isas(), "asked twice, answered differently");
#if defined(__x86_64__)
    check(isas >> BNK_ISA_AVX2 & 1 ||
              !(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")),
          "the CPU has AVX2 and FMA, the answer is %x", isas);
#endif
    for (int32_t isa = 0; isa < BNK_ISA_COUNT; isa++)
        for (int32_t half = BNK_HALF_NONE; half <= BNK_HALF_FLOAT16; half++) {
            const bnk_grid grid = { 1, 1, 1, 0, half };
            check(!(isas >> isa & 1) || bnk_leaves_for(isa, &grid) != NULL,
                  "instruction set %d has no leaves for half %d", isa, half);
        }
}

/* Whatever the CPU has and whatever is asked for, what is chosen is one that it has. */
static void a_cap_leaves_what_the_cpu_has(void **state)
{
    (void)state;
    enum { GENERIC = 1 << BNK_ISA_GENERIC, AVX2 = 1 << BNK_ISA_AVX2, AVX512 = 1 << BNK_ISA_AVX512 };
    static const struct {
        uint32_t supported;
        int32_t cap, expected;
    } cases[] = {
        { GENERIC | AVX2 | AVX512, BNK_ISA_AVX512, BNK_ISA_AVX512 },
        { GENERIC | AVX2 | AVX512, BNK_ISA_AVX2, BNK_ISA_AVX2 },
        { GENERIC | AVX2 | AVX512, BNK_ISA_GENERIC, BNK_ISA_GENERIC },
        { GENERIC | AVX2, BNK_ISA_AVX512, BNK_ISA_AVX2 },
        { GENERIC, BNK_ISA_AVX2, BNK_ISA_GENERIC }, /* on another family's CPU */
        /* Sets that do not build on each other: a smaller number is none of a larger one's. */
        { GENERIC | AVX512, BNK_ISA_AVX2, BNK_ISA_AVX512 },
        { GENERIC | AVX512, BNK_ISA_GENERIC, BNK_ISA_GENERIC },
        { GENERIC | AVX2, -1, BNK_ISA_AVX2 },
        { GENERIC | AVX2, BNK_ISA_COUNT, BNK_ISA_AVX2 },
        { GENERIC | AVX2, 1 << 30, BNK_ISA_AVX2 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const int32_t isa = bnk_choose_isa(cases[i].supported, cases[i].cap);
        check(isa == cases[i].expected, "cap %d of %x leaves %d, expected %d", cases[i].cap,
              cases[i].supported, isa, cases[i].expected);
    }
}

/* The number is anybody's; what comes of it can be run. */
static void teams_have_an_end(void **state)
{
    (void)state;
    for (int32_t wanted = 1; wanted <= 64; wanted++)
        check(bnk_most_threads(wanted) == wanted, "%d threads become %d", wanted,
              bnk_most_threads(wanted));
    const int32_t most = bnk_most_threads(INT32_MAX);
    check(most >= 64 && most <= 1 << 16, "a team of %d", most);
    check(bnk_most_threads(most) == most && bnk_most_threads(most + 1) == most,
          "the most is %d, and then %d", most, bnk_most_threads(most + 1));
}

static void caches_grow_with_their_level(void **state)
{
    (void)state;
    const int64_t l1 = bnk_cache_size(1), l2 = bnk_cache_size(2), l3 = bnk_cache_size(3);
    check(l1 >= 4096 && l1 < l2 && l2 <= l3, "L1 %lld, L2 %lld, L3 %lld", (long long)l1,
          (long long)l2, (long long)l3);
}

static void there_is_a_thread(void **state)
{
    (void)state;
    check(bnk_default_threads() >= 1, "%d threads", bnk_default_threads());
}

static void memory_is_aligned_and_usable(void **state)
{
    (void)state;
    for (int64_t bytes = 1; bytes < 100000; bytes = bytes * 3 + 1) {
        unsigned char *memory = bnk_allocate(bytes);
        check(memory != NULL, "%lld bytes", (long long)bytes);
        check((uintptr_t)memory % 64 == 0, "%lld bytes at %p", (long long)bytes, (void *)memory);
        memset(memory, 0x5B, (size_t)bytes);
        bnk_free(memory);
    }
    bnk_free(NULL);
}

static void too_much_memory_is_refused(void **state)
{
    (void)state;
    check(bnk_allocate(INT64_MAX - 63) == NULL, "there was room for 2^63 bytes");
}

static void *write_own_text(void *result)
{
    char *text = bnk_thread_text();
    *(int *)result = text[0] == 0; /* nothing of another thread's */
    memset(text, 'b', BNK_TEXT_SIZE);
    return text;
}

static void text_belongs_to_its_thread(void **state)
{
    (void)state;
    char *text = bnk_thread_text();
    memset(text, 'a', BNK_TEXT_SIZE);
    pthread_t thread;
    int was_empty = 0;
    void *other;
    check(pthread_create(&thread, NULL, write_own_text, &was_empty) == 0, "pthread_create");
    check(pthread_join(thread, &other) == 0, "pthread_join");
    check(was_empty, "a new thread's text is not empty");
    check(other != text, "two threads share a text");
    for (int i = 0; i < BNK_TEXT_SIZE; i++) check(text[i] == 'a', "another thread wrote here");
    check(bnk_thread_text() == text, "the text moved");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_instruction_sets_are_ours),
        cmocka_unit_test(a_cap_leaves_what_the_cpu_has),
        cmocka_unit_test(teams_have_an_end),
        cmocka_unit_test(caches_grow_with_their_level),
        cmocka_unit_test(there_is_a_thread),
        cmocka_unit_test(memory_is_aligned_and_usable),
        cmocka_unit_test(too_much_memory_is_refused),
        cmocka_unit_test(text_belongs_to_its_thread),
    };
    return cmocka_run_group_tests_name("kernels: platform", tests, NULL, NULL);
}
