/*
 * bare.c — batch normalization as plain loops, for the cost of a call on tiny tensors: what the library
 * takes beyond this is argument checks, planning, threads, and the care for accuracy.
 * Built with -ffast-math, so that the compiler vectorizes the sums: no measure of accuracy.
 */
#include "harness.h"

#include <math.h>

#define T float
#define NAME(x) x##_f32
#include "bare.h"
#undef T
#undef NAME
#define T double
#define NAME(x) x##_f64
#include "bare.h"
