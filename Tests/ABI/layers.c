#include "check.h"

#include "layers.h"

#include <stdlib.h>

void check_ok(bn_status status, const char *what)
{
    check(status == BN_STATUS_OK, "%s: %s: %s", what, bn_status_name(status),
          bn_last_error_message());
}

bn_layer *layer_of(const bn_layer_options *options)
{
    bn_layer *layer = NULL;
    check_ok(bn_layer_create(options, &layer), "bn_layer_create");
    check(layer != NULL, "bn_layer_create succeeded without a layer");
    return layer;
}

bn_layer *layer_with_values(const fixture *f, const bn_layer_options *options)
{
    bn_layer *layer = layer_of(options);
    const int64_t channels = options->num_features;
    if (options->has_weight)
        check_ok(bn_layer_set_weight(layer, f->weight.data, channels), "set_weight");
    if (options->has_bias) check_ok(bn_layer_set_bias(layer, f->bias.data, channels), "set_bias");
    if (options->track_running_stats) {
        check_ok(bn_layer_set_running_mean(layer, f->running_mean.data, channels),
                 "set_running_mean");
        check_ok(bn_layer_set_running_var(layer, f->running_var.data, channels), "set_running_var");
        check_ok(bn_layer_set_num_batches_tracked(layer, *f->num_batches_tracked),
                 "set_num_batches_tracked");
    }
    return layer;
}

bn_status layer_forward(bn_layer *layer, const fixture *f)
{
    return bn_layer_forward(layer, &f->problem, f->input.data, f->input.count, f->output.data,
                            f->output.count);
}

bn_status layer_backward(bn_layer *layer, const fixture *f)
{
    return bn_layer_backward(layer, &f->problem, f->input.data, f->input.count, f->grad_output.data,
                             f->grad_output.count, f->grad_input.data, f->grad_input.count,
                             f->grad_weight.data, f->grad_weight.count, f->grad_bias.data,
                             f->grad_bias.count);
}

state_bytes state_of(const bn_layer *layer)
{
    state_bytes state = { NULL, 0 };
    check_ok(bn_layer_state_size(layer, &state.size), "bn_layer_state_size");
    state.bytes = malloc((size_t)state.size);
    check(state.bytes != NULL, "malloc");
    check_ok(bn_layer_save_state(layer, state.bytes, state.size), "bn_layer_save_state");
    return state;
}
