/*
 * limits.c — the limit that batch normalization is measured against: sweeps over the same buffers, with the
 * same threads, that read and write and compute nothing. Integers: a sweep of memory has no denormals,
 * and one body serves every data type. Built with -fno-builtin-memcpy, or the compiler would turn the
 * plain copy into libc's, which chooses its stores by size.
 */
#include "harness.h"

#include <omp.h>
#include <stdatomic.h>

typedef uint64_t line __attribute__((vector_size(64), aligned(64), may_alias));

/* A thread walks through its share block by block, of 2 MB, and the streams share a block: so a second
 * walk can begin where the first one ended, whatever the streams. 7 lines more than a power of two, or
 * the streams would meet in the same cache sets. */
enum { CHAINS = 8, BLOCK = CHAINS * (4096 + 7) };

static _Thread_local volatile uint64_t sink; /* so that reads are not optimized away */

#define INLINE static inline __attribute__((always_inline))

/* ---- reading -------------------------------------------------------------------------------- */

INLINE void take(line *chain, const line *from, size_t ahead, int prefetch)
{
    if (prefetch) __builtin_prefetch(from + ahead);
    *chain ^= *from;
}

/* Eight independent chains whatever the streams: it is memory that is waited for, not an adder. b may be
 * NULL. */
INLINE void read_block(const line *a, const line *b, size_t lines, size_t ahead, int streams,
                       int prefetch)
{
    line sum[CHAINS] = { 0 };
    const int step = CHAINS / streams;
    const size_t part = lines / (size_t)streams, whole = part / (size_t)step * (size_t)step;
    for (size_t i = 0; i < whole; i += (size_t)step) {
#pragma clang loop unroll(full)
        for (int chain = 0; chain < CHAINS; chain++) {
            size_t at = (size_t)(chain % streams) * part + i + (size_t)(chain / streams);
            take(&sum[chain], &a[at], ahead, prefetch);
            if (b) take(&sum[chain], &b[at], ahead, prefetch);
        }
    }
    for (size_t i = whole; i < part; i++)
        for (int stream = 0; stream < streams; stream++) {
            size_t at = (size_t)stream * part + i;
            take(&sum[0], &a[at], 0, 0);
            if (b) take(&sum[0], &b[at], 0, 0);
        }
    for (size_t at = part * (size_t)streams; at < lines; at++) {
        take(&sum[0], &a[at], 0, 0);
        if (b) take(&sum[0], &b[at], 0, 0);
    }
    line all = sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
    sink = all[0] ^ all[1] ^ all[2] ^ all[3] ^ all[4] ^ all[5] ^ all[6] ^ all[7];
}

/* ---- writing -------------------------------------------------------------------------------- */

/* A macro, one body for each kind of store: in a common function the compiler merges both kinds into an
 * ordinary store. */
#define WRITE_BLOCK(NAME, STORE)                                                          \
    INLINE void NAME(line *out, const line *a, const line *b, line *second, size_t lines, \
                     size_t ahead, int tensors, int streams, int prefetch)                \
    {                                                                                     \
        size_t part = lines / (size_t)streams;                                            \
        _Pragma("clang loop unroll_count(4)") for (size_t i = 0; i < part; i++)           \
        {                                                                                 \
            _Pragma("clang loop unroll(full)") for (int s = 0; s < streams; s++)          \
            {                                                                             \
                size_t at = (size_t)s * part + i;                                         \
                if (prefetch) __builtin_prefetch(&a[at + ahead]);                         \
                if (prefetch && tensors > 2) __builtin_prefetch(&b[at + ahead]);          \
                STORE(&out[at], tensors > 2 ? a[at] + b[at] : a[at]);                     \
                if (tensors > 3) STORE(&second[at], b[at]);                               \
            }                                                                             \
        }                                                                                 \
        for (size_t at = part * (size_t)streams; at < lines; at++) {                      \
            STORE(&out[at], tensors > 2 ? a[at] + b[at] : a[at]);                         \
            if (tensors > 3) STORE(&second[at], b[at]);                                   \
        }                                                                                 \
    }

#define ORDINARY(to, value) (*(to) = (value))
#define NONTEMPORAL(to, value) __builtin_nontemporal_store((value), (to))
WRITE_BLOCK(write_ordinary, ORDINARY)
WRITE_BLOCK(write_nontemporal, NONTEMPORAL)

/* ---- a thread's share ------------------------------------------------------------------------ */

/* BODY(..., streams, prefetch) with both as constants: a loop of its own for every walk. */
#define WALK(HOW, BODY, ...)                         \
    switch (2 * (HOW).streams + ((HOW).ahead > 0)) { \
    case 2:                                          \
        BODY(__VA_ARGS__, 1, 0);                     \
        break;                                       \
    case 3:                                          \
        BODY(__VA_ARGS__, 1, 1);                     \
        break;                                       \
    case 4:                                          \
        BODY(__VA_ARGS__, 2, 0);                     \
        break;                                       \
    case 5:                                          \
        BODY(__VA_ARGS__, 2, 1);                     \
        break;                                       \
    case 8:                                          \
        BODY(__VA_ARGS__, 4, 0);                     \
        break;                                       \
    case 9:                                          \
        BODY(__VA_ARGS__, 4, 1);                     \
        break;                                       \
    case 16:                                         \
        BODY(__VA_ARGS__, 8, 0);                     \
        break;                                       \
    case 17:                                         \
        BODY(__VA_ARGS__, 8, 1);                     \
        break;                                       \
    default:                                         \
        __builtin_trap();                            \
    }

static void read_inputs(const sweep *how, const line *a, const line *b, size_t lines)
{
    const walk w = how->read;
    const size_t ahead = (size_t)w.ahead / sizeof(line);
    if (how->together) {
        WALK(w, read_block, a, b, lines, ahead)
        return;
    }
    for (int i = 0; i < how->reads; i++) WALK(w, read_block, i ? b : a, NULL, lines, ahead)
}

static void write_outputs(const sweep *how, line *out, const line *a, const line *b, line *second,
                          size_t lines)
{
    const walk w = how->write;
    const size_t ahead = (size_t)w.ahead / sizeof(line);
    switch (2 * how->tensors + how->nontemporal) {
    case 4:
        WALK(w, write_ordinary, out, a, b, second, lines, ahead, 2) break;
    case 5:
        WALK(w, write_nontemporal, out, a, b, second, lines, ahead, 2) break;
    case 6:
        WALK(w, write_ordinary, out, a, b, second, lines, ahead, 3) break;
    case 7:
        WALK(w, write_nontemporal, out, a, b, second, lines, ahead, 3) break;
    case 8:
        WALK(w, write_ordinary, out, a, b, second, lines, ahead, 4) break;
    case 9:
        WALK(w, write_nontemporal, out, a, b, second, lines, ahead, 4) break;
    default:
        __builtin_trap();
    }
}

/* Of the lines from first to last: all that is to be read, then all that is to be written. */
static void sweep_share(const sweep *how, line *out, const line *a, const line *b, line *second,
                        size_t first, size_t last)
{
    const size_t blocks = (last - first + BLOCK - 1) / BLOCK;
    for (size_t i = 0; how->reads && i < blocks; i++) {
        size_t at = first + i * BLOCK, lines = last - at < BLOCK ? last - at : BLOCK;
        read_inputs(how, a + at, how->reads > 1 ? b + at : NULL, lines);
    }
    for (size_t i = 0; how->tensors > 1 && i < blocks; i++) {
        size_t at = first + (how->back ? blocks - 1 - i : i) * BLOCK;
        size_t lines = last - at < BLOCK ? last - at : BLOCK;
        write_outputs(how, out + at, a + at, how->tensors > 2 ? b + at : NULL,
                      how->tensors > 3 ? second + at : NULL, lines);
    }
    if (how->nontemporal)
        atomic_thread_fence(memory_order_seq_cst); /* until the stores are on their way out */
}

void limit_run(const sweep *how, void *out, const void *a, const void *b, void *second)
{
    const size_t lines =
        (how->bytes + sizeof(line) - 1) / sizeof(line); /* buffers end on whole pages */
    if (how->threads == 1) {
        sweep_share(how, out, a, b, second, 0, lines);
        return;
    }
#pragma omp parallel num_threads(how->threads)
    {
        size_t threads = (size_t)omp_get_num_threads(), me = (size_t)omp_get_thread_num();
        sweep_share(how, out, a, b, second, lines * me / threads, lines * (me + 1) / threads);
    }
}
