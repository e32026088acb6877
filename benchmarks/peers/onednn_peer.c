/*
 * onednn_peer.c — oneDNN's batch normalization as a peer: plain layouts and its own blocked one. A worker
 * of run.py, in a process of its own because oneDNN brings another runtime: libgomp, or SYCL, for which the
 * processor is an OpenCL device. Built once for each release; contenders are named NAME@RELEASE.
 * It does the work it offers: no running statistics in the forward, no float64, no masked sequences; half types
 * and the fused add where it has them for this CPU.
 */
#define _GNU_SOURCE
#include <dnnl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../cell.h"

static dnnl_engine_t engine;
static dnnl_stream_t stream;

static void check(dnnl_status_t status, const char *what)
{
    if (status != dnnl_success) die("oneDNN: %s gives status %d", what, (int)status);
}
#define CHECK(call) check((call), #call)

enum { MAX_ARGUMENTS = 12 };

typedef struct setup {
    dnnl_primitive_t primitive;
    int count;
    dnnl_exec_arg_t arguments[MAX_ARGUMENTS];
    dnnl_memory_t input, output, gradient, residual; /* those of the arguments that are rotated */
} setup;

static setup setups[2];
static int used;

static dnnl_memory_t bind(setup *s, int name, const_dnnl_memory_desc_t desc, void *data)
{
    dnnl_memory_t memory;
    CHECK(dnnl_memory_create(&memory, desc, engine, data));
    s->arguments[s->count++] = (dnnl_exec_arg_t){ name, memory };
    return memory;
}

/* Where the activation let pass: in oneDNN's own form, written by its forward and read by its backward. Here
 * a backward comes without a forward, and is given a pattern: its time does not depend on it. */
static void bind_workspace(setup *s, const_dnnl_primitive_desc_t primitive)
{
    const_dnnl_memory_desc_t desc =
        dnnl_primitive_desc_query_md(primitive, dnnl_query_workspace_md, 0);
    size_t size = desc ? dnnl_memory_desc_get_size(desc) : 0;
    if (!size) return;
    void *data;
    CHECK(dnnl_memory_get_data_handle(bind(s, DNNL_ARG_WORKSPACE, desc, DNNL_MEMORY_ALLOCATE),
                                      &data));
    memset(data, 0x55, size);
}

/* 0 if oneDNN does not do it. */
static int prepare(setup *s, cell *k, dnnl_format_tag_t tag)
{
    memset(s, 0, sizeof *s);
    dnnl_memory_desc_t data, channels;
    dnnl_dims_t dims = { k->sizes[0], k->sizes[1], k->sizes[2], k->sizes[3], k->sizes[4] },
                c = { k->c };
    dnnl_data_type_t type = k->dtype == BFLOAT16  ? dnnl_bf16
                            : k->dtype == FLOAT16 ? dnnl_f16
                                                  : dnnl_f32;
    CHECK(dnnl_memory_desc_create_with_tag(&data, k->rank, dims, type, tag));
    CHECK(dnnl_memory_desc_create_with_tag(&channels, 1, c, dnnl_f32, dnnl_a));
    int fixed = k->op == INFERENCE || k->op == FROZEN;
    unsigned flags =
        (unsigned)(dnnl_use_scale | dnnl_use_shift) | (fixed ? (unsigned)dnnl_use_global_stats : 0);
    if (k->relu) flags |= (unsigned)(k->add ? dnnl_fuse_norm_add_relu : dnnl_fuse_norm_relu);
    dnnl_primitive_desc_t forward, backward = NULL;
    if (dnnl_batch_normalization_forward_primitive_desc_create(
            &forward, engine, k->op == INFERENCE ? dnnl_forward_inference : dnnl_forward_training,
            data, data, 1e-5f, flags, NULL) != dnnl_success)
        return 0;
    if (has_gradient(k) && dnnl_batch_normalization_backward_primitive_desc_create(
                               &backward, engine, dnnl_backward, data, data, data, 1e-5f, flags,
                               forward, NULL) != dnnl_success)
        return 0;
    CHECK(dnnl_primitive_create(&s->primitive, backward ? backward : forward));

    void *const *p = k->parameters;
    s->input = bind(s, DNNL_ARG_SRC, data, input_of(k, 0));
    bind(s, DNNL_ARG_SCALE, channels, p[WEIGHT]);
    if (!backward) bind(s, DNNL_ARG_SHIFT, channels, p[BIAS]);
    /* The training forward writes its statistics, all others read them. */
    bind(s, DNNL_ARG_MEAN, channels, k->op == FORWARD ? p[SAVED_MEAN] : p[RUNNING_MEAN]);
    bind(s, DNNL_ARG_VARIANCE, channels, k->op == FORWARD ? p[SAVED_INVSTD] : p[RUNNING_VAR]);
    if (backward) {
        s->gradient = bind(s, DNNL_ARG_DIFF_DST, data, gradient_of(k, 0));
        s->output = bind(s, DNNL_ARG_DIFF_SRC, data, output_of(k, 0));
        bind(s, DNNL_ARG_DIFF_SCALE, channels, p[GRAD_WEIGHT]);
        bind(s, DNNL_ARG_DIFF_SHIFT, channels, p[GRAD_BIAS]);
        if (k->add) s->residual = bind(s, DNNL_ARG_DIFF_SRC_1, data, residual_of(k, 0));
    } else {
        s->output = bind(s, DNNL_ARG_DST, data, output_of(k, 0));
        if (k->add) s->residual = bind(s, DNNL_ARG_SRC_1, data, residual_of(k, 0));
    }
    if (k->relu) bind_workspace(s, backward ? backward : forward);
    if (backward) dnnl_primitive_desc_destroy(backward);
    dnnl_primitive_desc_destroy(forward);
    dnnl_memory_desc_destroy(data);
    dnnl_memory_desc_destroy(channels);
    return 1;
}

static void call(const contender *self, cell *k, int set)
{
    const setup *s = self->context;
    if (k->sets > 1) {
        CHECK(dnnl_memory_set_data_handle(s->input, input_of(k, set)));
        CHECK(dnnl_memory_set_data_handle(s->output, output_of(k, set)));
        if (s->gradient) CHECK(dnnl_memory_set_data_handle(s->gradient, gradient_of(k, set)));
        if (s->residual) CHECK(dnnl_memory_set_data_handle(s->residual, residual_of(k, set)));
    }
    CHECK(dnnl_primitive_execute(s->primitive, stream, s->count, s->arguments));
    CHECK(dnnl_stream_wait(stream));
}

static void add(cell *k, contender *list, const char *name, dnnl_format_tag_t tag)
{
    if (!prepare(&setups[used], k, tag)) return;
    list[used] = (contender){ .call = call, .context = &setups[used] };
    snprintf(list[used].name, sizeof list[used].name, "%s@%d.%d", name, dnnl_version()->major,
             dnnl_version()->minor);
    used++;
}

static int line_up(cell *k, contender *list)
{
    static const dnnl_format_tag_t nchw[] = { dnnl_ab, dnnl_abc, dnnl_abcd, dnnl_abcde },
                                   nhwc[] = { dnnl_ab, dnnl_acb, dnnl_acdb, dnnl_acdeb },
                                   by8[] = { 0, dnnl_aBc8b, dnnl_aBcd8b, dnnl_aBcde8b },
                                   by16[] = { 0, dnnl_aBc16b, dnnl_aBcd16b, dnnl_aBcde16b };
    used = 0;
    if (k->dtype == FLOAT64 || k->lengths || (k->add && !k->relu)) return 0;
    add(k, list, "oneDNN", (k->nhwc ? nhwc : nchw)[k->rank - 2]);
    /* Its blocked layout, where the channels fill the blocks; the same memory, read in that order. */
    int wide =
        (dnnl_get_effective_cpu_isa() & dnnl_cpu_isa_avx512_core) == dnnl_cpu_isa_avx512_core;
    if (!k->nhwc && k->rank > 2 && k->c % (wide ? 16 : 8) == 0)
        add(k, list, "oneDNN-blocked", (wide ? by16 : by8)[k->rank - 2]);
    return used;
}

static void close_setups(void)
{
    for (int i = 0; i < used; i++) {
        for (int j = 0; j < setups[i].count; j++)
            dnnl_memory_destroy(setups[i].arguments[j].memory);
        dnnl_primitive_destroy(setups[i].primitive);
    }
    used = 0;
}

/* SYCL finds the processor through OpenCL's driver, which lies beside oneDNN, and knows no OMP_NUM_THREADS: it
 * takes the CPUs that the process may use. */
static void prepare_sycl(void)
{
    setenv("OCL_ICD_FILENAMES", ONEDNN_FOLDER "/libintelocl.so", 0);
    setenv("ONEAPI_DEVICE_SELECTOR", "opencl:cpu", 0);
    const char *threads = getenv("OMP_NUM_THREADS");
    cpu_set_t allowed;
    sched_getaffinity(0, sizeof allowed, &allowed);
    int left = threads ? atoi(threads) : CPU_COUNT(&allowed);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &allowed) && left-- <= 0) CPU_CLR(cpu, &allowed);
    sched_setaffinity(0, sizeof allowed, &allowed);
}

int main(void)
{
    if (dnnl_version()->cpu_runtime == DNNL_RUNTIME_SYCL) prepare_sycl();
    CHECK(dnnl_engine_create(&engine, dnnl_cpu, 0));
    CHECK(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags));
    cell k;
    cell_initialize(&k, 1);
    worker w = { .line_up = line_up, .close = close_setups };
    const dnnl_version_t *version = dnnl_version();
    snprintf(w.ready, sizeof w.ready, "oneDNN=%d.%d.%d", version->major, version->minor,
             version->patch);
    serve(&w, &k);
}
