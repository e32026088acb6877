/*
 * elements.h — arrays of float or double under one type, so that a test is written once.
 *
 * Values pass through double, which holds both exactly.
 */
#ifndef ELEMENTS_H
#define ELEMENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct elements {
    void *data; /* NULL: absent */
    int64_t count;
    bool is_double;
} elements;

static inline size_t element_size(bool is_double)
{
    return is_double ? sizeof(double) : sizeof(float);
}

static inline size_t elements_bytes(elements array)
{
    return (size_t)array.count * element_size(array.is_double);
}

static inline double elements_get(elements array, int64_t index)
{
    return array.is_double ? ((const double *)array.data)[index]
                           : (double)((const float *)array.data)[index];
}

static inline void elements_set(elements array, int64_t index, double value)
{
    if (array.is_double)
        ((double *)array.data)[index] = value;
    else
        ((float *)array.data)[index] = (float)value;
}

/* The first index at which the bits differ, or -1. All NaNs count as the same: which of several NaN
 * payloads survives an addition is the hardware's business. */
int64_t elements_first_difference(elements left, elements right);

void elements_copy(elements to, elements from);

/* Normally distributed values; the same seed gives the same values everywhere. */
void elements_fill_normal(elements array, uint64_t seed, double mean, double deviation);
void elements_fill_constant(elements array, double value);
/* Bytes that no result has by chance, to show what was not written. */
void elements_fill_junk(elements array);

#endif
