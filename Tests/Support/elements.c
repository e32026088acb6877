#include "elements.h"

#include <math.h>
#include <string.h>

int64_t elements_first_difference(elements left, elements right)
{
    const size_t size = element_size(left.is_double);
    if (left.count != right.count || left.is_double != right.is_double) return 0;
    if (memcmp(left.data, right.data, elements_bytes(left)) == 0) return -1;
    for (int64_t i = 0; i < left.count; i++) {
        const char *a = (const char *)left.data + (size_t)i * size;
        const char *b = (const char *)right.data + (size_t)i * size;
        if (memcmp(a, b, size) == 0) continue;
        if (isnan(elements_get(left, i)) && isnan(elements_get(right, i))) continue;
        return i;
    }
    return -1;
}

void elements_copy(elements to, elements from)
{
    memcpy(to.data, from.data, elements_bytes(from));
}

/* SplitMix64 (Steele, Lea, Flood, 2014). */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static double next_unit(uint64_t *state)
{ /* in (0, 1] */
    return ((double)(next_random(state) >> 11) + 1.0) * 0x1p-53;
}

void elements_fill_normal(elements array, uint64_t seed, double mean, double deviation)
{
    const double two_pi = 6.283185307179586;
    uint64_t state = seed * 0x2545F4914F6CDD1Du + 1;
    for (int64_t i = 0; i < array.count; i += 2) {
        const double radius = sqrt(-2.0 * log(next_unit(&state)));
        const double angle = two_pi * next_unit(&state);
        elements_set(array, i, mean + deviation * radius * cos(angle));
        if (i + 1 < array.count) elements_set(array, i + 1, mean + deviation * radius * sin(angle));
    }
}

void elements_fill_constant(elements array, double value)
{
    for (int64_t i = 0; i < array.count; i++) elements_set(array, i, value);
}

void elements_fill_junk(elements array)
{
    memset(array.data, 0x5B, elements_bytes(array));
}
