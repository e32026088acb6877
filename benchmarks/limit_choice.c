/*
 * limit_choice.c — which sweeps a cell is measured against. What moves memory fastest depends on the core,
 * the size and the threads: every walk is tried, and the best one gets a name that tells how it goes.
 */
#include "harness.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static sweep sweeps[MAX_CONTENDERS];

static void call_limit(const contender *self, cell *k, int set)
{
    limit_run(self->context, output_of(k, set), input_of(k, set), tensor(k, set, 2),
              tensor(k, set, 3));
}

enum { MAX_FORMS = 32 };

/* The fastest of several sweeps. They are tried on no more than four last-level caches: more bytes tell
 * no more. */
static sweep fastest(cell *k, const sweep *forms, int count)
{
    double best[MAX_FORMS];
    for (int i = 0; i < count; i++) best[i] = INFINITY;
    for (int round = 0; round < 4; round++)
        for (int i = 0; i < count; i++) {
            sweep how = forms[i];
            if (how.bytes > 4 * k->llc) how.bytes = 4 * k->llc;
            contender c = { .call = call_limit, .context = &how };
            double once = repetition(&c, k, 1);
            if (once < 0.001) once = repetition(&c, k, (long)ceil(0.001 / (once + 1e-7)));
            best[i] = fmin(best[i], once);
        }
    int winner = 0;
    for (int i = 1; i < count; i++)
        if (best[i] < best[winner]) winner = i;
    return forms[winner];
}

enum { NEAR = 512, FAR = 4096 };
static const walk walks[] = {
    { 1, 0 },    { 2, 0 },    { 4, 0 },   { 8, 0 },   { 1, NEAR }, { 2, NEAR },
    { 4, NEAR }, { 8, NEAR }, { 1, FAR }, { 2, FAR }, { 4, FAR },  { 8, FAR },
};
enum { WALKS = sizeof walks / sizeof *walks };

/* One stream, nothing prefetched. */
static sweep plain_sweep(const cell *k, int tensors, int nontemporal)
{
    return (sweep){ .threads = k->threads,
                    .bytes = k->bytes,
                    .tensors = tensors,
                    .nontemporal = nontemporal,
                    .write = walks[0],
                    .read = walks[0] };
}

static sweep best_write(cell *k, int tensors, int nontemporal)
{
    sweep forms[WALKS];
    for (int i = 0; i < WALKS; i++) {
        forms[i] = plain_sweep(k, tensors, nontemporal);
        forms[i].write = walks[i];
    }
    return fastest(k, forms, WALKS);
}

/* Reads of one or both inputs, and nothing else. */
static sweep best_read(cell *k, int inputs)
{
    sweep forms[2 * WALKS];
    int count = 0;
    for (int together = 0; together < inputs; together++)
        for (int i = 0; i < WALKS; i++) {
            sweep *form = &forms[count++];
            *form = plain_sweep(k, 1, 0);
            form->read = walks[i];
            form->reads = inputs;
            form->together = together;
        }
    return fastest(k, forms, count);
}

/* The best reads, then the best writes, beginning at either end. */
static sweep with_reads(cell *k, const sweep *reads, const sweep *writes)
{
    sweep forms[2] = { *writes, *writes };
    for (int i = 0; i < 2; i++) {
        forms[i].reads = reads->reads;
        forms[i].together = reads->together;
        forms[i].read = reads->read;
        forms[i].back = i;
    }
    return fastest(k, forms, 2);
}

/* Whether the inputs must come from memory twice, once for the sums and once for the result: where what
 * has to be read before the first result can be written outgrows the cache that could keep it. In NCHW
 * that is a channel. In NHWC it is all of the inputs, and half of the threads' L2, beside what passes. A strip of some
 * channels would fit where they do not, but strips, read and then written, took longer than all of the rows twice: 64 bytes
 * of each row 2.7 times as long, 256 bytes 1.1 to 1.4 times, 1 KB 1.1 to 1.2 times (Intel Emerald Rapids, rows of 4 and 8 KB). */
static int reads_twice(const cell *k)
{
    if (k->op != FORWARD && k->op != BACKWARD) return 0;
    const size_t inputs = (size_t)(1 + has_gradient(k)), item = k->bytes / (size_t)k->count;
    const size_t channel = inputs * item * (size_t)(k->n * k->s);
    if (!k->nhwc && k->s > 1) return channel > k->llc;
    return inputs * k->bytes > (size_t)k->threads * k->l2 / 2;
}

static void append_walk(char *name, size_t size, walk w)
{
    size_t used = strlen(name);
    if (w.streams > 1) used += (size_t)snprintf(name + used, size - used, "-x%d", w.streams);
    if (w.ahead) snprintf(name + used, size - used, w.ahead == NEAR ? "-near" : "-far");
}

/* A name tells how: see harness.h. */
static void name_sweep(contender *c, const cell *k, const sweep *how)
{
    static const char *const bases[] = { "read", "copy", "triad", "tetrad" };
    const size_t size = sizeof c->name;
    snprintf(c->name, size, "%s", bases[how->tensors - 1]);
    const int only_reads = how->tensors == 1;
    append_walk(c->name, size, only_reads ? how->read : how->write);
    const char *suffixes[] = { how->nontemporal ? "-nt" : "",
                               how->threads < k->threads ? "-serial" : "",
                               how->reads && !only_reads ? "+reads" : "" };
    for (int i = 0; i < 3; i++) strncat(c->name, suffixes[i], size - strlen(c->name) - 1);
    if (!how->reads || only_reads) return;
    append_walk(c->name, size, how->read);
    if (how->together) strncat(c->name, "-both", size - strlen(c->name) - 1);
    if (how->back) strncat(c->name, "-back", size - strlen(c->name) - 1);
}

/* A limit that leaves something out is none. Some words are spoiled, and looked at behind the sweep. */
static void check_sweep(const contender *c, cell *k)
{
    const sweep *how = c->context;
    const uint64_t *a = input_of(k, 0), *b = (uint64_t *)tensor(k, 0, 2);
    uint64_t *out = output_of(k, 0), *second = (uint64_t *)tensor(k, 0, 3);
    const size_t words = how->bytes / sizeof *a, step = 1 + words / 997;
    if (how->tensors < 2) return;
    for (size_t i = 0; i < words; i += step) {
        out[i] = ~(how->tensors > 2 ? a[i] + b[i] : a[i]);
        if (how->tensors > 3) second[i] = ~b[i];
    }
    call_limit(c, k, 0);
    for (size_t i = 0; i < words; i += step) {
        uint64_t want = how->tensors > 2 ? a[i] + b[i] : a[i];
        if (out[i] != want || (how->tensors > 3 && second[i] != b[i]))
            die("wrong result: %s leaves out word %zu of %zu", c->name, i, words);
    }
}

/* Adds a sweep to the list, unless it is there; returns the new length. */
static int add_sweep(contender *list, int count, cell *k, sweep how)
{
    contender *c = &list[count];
    *c = (contender){ .call = call_limit, .context = &sweeps[count] };
    sweeps[count] = how;
    name_sweep(c, k, &how);
    for (int i = 0; i < count; i++)
        if (!strcmp(list[i].name, c->name)) return count;
    check_sweep(c, k);
    return count + 1;
}

int add_limits(cell *k, contender *list, int count)
{
    sweep reads;
    const int twice = reads_twice(k);
    if (twice) reads = best_read(k, 1 + has_gradient(k));
    for (int nontemporal = 0; nontemporal < 2; nontemporal++) {
        const sweep best = best_write(k, k->tensors, nontemporal);
        count = add_sweep(list, count, k, plain_sweep(k, k->tensors, nontemporal));
        count = add_sweep(list, count, k, best);
        if (twice) count = add_sweep(list, count, k, with_reads(k, &reads, &best));
    }
    if (k->threads > 1 && k->bytes <= 1 << 20) {
        sweep serial = plain_sweep(k, k->tensors, 0);
        serial.threads = 1;
        count = add_sweep(list, count, k, serial);
    }
    return count;
}

int add_memory_sweeps(cell *k, contender *list, int count)
{
    count = add_sweep(list, count, k, best_read(k, 1));
    for (int tensors = 2; tensors <= 3; tensors++)
        for (int nontemporal = 0; nontemporal < 2; nontemporal++) {
            count = add_sweep(list, count, k, plain_sweep(k, tensors, nontemporal));
            count = add_sweep(list, count, k, best_write(k, tensors, nontemporal));
        }
    return count;
}

int tensors_swept(const contender *c)
{
    return ((const sweep *)c->context)->tensors;
}
