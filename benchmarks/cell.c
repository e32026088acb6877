/* cell.c — buffers, timing and the worker's protocol; see cell.h. */
#define _GNU_SOURCE
#include "cell.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <time.h>

enum { HUGE_PAGE = 2 << 20 };

const char *const operation_names[OPERATIONS] = { "forward", "inference", "backward", "frozen",
                                                  "memory" };
const char *const datatype_names[DTYPES] = { "float32", "float64", "bfloat16", "float16" };
static const size_t datatype_sizes[DTYPES] = { 4, 8, 2, 2 };

void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("error ", stdout);
    vfprintf(stdout, format, arguments);
    fputs("\n", stdout);
    va_end(arguments);
    fflush(stdout);
    exit(2);
}

/* ---- the cell ------------------------------------------------------------------------------- */

/* The kernel's figure: sysconf's is that of the whole socket on some machines. */
static size_t cache_size(int level, size_t otherwise)
{
    char path[64];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", level);
    FILE *file = fopen(path, "r");
    size_t kilobytes = 0;
    if (file) {
        if (fscanf(file, "%zuK", &kilobytes) != 1) kilobytes = 0;
        fclose(file);
    }
    return kilobytes ? kilobytes << 10 : otherwise;
}

void cell_initialize(cell *k, int threads)
{
    *k = (cell){ .rank = 4,
                 .sizes = { 32, 64, 56, 56 },
                 .threads = threads,
                 .seconds = 0.02,
                 .l2 = cache_size(2, 1u << 20),
                 .llc = cache_size(3, 32u << 20) };
}

static int choice(const char *key, const char *value, const char *first, const char *second)
{
    if (!strcmp(value, first)) return 0;
    if (!strcmp(value, second)) return 1;
    die("%s is '%s', expected %s or %s", key, value, first, second);
}

/* "forward", "backward+add+relu", "forward+lengths", ... */
static void set_operation(cell *k, const char *value)
{
    size_t length = strcspn(value, "+");
    for (k->op = 0; k->op < OPERATIONS; k->op++)
        if (strlen(operation_names[k->op]) == length &&
            !strncmp(value, operation_names[k->op], length))
            break;
    if (k->op == OPERATIONS)
        die("op is '%s', expected forward, inference, backward, frozen or memory", value);
    k->lengths = k->add = k->relu = 0;
    for (const char *at = value + length; *at; at += length) {
        length = 1 + strcspn(at + 1, "+");
        if (length == 8 && !strncmp(at, "+lengths", length))
            k->lengths = 1;
        else if (length == 4 && !strncmp(at, "+add", length))
            k->add = 1;
        else if (length == 5 && !strncmp(at, "+relu", length))
            k->relu = 1;
        else
            die("op is '%s', expected %.*s followed by +lengths, +add or +relu", value,
                (int)(strchr(value, '+') - value), value);
    }
}

void cell_set(cell *k, const char *key, const char *value)
{
    if (!strcmp(key, "op")) {
        set_operation(k, value);
    } else if (!strcmp(key, "shape")) {
        const char *at = value;
        for (k->rank = 0; k->rank < 5;) {
            char *end;
            k->sizes[k->rank++] = strtoll(at, &end, 10);
            if (end == at || *end != 'x') {
                at = end;
                break;
            }
            at = end + 1;
        }
        if (*at || k->rank < 2)
            die("shape is '%s', expected NxC, NxCxL, NxCxHxW or NxCxDxHxW", value);
    } else if (!strcmp(key, "layout")) {
        k->nhwc = choice(key, value, "nchw", "nhwc");
    } else if (!strcmp(key, "dtype")) {
        for (k->dtype = 0; k->dtype < DTYPES && strcmp(value, datatype_names[k->dtype]);)
            k->dtype++;
        if (k->dtype == DTYPES)
            die("dtype is '%s', expected float32, float64, bfloat16 or float16", value);
    } else if (!strcmp(key, "buffers")) {
        k->cold = choice(key, value, "warm", "cold");
    } else if (!strcmp(key, "pages")) {
        k->small_pages = choice(key, value, "huge", "small");
    } else if (!strcmp(key, "api")) {
        k->layer = choice(key, value, "stateless", "layer");
    } else if (!strcmp(key, "threads")) {
        if ((k->threads = atoi(value)) < 1) die("threads is '%s', expected at least 1", value);
    } else if (!strcmp(key, "ms")) {
        if (!((k->seconds = atof(value) / 1000) > 0))
            die("ms is '%s', expected a positive number", value);
    } else if (!strcmp(key, "l2")) {
        k->l2 = (size_t)strtoull(value, NULL, 10);
    } else if (!strcmp(key, "llc")) {
        k->llc = (size_t)strtoull(value, NULL, 10);
    } else {
        die("unknown option '%s'", key);
    }
}

static double element(datatype dtype, const void *from, int64_t i)
{
    union {
        uint32_t bits;
        float value;
    } wide;
    switch (dtype) {
    case FLOAT64:
        return ((const double *)from)[i];
    case BFLOAT16:
        wide.bits = (uint32_t)((const uint16_t *)from)[i] << 16;
        return (double)wide.value;
    case FLOAT16:
        return (double)((const _Float16 *)from)[i];
    default:
        return (double)((const float *)from)[i];
    }
}
static void set_element(datatype dtype, void *to, int64_t i, double value)
{
    union {
        float value;
        uint32_t bits;
    } wide;
    switch (dtype) {
    case FLOAT64:
        ((double *)to)[i] = value;
        break;
    case BFLOAT16: /* cut off: any value will do */
        wide.value = (float)value;
        ((uint16_t *)to)[i] = (uint16_t)(wide.bits >> 16);
        break;
    case FLOAT16:
        ((_Float16 *)to)[i] = (_Float16)value;
        break;
    default:
        ((float *)to)[i] = (float)value;
    }
}

double get(const cell *k, const void *from, int64_t i)
{
    return element(k->dtype, from, i);
}

static datatype parameter_dtype(const cell *k)
{
    return k->dtype == FLOAT64 ? FLOAT64 : FLOAT32;
}
double parameter(const cell *k, int which, int64_t i)
{
    return element(parameter_dtype(k), k->parameters[which], i);
}
static void set_parameter(const cell *k, int which, int64_t i, double value)
{
    set_element(parameter_dtype(k), k->parameters[which], i, value);
}

/* Bell-shaped values, mean 0.5, deviation about 1: no denormals, no constants. */
static void fill(const cell *k, void *to, uint64_t seed)
{
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
    for (int64_t i = 0; i < k->count; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        double sum =
            (double)(state >> 16 & 0xffff) + (double)(state >> 32 & 0xffff) + (double)(state >> 48);
        set_element(k->dtype, to, i, sum / 32768.0 - 2.5);
    }
}

static size_t round_up(size_t value, size_t to)
{
    return (value + to - 1) / to * to;
}

void cell_open(cell *k)
{
    k->n = k->sizes[0];
    k->c = k->sizes[1];
    k->s = 1;
    for (int i = 2; i < k->rank; i++) k->s *= k->sizes[i];
    k->count = k->n * k->c * k->s;
    if (k->n < 1 || k->c < 1 || k->s < 1) die("the shape has a size below 1");
    if (k->lengths && k->rank != 3)
        die("+lengths needs a shape NxCxL, which has rank 3, not %d", k->rank);
    k->bytes = (size_t)k->count * datatype_sizes[k->dtype];

    /* An odd number of cache lines between tensors: at equal offsets within pages they would fight
     * for the same cache sets. */
    k->tensors = k->op == MEMORY ? 3 : 2 + has_gradient(k) + k->add;
    k->tensor_size = round_up(k->bytes, 4096) + 17 * 64;
    k->set_size = (size_t)k->tensors * k->tensor_size;
    if (k->relu) k->set_size += round_up((size_t)bits_count(k), 4096) + 17 * 64;
    k->sets = k->cold ? (int)(4 * k->llc / ((size_t)k->tensors * k->bytes) + 1) : 1;
    if (k->sets > 1 << 16) k->sets = 1 << 16;
    k->memory_size = round_up((size_t)k->sets * k->set_size, HUGE_PAGE);
    char *memory = mmap(NULL, k->memory_size + HUGE_PAGE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) die("no memory for %zu bytes: %s", k->memory_size, strerror(errno));
    k->memory = (char *)round_up((size_t)memory, HUGE_PAGE);
    size_t before = (size_t)(k->memory - memory);
    if (before) munmap(memory, before);
    if (before < HUGE_PAGE) munmap(k->memory + k->memory_size, HUGE_PAGE - before);
    madvise(k->memory, k->memory_size, k->small_pages ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);

    if (k->op == MEMORY) {
        memset(k->memory, 1, k->set_size); /* pages of its own; the values do not matter */
    } else {
        fill(k, input_of(k, 0), 1);
        memset(output_of(k, 0), 0, k->bytes);
        for (int i = 2; i < k->tensors; i++) fill(k, tensor(k, 0, i), (uint64_t)i);
    }
    for (int64_t i = 0; k->relu && i < bits_count(k); i++) /* half of them, without a pattern */
        bits_of(k, 0)[i] = (uint8_t)((uint64_t)i * 0x9e3779b97f4a7c15u >> 56);
    for (int set = 1; set < k->sets; set++) memcpy(tensor(k, set, 0), tensor(k, 0, 0), k->set_size);

    size_t row = round_up((size_t)k->c * sizeof(double), 64);
    char *block = aligned_alloc(64, PARAMETERS * row);
    if (!block) die("no memory for %zu bytes", PARAMETERS * row);
    memset(block, 0, PARAMETERS * row);
    for (int i = 0; i < PARAMETERS; i++) k->parameters[i] = block + (size_t)i * row;
    for (int64_t i = 0; i < k->c; i++) {
        set_parameter(k, WEIGHT, i, 1.0 + 0.001 * (double)(i % 7));
        set_parameter(k, BIAS, i, 0.01 * (double)(i % 5));
        set_parameter(k, RUNNING_MEAN, i, 0.4);
        set_parameter(k, RUNNING_VAR, i, 0.9);
        ((double *)k->parameters[SAVED_MEAN])[i] = 0.5;
        ((double *)k->parameters[SAVED_INVSTD])[i] = 1.1;
    }

    k->sample_lengths = NULL;
    if (!k->lengths) return;
    /* From an eighth to all of the room for a sequence, in a mixed order: 56 % of the whole. */
    k->sample_lengths = malloc((size_t)k->n * sizeof *k->sample_lengths);
    if (!k->sample_lengths) die("no memory for %lld lengths", (long long)k->n);
    for (int64_t i = 0; i < k->n; i++) k->sample_lengths[i] = (k->s * (1 + i * 5 % 8) + 7) / 8;
}

void cell_close(cell *k)
{
    if (k->memory) munmap(k->memory, k->memory_size);
    free(k->parameters[0]);
    free(k->sample_lengths);
    k->memory = NULL;
    k->parameters[0] = NULL;
    k->sample_lengths = NULL;
}

/* ---- timing --------------------------------------------------------------------------------- */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double repetition(const contender *c, cell *k, long loops)
{
    static int set;
    if (set >= k->sets) set = 0;
    double start = now();
    for (long i = 0; i < loops; i++) {
        c->call(c, k, set);
        if (++set == k->sets) set = 0;
    }
    return (now() - start) / (double)loops;
}

double timed(const contender *c, cell *k)
{
    repetition(c, k, 1);
    return repetition(c, k, c->loops);
}

void calibrate(contender *c, cell *k)
{
    double best = repetition(c, k, 1);
    for (long loops = 1; best * (double)loops < k->seconds / 8; loops *= 4)
        best = fmin(best, repetition(c, k, loops));
    c->loops = (long)ceil(k->seconds / best);
}

/* ---- the worker ----------------------------------------------------------------------------- */

static void open_requested(const worker *w, cell *k, contender *list, int *count)
{
    char *word;
    while ((word = strtok(NULL, " \n"))) {
        char *value = strchr(word, '=');
        if (!value) die("'%s' is not KEY=VALUE", word);
        *value = 0;
        cell_set(k, word, value + 1);
    }
    cell_open(k);
    *count = w->line_up(k, list);
    for (int i = 0; i < *count; i++) calibrate(&list[i], k);
    fputs("contenders", stdout);
    for (int i = 0; i < *count; i++) printf(" %s", list[i].name);
}

/* The cores have idled while other processes had their turns, and are slow for a while. Without this the first contender
 * alone would pay for it, with up to twice its time (Intel Emerald Rapids in a VM). */
static void wake(const contender *c, cell *k)
{
    for (double start = now(); now() - start < 0.1;) repetition(c, k, 1);
}

void serve(const worker *w, cell *k)
{
    char line[1024];
    contender list[MAX_CONTENDERS];
    int open = 0, count = 0, rounds = 0;
    printf("ready %s\n", w->ready);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        char *word = strtok(line, " \n");
        if (!word) continue;
        if (w->resume) w->resume();
        if (open && strcmp(word, "round")) {
            w->close();
            cell_close(k);
            open = 0;
        }
        if (!strcmp(word, "cell")) {
            open_requested(w, k, list, &count);
            open = 1;
        } else if (!strcmp(word, "round")) {
            if (!open) die("a round without a cell");
            double times[MAX_CONTENDERS];
            if (count > 0) wake(&list[0], k);
            /* Whoever is first is still a little slower: each in turn. */
            for (int i = 0; i < count; i++) {
                const int next = (rounds + i) % count;
                times[next] = timed(&list[next], k);
            }
            rounds++;
            fputs("times", stdout);
            for (int i = 0; i < count; i++) printf(" %.9g", times[i]);
        } else if (!strcmp(word, "close")) {
            fputs("closed", stdout);
        } else {
            die("unknown command '%s'", word);
        }
        if (w->pause) w->pause();
        puts("");
        fflush(stdout);
    }
}
