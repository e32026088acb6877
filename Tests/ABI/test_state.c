/*
 * A layer's state as bytes: what was saved comes back to the bit, and nothing else gets in. A state is copied flush
 * against a guard page before it is read, so that reading past its end shows.
 */
#include "check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "layers.h"

/* The layout of version 2, which programs have on disk: magic 8, version u32, dtype i32, size i64,
 * num_features i64, num_batches_tracked i64, epsilon f64, momentum f64, averaging, running_variance,
 * one_value, nonfinite, has_weight, has_bias, track_running_stats, training i32, arrays,
 * skipped_batches i64, CRC-32. Version 1 is the same without skipped_batches. */
enum {
    AT_VERSION = 8,
    AT_DTYPE = 12,
    AT_SIZE = 16,
    AT_NUM_FEATURES = 24,
    AT_BATCHES = 32,
    AT_EPSILON = 40,
    AT_MOMENTUM = 48,
    AT_AVERAGING = 56,
    AT_RUNNING_VARIANCE = 60,
    AT_ONE_VALUE = 64,
    AT_NONFINITE = 68,
    AT_HAS_WEIGHT = 72,
    AT_HAS_BIAS = 76,
    AT_TRACK = 80,
    AT_TRAINING = 84,
    AT_ARRAYS = 88
};

/* CRC-32 as of IEEE 802.3, bit by bit. */
static uint32_t crc32_of(const unsigned char *bytes, int64_t size)
{
    uint32_t crc = UINT32_MAX;
    for (int64_t i = 0; i < size; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
    }
    return ~crc;
}

static void repair_checksum(unsigned char *bytes, int64_t size)
{
    const uint32_t crc = crc32_of(bytes, size - 4);
    for (int i = 0; i < 4; i++) bytes[size - 4 + i] = (unsigned char)(crc >> 8 * i);
}

static unsigned char *flush(const unsigned char *bytes, int64_t size)
{
    unsigned char *copy = guarded((size_t)size, 1, PLACE_END);
    memcpy(copy, bytes, (size_t)size);
    return copy;
}

static fixture images(int dtype)
{
    const bn_problem problem = BN_PROBLEM_2D(dtype, BN_LAYOUT_NCHW, 4, 5, 3, 3);
    return fixture_make(problem, PLACE_END);
}

/* A layer with nothing at its default. */
static bn_layer *lived_in(const fixture *f, bn_layer_options options)
{
    bn_layer *layer = layer_with_values(f, &options);
    check_ok(layer_forward(layer, f), "bn_layer_forward");
    const int64_t skipped[10] = { 0, 1, 2, 3, 4, 4, 3, 2, 1, 0 };
    if (options.track_running_stats)
        check_ok(bn_layer_set_skipped_batches(layer, skipped, 10), "set_skipped_batches");
    check_ok(bn_layer_set_training(layer, 0), "set_training");
    return layer;
}

static void check_same_state(const bn_layer *layer, state_bytes expected, const char *what)
{
    const state_bytes state = state_of(layer);
    check(state.size == expected.size &&
              memcmp(state.bytes, expected.bytes, (size_t)state.size) == 0,
          "%s", what);
    free(state.bytes);
}

/* ---- saving and loading ---- */

static void round_trip(void **state)
{
    (void)state;
    for (int choice = 0; choice < 64; choice++) {
        fixture f = images(1 + (choice & 1));
        bn_layer_options options = options_for(&f);
        options.has_weight = choice >> 1 & 1;
        options.has_bias = choice >> 2 & 1;
        options.track_running_stats = choice >> 3 & 1;
        options.averaging = choice >> 4 & 1;
        options.running_variance = choice >> 5 & 1;
        options.one_value = choice % 3;
        options.epsilon = 1e-4;
        options.momentum = 0.25;
        bn_layer *layer = lived_in(&f, options);
        const state_bytes saved = state_of(layer);
        unsigned char *bytes = flush(saved.bytes, saved.size);

        bn_layer *made = NULL;
        check_ok(bn_layer_create_from_state(bytes, saved.size, &made), "create_from_state");
        check_same_state(made, saved, "a layer made from a state has another one");
        bn_layer_options back = BN_LAYER_OPTIONS_INIT;
        check_ok(bn_layer_get_options(made, &back), "get_options");
        check(memcmp(&back, &options, sizeof back) == 0, "the options came back changed");
        int32_t training = -1;
        check_ok(bn_layer_get_training(made, &training), "get_training");
        check(training == 0, "the mode came back changed");
        check_refused(layer_backward(made, &f), BN_STATUS_NO_FORWARD, "forward");

        /* The two go on in the same way. */
        elements_fill_junk(f.output);
        check_ok(layer_forward(layer, &f), "bn_layer_forward");
        const elements output = guarded_elements(f.output.count, f.output.is_double, PLACE_END);
        elements_copy(output, f.output);
        elements_fill_junk(f.output);
        check_ok(layer_forward(made, &f), "bn_layer_forward");
        check(elements_first_difference(f.output, output) < 0, "the layers differ");

        /* A layer of the same kind takes it over, but keeps its own epsilon and momentum. */
        bn_layer_options other = options;
        other.epsilon = 0.5;
        bn_layer *loaded = layer_of(&other);
        check_ok(bn_layer_load_state(loaded, bytes, saved.size), "load_state");
        check_ok(bn_layer_get_options(loaded, &back), "get_options");
        check(memcmp(&back, &other, sizeof back) == 0, "loading changed the options");
        state_bytes taken = state_of(loaded);
        check(memcmp(taken.bytes + AT_ARRAYS, saved.bytes + AT_ARRAYS,
                     (size_t)(saved.size - AT_ARRAYS - 4)) == 0 &&
                  memcmp(taken.bytes + AT_BATCHES, saved.bytes + AT_BATCHES, 8) == 0 &&
                  memcmp(taken.bytes + AT_TRAINING, saved.bytes + AT_TRAINING, 4) == 0,
              "loading took over something else");
        free(taken.bytes);
        free(saved.bytes);
        bn_layer_destroy(loaded);
        bn_layer_destroy(made);
        bn_layer_destroy(layer);
        guarded_free_all();
    }
}

/* The very bytes, written out by hand: what is on disk today can be read tomorrow, on any machine. */
static void the_bytes_are_these(void **state)
{
    (void)state;
    for (int version = 1; version <= 2; version++) {
        const unsigned char v = (unsigned char)version, size = version == 1 ? 124 : 156;
        const unsigned char head[AT_ARRAYS] = {
            0x89, 'B',  'N', 'S', '\r', '\n', 0x1A, '\n', /* magic */
            v,    0,    0,   0,   1,    0,    0,    0,    /* version, dtype */
            size, 0,    0,   0,   0,    0,    0,    0,    /* size */
            2,    0,    0,   0,   0,    0,    0,    0,    /* num_features */
            0x39, 0x30, 0,   0,   0,    0,    0,    0,    /* 12345 batches */
            0,    0,    0,   0,   0,    0,    0xE0, 0x3F, /* epsilon 0.5 */
            0,    0,    0,   0,   0,    0,    0xD0, 0x3F, /* momentum 0.25 */
            1,    0,    0,   0,   1,    0,    0,    0,    /* averaging, running_variance */
            2,    0,    0,   0,   1,    0,    0,    0,    /* one_value, nonfinite */
            1,    0,    0,   0,   1,    0,    0,    0,    /* has_weight, has_bias */
            1,    0,    0,   0,   0,    0,    0,    0,    /* track_running_stats, training */
        };
        static const float arrays[8] = { 1.5f, -2, 3, 0.125f, 10, 20, 30, 40 };
        static const int64_t skipped[4] = { 0, 513, 12345, 1 };
        unsigned char bytes[AT_ARRAYS + 32 + 32 + 4] = { 0 };
        memcpy(bytes, head, sizeof head);
        for (int i = 0; i < 8; i++) {
            uint32_t bits;
            memcpy(&bits, &arrays[i], 4);
            for (int k = 0; k < 4; k++)
                bytes[AT_ARRAYS + 4 * i + k] = (unsigned char)(bits >> 8 * k);
        }
        for (int i = 0; i < 32 && version == 2; i++)
            bytes[AT_ARRAYS + 32 + i] = (unsigned char)(skipped[i / 8] >> 8 * (i % 8));
        repair_checksum(bytes, size);

        bn_layer *layer = NULL;
        check_ok(bn_layer_create_from_state(flush(bytes, size), size, &layer), "create_from_state");
        bn_layer_options options = BN_LAYER_OPTIONS_INIT;
        check_ok(bn_layer_get_options(layer, &options), "get_options");
        check(options.dtype == BN_DTYPE_FLOAT32 && options.num_features == 2 &&
                  options.epsilon == 0.5 && options.momentum == 0.25 &&
                  options.averaging == BN_AVERAGING_CUMULATIVE &&
                  options.running_variance == BN_VARIANCE_BIASED &&
                  options.one_value == BN_ONE_VALUE_ALLOW &&
                  options.nonfinite == BN_NONFINITE_ERROR && options.has_weight == 1 &&
                  options.has_bias == 1 && options.track_running_stats == 1,
              "the options were read wrongly");
        int32_t training = -1;
        int64_t batches = -1, counters[4];
        check_ok(bn_layer_get_training(layer, &training), "get_training");
        check_ok(bn_layer_get_num_batches_tracked(layer, &batches), "get_num_batches_tracked");
        check(training == 0 && batches == 12345, "training is %d, the counter %lld", training,
              (long long)batches);
        check_ok(bn_layer_get_skipped_batches(layer, counters, 4), "get_skipped_batches");
        for (int i = 0; i < 4; i++)
            check(counters[i] == (version == 1 ? 0 : skipped[i]), "skipped_batches[%d] is %lld", i,
                  (long long)counters[i]);
        float values[8];
        check_ok(bn_layer_get_weight(layer, values, 2), "get_weight");
        check_ok(bn_layer_get_bias(layer, values + 2, 2), "get_bias");
        check_ok(bn_layer_get_running_mean(layer, values + 4, 2), "get_running_mean");
        check_ok(bn_layer_get_running_var(layer, values + 6, 2), "get_running_var");
        check(memcmp(values, arrays, sizeof values) == 0, "the arrays were read wrongly");
        if (version == 2)
            check_same_state(layer, (state_bytes){ bytes, size }, "it is written differently");

        /* Loading replaces what was skipped before, also by none. */
        check_ok(bn_layer_set_skipped_batches(layer, (int64_t[]){ 9, 9, 9, 9 }, 4), "set");
        check_ok(bn_layer_load_state(layer, bytes, size), "load_state");
        check_ok(bn_layer_get_skipped_batches(layer, counters, 4), "get_skipped_batches");
        check(counters[1] == (version == 1 ? 0 : 513), "loading left skipped batches");
        bn_layer_destroy(layer);
    }
}

static void the_buffer_may_be_larger_but_not_smaller(void **state)
{
    (void)state;
    fixture f = images(BN_DTYPE_FLOAT64);
    bn_layer *layer = lived_in(&f, options_for(&f));
    const state_bytes saved = state_of(layer);
    char words[64];
    for (int64_t size = 0; size < saved.size; size++) {
        unsigned char *small = guarded((size_t)size, 1, PLACE_END);
        memset(small, 0x77, (size_t)size);
        snprintf(words, sizeof words, "size|%lld|%lld", (long long)size, (long long)saved.size);
        check_refused(bn_layer_save_state(layer, small, size), BN_STATUS_BUFFER_TOO_SMALL, words);
        for (int64_t i = 0; i < size; i++)
            check(small[i] == 0x77, "byte %lld of a buffer too small was written", (long long)i);
        guarded_free(small);
    }
    check_refused(bn_layer_save_state(layer, NULL, 0), BN_STATUS_BUFFER_TOO_SMALL, "size|0");
    check_refused(bn_layer_save_state(layer, saved.bytes, -1), BN_STATUS_NEGATIVE_SIZE, "size|-1");

    unsigned char *large = guarded((size_t)saved.size + 9, 1, PLACE_END);
    memset(large, 0x77, (size_t)saved.size + 9);
    check_ok(bn_layer_save_state(layer, large, saved.size + 9), "save_state");
    check(memcmp(large, saved.bytes, (size_t)saved.size) == 0, "a larger buffer got another state");
    for (int i = 0; i < 9; i++)
        check(large[saved.size + i] == 0x77, "something was written beyond the state");
    free(saved.bytes);
    bn_layer_destroy(layer);
}

/* ---- what must not get in ---- */

typedef struct victim {
    bn_layer *layer;
    state_bytes before;
} victim;

/* Neither way in accepts these bytes, and neither changes anything. `expected` 0: any status of the
 * family will do. */
static void rejected(victim *v, const unsigned char *bytes, int64_t size, bn_status expected,
                     const char *words, const char *what)
{
    bn_layer *made = (bn_layer *)v;
    for (int way = 0; way < 2; way++) {
        const bn_status status = way == 0 ? bn_layer_load_state(v->layer, bytes, size)
                                          : bn_layer_create_from_state(bytes, size, &made);
        if (expected == 0) {
            check(status >= 600 && status < 700, "%s: %s: %s", what, bn_status_name(status),
                  bn_last_error_message());
            check(strlen(bn_last_error_message()) > 0, "%s: no message", what);
        } else {
            check_refused(status, expected, words);
        }
    }
    check(made == (bn_layer *)v, "%s: *layer was set", what);
    check_same_state(v->layer, v->before, what);
}

static victim make_victim(const fixture *f)
{
    bn_layer_options options = options_for(f);
    victim v = { .layer = layer_of(&options) };
    v.before = state_of(v.layer);
    return v;
}

static void end_victim(victim *v)
{
    free(v->before.bytes);
    bn_layer_destroy(v->layer);
}

static void every_flipped_bit_is_rejected(void **state)
{
    (void)state;
    fixture f = images(BN_DTYPE_FLOAT32);
    bn_layer *layer = lived_in(&f, options_for(&f));
    victim v = make_victim(&f);
    const state_bytes saved = state_of(layer);
    unsigned char *bytes = flush(saved.bytes, saved.size);
    for (int64_t i = 0; i < saved.size; i++)
        for (int bit = 0; bit < 8; bit++) {
            char what[64];
            snprintf(what, sizeof what, "bit %d of byte %lld flipped", bit, (long long)i);
            bytes[i] ^= (unsigned char)(1 << bit);
            const bn_status expected = i < AT_VERSION ? BN_STATUS_STATE_FOREIGN
                                       : i < AT_DTYPE ? BN_STATUS_STATE_VERSION
                                       : i >= AT_SIZE && i < AT_NUM_FEATURES
                                           ? BN_STATUS_STATE_TRUNCATED
                                           : BN_STATUS_STATE_CHECKSUM;
            rejected(&v, bytes, saved.size, expected, "", what);
            bytes[i] ^= (unsigned char)(1 << bit);
        }
    check_ok(bn_layer_load_state(v.layer, bytes, saved.size), "the undamaged state");
    free(saved.bytes);
    end_victim(&v);
    bn_layer_destroy(layer);
}

static void truncated_and_too_long(void **state)
{
    (void)state;
    fixture f = images(BN_DTYPE_FLOAT32);
    bn_layer *layer = lived_in(&f, options_for(&f));
    victim v = make_victim(&f);
    const state_bytes saved = state_of(layer);
    char words[64];
    for (int64_t size = 0; size < saved.size; size++) {
        unsigned char *bytes = flush(saved.bytes, size);
        snprintf(words, sizeof words, "%lld bytes|expected", (long long)size);
        rejected(&v, bytes, size, BN_STATUS_STATE_TRUNCATED, words, "truncated");
        guarded_free(bytes);
    }
    for (int64_t more = 1; more < 20; more++) {
        unsigned char *bytes = guarded((size_t)(saved.size + more), 1, PLACE_END);
        memset(bytes, 0, (size_t)(saved.size + more));
        memcpy(bytes, saved.bytes, (size_t)saved.size);
        snprintf(words, sizeof words, "%lld|%lld", (long long)(saved.size + more),
                 (long long)saved.size);
        rejected(&v, bytes, saved.size + more, BN_STATUS_STATE_TRUNCATED, words, "too long");
        guarded_free(bytes);
    }
    rejected(&v, saved.bytes, -1, BN_STATUS_NEGATIVE_SIZE, "size|-1", "negative size");
    free(saved.bytes);
    end_victim(&v);
    bn_layer_destroy(layer);
}

static void foreign_bytes(void **state)
{
    (void)state;
    fixture f = images(BN_DTYPE_FLOAT32);
    victim v = make_victim(&f);
    static const char *const texts[] = { "x", "PK\3\4", "{\"weight\": [1, 2, 3]}",
                                         "\x93NUMPY\x01\x00v\x00{'descr': '<f4'" };
    for (size_t i = 0; i < LENGTH(texts); i++) {
        const int64_t size = (int64_t)strlen(texts[i]);
        rejected(&v, flush((const unsigned char *)texts[i], size), size, BN_STATUS_STATE_FOREIGN,
                 "libbatchnorm", texts[i]);
    }
    unsigned char zeros[300] = { 0 };
    rejected(&v, zeros, sizeof zeros, BN_STATUS_STATE_FOREIGN, "", "zeros");
    /* Noise behind the right beginning: whatever it is, it is no state. */
    const state_bytes saved = state_of(v.layer);
    const elements noise = guarded_elements(100, true, PLACE_END);
    for (uint64_t seed = 0; seed < 2000; seed++) {
        elements_fill_normal(noise, seed, 0, 1e100);
        memcpy(noise.data, saved.bytes, AT_VERSION + seed % 3 * 4);
        rejected(&v, noise.data, 800 - (int64_t)(seed % 700), 0, "", "noise");
    }
    free(saved.bytes);
    end_victim(&v);
}

/* Intact by its checksum, and yet not what a layer can be. */
static void intact_but_impossible(void **state)
{
    (void)state;
    fixture f = images(BN_DTYPE_FLOAT32);
    bn_layer *layer = lived_in(&f, options_for(&f));
    victim v = make_victim(&f);
    const state_bytes saved = state_of(layer);
    const double negative = -1e-5, infinite = INFINITY, nan = NAN;
    const int64_t minus_one = -1, four = 4, zero = 0, huge = INT64_MAX, wrap = INT64_C(1) << 60;
    const int32_t two = 2, three = 3, five = 5, minus = -1;
    const uint32_t newer = 3, none = 0;
    const int at_skipped = (int)saved.size - 4 - 10 * 8;
    const int64_t five_batches = 5;
    const struct {
        int at;
        const void *value;
        int bytes;
        bn_status expected;
        const char *words;
    } changes[] = {
        { AT_VERSION, &newer, 4, BN_STATUS_STATE_VERSION, "version|3|1 to 2" },
        { AT_VERSION, &none, 4, BN_STATUS_STATE_VERSION, "version|0|1 to 2" },
        { at_skipped, &five_batches, 8, BN_STATUS_STATE_INVALID, "skipped_batches|5|num_batches" },
        { at_skipped + 72, &minus_one, 8, BN_STATUS_STATE_INVALID, "skipped_batches|-1" },
        { AT_DTYPE, &five, 4, BN_STATUS_STATE_INVALID, "dtype|5|1|4" },
        { AT_DTYPE, &two, 4, BN_STATUS_STATE_INVALID, "" }, /* then there are too few bytes */
        { AT_NUM_FEATURES, &zero, 8, BN_STATUS_STATE_INVALID, "num_features|0|1" },
        { AT_NUM_FEATURES, &minus_one, 8, BN_STATUS_STATE_INVALID, "num_features|-1" },
        { AT_NUM_FEATURES, &four, 8, BN_STATUS_STATE_INVALID, "num_features|4" },
        { AT_NUM_FEATURES, &huge, 8, BN_STATUS_STATE_INVALID, "num_features|9223372036854775807" },
        { AT_NUM_FEATURES, &wrap, 8, BN_STATUS_STATE_INVALID, "num_features|1152921504606846976" },
        { AT_BATCHES, &minus_one, 8, BN_STATUS_STATE_INVALID, "num_batches_tracked|-1|0" },
        { AT_EPSILON, &negative, 8, BN_STATUS_STATE_INVALID, "epsilon|-1e-05" },
        { AT_EPSILON, &nan, 8, BN_STATUS_STATE_INVALID, "epsilon|nan" },
        { AT_MOMENTUM, &infinite, 8, BN_STATUS_STATE_INVALID, "momentum|inf" },
        { AT_AVERAGING, &two, 4, BN_STATUS_STATE_INVALID, "averaging|2|0|1" },
        { AT_RUNNING_VARIANCE, &minus, 4, BN_STATUS_STATE_INVALID, "running_variance|-1|0|1" },
        { AT_ONE_VALUE, &three, 4, BN_STATUS_STATE_INVALID, "one_value|3|0|1|2" },
        { AT_NONFINITE, &two, 4, BN_STATUS_STATE_INVALID, "nonfinite|2|0|1" },
        { AT_HAS_WEIGHT, &two, 4, BN_STATUS_STATE_INVALID, "has_weight|2|0|1" },
        { AT_HAS_WEIGHT, &zero, 4, BN_STATUS_STATE_INVALID, "" },
        { AT_HAS_BIAS, &minus, 4, BN_STATUS_STATE_INVALID, "has_bias|-1|0|1" },
        { AT_TRACK, &three, 4, BN_STATUS_STATE_INVALID, "track_running_stats|3|0|1" },
        { AT_TRAINING, &two, 4, BN_STATUS_STATE_INVALID, "training|2|0|1" },
    };
    for (size_t i = 0; i < LENGTH(changes); i++) {
        unsigned char *bytes = flush(saved.bytes, saved.size);
        memcpy(bytes + changes[i].at, changes[i].value, (size_t)changes[i].bytes);
        repair_checksum(bytes, saved.size);
        rejected(&v, bytes, saved.size, changes[i].expected, changes[i].words, changes[i].words);
    }
    free(saved.bytes);
    end_victim(&v);
    bn_layer_destroy(layer);
}

static void of_another_kind_of_layer(void **state)
{
    (void)state;
    fixture f = images(BN_DTYPE_FLOAT32);
    const bn_layer_options mine = options_for(&f);
    bn_layer_options others[5] = { mine, mine, mine, mine, mine };
    others[0].dtype = BN_DTYPE_FLOAT64;
    others[1].num_features = 6;
    others[2].has_weight = 0;
    others[3].has_bias = 0;
    others[4].track_running_stats = 0;
    static const char *const words[] = { "float64|float32", "6|5", "has_weight|0|1", "has_bias|0|1",
                                         "track_running_stats|0|1" };
    victim v = make_victim(&f);
    for (size_t i = 0; i < LENGTH(words); i++) {
        bn_layer *other = layer_of(&others[i]);
        const state_bytes saved = state_of(other);
        check_refused(bn_layer_load_state(v.layer, saved.bytes, saved.size),
                      BN_STATUS_LAYER_MISMATCH, words[i]);
        check_same_state(v.layer, v.before, words[i]);
        free(saved.bytes);
        bn_layer_destroy(other);
    }
    end_victim(&v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(round_trip, fixture_teardown),
        cmocka_unit_test_teardown(the_bytes_are_these, fixture_teardown),
        cmocka_unit_test_teardown(the_buffer_may_be_larger_but_not_smaller, fixture_teardown),
        cmocka_unit_test_teardown(every_flipped_bit_is_rejected, fixture_teardown),
        cmocka_unit_test_teardown(truncated_and_too_long, fixture_teardown),
        cmocka_unit_test_teardown(foreign_bytes, fixture_teardown),
        cmocka_unit_test_teardown(intact_but_impossible, fixture_teardown),
        cmocka_unit_test_teardown(of_another_kind_of_layer, fixture_teardown),
    };
    return cmocka_run_group_tests_name("abi: state", tests, NULL, NULL);
}
