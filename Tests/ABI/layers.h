/*
 * layers.h — bn_layer calls with the arguments of a fixture, for the tests of the layer.
 */
#ifndef LAYERS_H
#define LAYERS_H

#include "fixture.h"

static inline bn_layer_options options_for(const fixture *f)
{
    bn_layer_options options = BN_LAYER_OPTIONS_INIT;
    options.dtype = f->original.dtype;
    options.num_features = f->original.sizes[1];
    return options;
}

/* Makes a layer; the caller destroys it. */
bn_layer *layer_of(const bn_layer_options *options);
/* The same with the fixture's weight, bias and running statistics, and its counter. */
bn_layer *layer_with_values(const fixture *f, const bn_layer_options *options);

/* Statuses are the caller's to check. */
bn_status layer_forward(bn_layer *layer, const fixture *f);
bn_status layer_backward(bn_layer *layer, const fixture *f);

void check_ok(bn_status status, const char *what);

/* Everything that a layer holds between calls, as its state: the caller frees it with free(). */
typedef struct state_bytes {
    unsigned char *bytes;
    int64_t size;
} state_bytes;
state_bytes state_of(const bn_layer *layer);

#endif
