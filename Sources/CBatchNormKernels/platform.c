/* What the kernels' caller wants to know of the machine, and what plain Embedded Swift cannot do
 * itself. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "bnk.h"

/* Asking the CPU costs microseconds in a virtual machine, so that answers are kept. They never
 * change: two threads that ask at once write the same. */

uint32_t bnk_supported_isas(void)
{
    uint32_t isas = 1 << BNK_ISA_GENERIC;
#if defined(__x86_64__)
    /* These look at the operating system's support for the registers too. */
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c")) {
        isas |= 1 << BNK_ISA_AVX2;
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
            isas |= 1 << BNK_ISA_AVX512;
    }
#endif
    return isas;
}

/* One line of a file in /sys, without its end; 0 if it cannot be read. */
static int read_line(int index, const char *name, char *line, size_t size)
{
    char path[96];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/%s", index, name);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    const int read = fgets(line, (int)size, file) != NULL;
    fclose(file);
    return read;
}

/* As the kernel tells it, which counts what this CPU can reach; sysconf may count a whole socket.
 */
static int64_t find_cache(int level)
{
    char line[32];
    for (int index = 0; read_line(index, "level", line, sizeof line); index++) {
        if (atoi(line) != level || !read_line(index, "type", line, sizeof line) || line[0] == 'I')
            continue; /* I: Instruction */
        if (!read_line(index, "size", line, sizeof line)) continue;
        char *unit;
        const int64_t size = strtoll(line, &unit, 10);
        return *unit == 'M' ? size << 20 : *unit == 'K' ? size << 10 : size;
    }
    return 0;
}

/* An L3 of more than 64 MB is mostly a whole socket's, far from each core, and a virtual machine of a few cores is shown
 * all of it: 8 MB a core are counted on, twice what servers have. (Two cores of an Intel Emerald Rapids with 260 MB wrote outputs
 * of 13 MB and more up to twice as fast past the caches.) */
static int64_t own_share(int level, int64_t size)
{
    enum { OF_SOCKET = 64 << 20, SHARE = 8 << 20 };
    const int64_t cores = sysconf(_SC_NPROCESSORS_ONLN);
    const bool shared = level == 3 && size > OF_SOCKET && cores > 0;
    return shared && size / SHARE > cores ? cores * SHARE : size;
}

int64_t bnk_cache_size(int level)
{
    static _Atomic int64_t known[4];
    static const int64_t usual[4] = { 0, 32 << 10, 1 << 20, 16 << 20 };
    if (known[level] == 0) {
        const int64_t found = find_cache(level);
        known[level] = own_share(level, found > 0 ? found : usual[level]);
    }
    return known[level];
}

void *bnk_allocate(int64_t bytes)
{
    const size_t lines = (size_t)bytes / 64 + (bytes % 64 != 0);
    return aligned_alloc(64, lines * 64);
}

void bnk_free(void *memory)
{
    free(memory);
}

char *bnk_thread_text(void)
{
    static _Thread_local char text[BNK_TEXT_SIZE];
    return text;
}
