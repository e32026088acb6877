/*
 * limits.c — the limit that batch normalization is measured against: copy (forward), triad
 * (backward; a forward that adds a residual) and tetrad (a backward that writes the residual's gradient as
 * well) over the same buffers, with the same threads. Integers: a sweep of
 * memory has no denormals, and one body serves every data type. Built with -fno-builtin-memcpy, or the
 * compiler would turn the plain copy into libc's, which chooses its stores by size.
 */
#include "harness.h"

#include <omp.h>
#include <stdatomic.h>

typedef uint64_t line __attribute__((vector_size(64), aligned(64), may_alias));
enum { AHEAD = 2048 / sizeof(line) };

static volatile uint64_t sink; /* so that reads are not optimized away */

#define INLINE static inline __attribute__((always_inline))

/* Lines i, i + part, i + 2 part, ... in each step: `streams` runs at a time. A macro, one body for
 * each kind of store: in a common function the compiler merges both kinds into an ordinary store. */
#define WRITE_PART(NAME, STORE)                                                           \
    INLINE void NAME(line *out, const line *a, const line *b, line *second, size_t lines, \
                     int streams, int tensors, int prefetch)                              \
    {                                                                                     \
        size_t part = lines / (size_t)streams;                                            \
        _Pragma("clang loop unroll_count(4)") for (size_t i = 0; i < part; i++)           \
        {                                                                                 \
            _Pragma("clang loop unroll(full)") for (int k = 0; k < streams; k++)          \
            {                                                                             \
                size_t at = (size_t)k * part + i;                                         \
                if (prefetch) __builtin_prefetch(&a[at + AHEAD]);                         \
                if (prefetch && tensors > 2) __builtin_prefetch(&b[at + AHEAD]);          \
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
WRITE_PART(write_ordinary, ORDINARY)
WRITE_PART(write_nontemporal, NONTEMPORAL)

INLINE line read_part(const line *a, size_t lines, int streams, int prefetch)
{
    size_t part = lines / (size_t)streams;
    line sum[8] = { 0 }; /* eight chains, so that memory and not an adder is the bottleneck */
    size_t step = streams == 1 ? 8 : 1, done = part / step * step;
    for (size_t i = 0; i < done; i += step) {
#pragma clang loop unroll(full)
        for (int k = 0; k < (streams == 1 ? 8 : streams); k++) {
            size_t at = streams == 1 ? i + (size_t)k : (size_t)k * part + i;
            if (prefetch) __builtin_prefetch(&a[at + AHEAD]);
            sum[k] ^= a[at];
        }
    }
    if (streams == 1)
        for (size_t at = done; at < lines; at++) sum[0] ^= a[at];
    else
        for (size_t at = part * (size_t)streams; at < lines; at++) sum[0] ^= a[at];
    return sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
}

INLINE void write_all(line *out, const line *a, const line *b, line *second, size_t lines,
                      int streams, int tensors, int prefetch, int nontemporal)
{
    if (nontemporal) {
        write_nontemporal(out, a, b, second, lines, streams, tensors, prefetch);
        atomic_thread_fence(memory_order_seq_cst); /* until the stores are on their way out */
    } else {
        write_ordinary(out, a, b, second, lines, streams, tensors, prefetch);
    }
}

INLINE void sweep_part(line *out, const line *a, const line *b, line *second, size_t lines,
                       const sweep *how, int streams, int prefetch)
{
    if (how->extra_reads) {
        line sum = read_part(a, lines, streams, prefetch);
        if (how->extra_reads > 1) sum ^= read_part(b, lines, streams, prefetch);
        sink = sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
    }
    /* The number of tensors as a constant: a loop of its own for each. */
    switch (how->tensors) {
    case 2:
        write_all(out, a, b, second, lines, streams, 2, prefetch, how->nontemporal);
        break;
    case 3:
        write_all(out, a, b, second, lines, streams, 3, prefetch, how->nontemporal);
        break;
    case 4:
        write_all(out, a, b, second, lines, streams, 4, prefetch, how->nontemporal);
        break;
    default:
        __builtin_trap();
    }
}

static void sweep_run(line *out, const line *a, const line *b, line *second, size_t lines,
                      const sweep *how)
{
    switch (how->streams) {
    case 1:
        sweep_part(out, a, b, second, lines, how, 1, 0);
        break;
    case -1:
        sweep_part(out, a, b, second, lines, how, 1, 1);
        break;
    case -2:
        sweep_part(out, a, b, second, lines, how, 2, 1);
        break;
    case -4:
        sweep_part(out, a, b, second, lines, how, 4, 1);
        break;
    case -8:
        sweep_part(out, a, b, second, lines, how, 8, 1);
        break;
    default:
        __builtin_trap();
    }
}

void limit_run(const sweep *how, void *out, const void *a, const void *b, void *second,
               size_t bytes)
{
    size_t lines = (bytes + sizeof(line) - 1) / sizeof(line); /* buffers end on whole pages */
    if (how->threads == 1) {
        sweep_run(out, a, b, second, lines, how);
        return;
    }
#pragma omp parallel num_threads(how->threads)
    {
        size_t threads = (size_t)omp_get_num_threads(), me = (size_t)omp_get_thread_num();
        size_t first = lines * me / threads, last = lines * (me + 1) / threads;
        sweep_run((line *)out + first, (const line *)a + first,
                  how->tensors > 2 ? (const line *)b + first : NULL,
                  how->tensors > 3 ? (line *)second + first : NULL, last - first, how);
    }
}
