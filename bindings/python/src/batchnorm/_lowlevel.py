"""The C library, exactly as include/batchnorm.h declares it: each struct, enum and function once.

Invariant: tests/test_header.py compares every line of this with the header. A function that returns
a bn_status raises on failure here, so that no caller can forget to look.
"""

from __future__ import annotations

import ctypes
import enum
import os
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_char_p,
    c_double,
    c_int32,
    c_int64,
    c_uint32,
    c_void_p,
)
from pathlib import Path
from typing import Any

from .errors import BatchNormImportError, error_for

# The SONAME: before 1.0 with the minor version, which may break what was there.
LIBRARY_NAME = "libbatchnorm.so.0.1"


def _load() -> ctypes.CDLL:
    """The library: where BATCHNORM_LIBRARY says, else inside this package, else the system's.

    CDLL, not PyDLL: the interpreter lock is released for the duration of every call.
    """
    override = os.environ.get("BATCHNORM_LIBRARY")
    packaged = Path(__file__).with_name(LIBRARY_NAME)
    if override:
        name, origin = override, "named by the environment variable BATCHNORM_LIBRARY"
    elif packaged.exists():
        name, origin = str(packaged), "inside the package"
    else:
        name, origin = LIBRARY_NAME, "searched for by the system's loader"
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise BatchNormImportError(
            f"batchnorm cannot load its shared library {name} ({origin}): {error}. Install the "
            f"package with pip, or set BATCHNORM_LIBRARY to the path of a built {LIBRARY_NAME}.",
            path=name,
        ) from error


_library = _load()


# Enums: the values of the C enums, under the C names without their prefix.


class Dtype(enum.IntEnum):
    FLOAT32 = 1
    FLOAT64 = 2
    BFLOAT16 = 3
    FLOAT16 = 4


class Layout(enum.IntEnum):
    NCHW = 1
    NHWC = 2


class Averaging(enum.IntEnum):
    EXPONENTIAL = 0
    CUMULATIVE = 1


class Variance(enum.IntEnum):
    UNBIASED = 0
    BIASED = 1


class OneValue(enum.IntEnum):
    ERROR = 0
    USE_RUNNING = 1
    ALLOW = 2


class Nonfinite(enum.IntEnum):
    REPORT = 0
    ERROR = 1


class Activation(enum.IntEnum):
    NONE = 0
    RELU = 1
    LEAKY_RELU = 2


class Masked(enum.IntEnum):
    ZERO = 0
    PASS = 1


class Pass(enum.IntEnum):
    NORMAL = 0
    KEEP_RUNNING = 1
    RECOMPUTE = 2


class Statistics(enum.IntEnum):
    BATCH = 0
    RUNNING = 1


class Threading(enum.IntEnum):
    AUTO = 0
    OWN = 1
    SHARED = 2
    POOL = 3


class Isa(enum.IntEnum):
    GENERIC = 0
    AVX2 = 1
    AVX512 = 2


class Operation(enum.IntEnum):
    FORWARD_TRAINING = 1
    FORWARD_INFERENCE = 2
    BACKWARD = 3
    BACKWARD_FROZEN = 4


# Structs. Pointers to array elements are c_void_p: the callers put addresses in. The structs that C
# embeds in others are spread out there, which costs no object at each access: `input` and
# `input_count` are C's input.data and input.count.


def _view(name: str) -> tuple[tuple[str, Any], tuple[str, Any]]:
    return (name, c_void_p), (f"{name}_count", c_int64)


_ACTIVATION = (
    ("activation", c_int32),
    ("activation_reserved", c_int32),
    ("slope", c_double),
    ("limit", c_double),
)
_POSITIONS = (
    *_view("mask"),
    *_view("lengths"),
    ("masked", c_int32),
    ("positions_reserved", c_int32),
)
_SAVED = (*_view("saved_mean"), *_view("saved_invstd"), *_view("saved_mean_rest"))


class bn_positions(Structure):
    _fields_ = _POSITIONS


class bn_saved(Structure):
    _fields_ = _SAVED


class bn_problem(Structure):
    _fields_ = (
        ("struct_size", c_uint32),
        ("dtype", c_int32),
        ("layout", c_int32),
        ("rank", c_int32),
        ("sizes", c_int64 * 5),
    )


class bn_forward_training_args(Structure):
    _fields_ = (
        ("struct_size", c_uint32),
        ("averaging", c_int32),
        ("running_variance", c_int32),
        ("one_value", c_int32),
        ("nonfinite", c_int32),
        ("reserved", c_int32),
        ("epsilon", c_double),
        ("momentum", c_double),
        *_view("input"),
        *_view("output"),
        *_view("weight"),
        *_view("bias"),
        *_view("running_mean"),
        *_view("running_var"),
        ("num_batches_tracked", c_void_p),
        *_view("skipped_batches"),
        *_SAVED,
        *_ACTIVATION,
        *_view("residual"),
        *_view("activation_mask"),
        *_POSITIONS,
        ("nonfinite_channels", c_int64),
        ("nonfinite_running_channels", c_int64),
        ("values_per_channel", c_int64),
        ("statistics_used", c_int32),
        ("reserved_end", c_int32),
    )


class bn_forward_inference_args(Structure):
    _fields_ = (
        ("struct_size", c_uint32),
        ("reserved", c_int32),
        ("epsilon", c_double),
        *_view("input"),
        *_view("output"),
        *_view("weight"),
        *_view("bias"),
        *_view("running_mean"),
        *_view("running_var"),
        *_ACTIVATION,
        *_view("residual"),
        *_view("activation_mask"),
        *_POSITIONS,
    )


class bn_backward_args(Structure):
    _fields_ = (
        ("struct_size", c_uint32),
        ("statistics", c_int32),
        ("epsilon", c_double),
        *_view("input"),
        *_view("grad_output"),
        *_view("grad_input"),
        *_view("grad_weight"),
        *_view("grad_bias"),
        *_view("weight"),
        *_SAVED,
        *_view("running_mean"),
        *_view("running_var"),
        *_ACTIVATION,
        *_view("activation_mask"),
        *_view("output"),
        *_view("grad_residual"),
        *_POSITIONS,
    )


class bn_moments(Structure):
    _fields_ = (
        ("struct_size", c_uint32),
        ("reserved", c_int32),
        ("channels", c_int64),
        ("count", c_int64),
        ("mean", c_void_p),
        ("mean_rest", c_void_p),
        ("m2", c_void_p),
    )


class bn_gradient_sums(Structure):
    _fields_ = (
        ("struct_size", c_uint32),
        ("reserved", c_int32),
        ("channels", c_int64),
        ("count", c_int64),
        ("sum_dy", c_void_p),
        ("sum_dy_xmu", c_void_p),
    )


class bn_layer_options(Structure):
    _fields_ = (
        ("struct_size", c_uint32),
        ("dtype", c_int32),
        ("num_features", c_int64),
        ("epsilon", c_double),
        ("momentum", c_double),
        ("averaging", c_int32),
        ("running_variance", c_int32),
        ("one_value", c_int32),
        ("nonfinite", c_int32),
        ("has_weight", c_int32),
        ("has_bias", c_int32),
        ("track_running_stats", c_int32),
        ("reserved", c_int32),
    )


class bn_layer_forward_args(Structure):
    _fields_ = (
        ("struct_size", c_uint32),
        ("pass", c_int32),
        *_view("input"),
        *_view("output"),
        *_ACTIVATION,
        *_view("residual"),
        *_POSITIONS,
    )


class bn_layer_backward_args(Structure):
    _fields_ = (
        ("struct_size", c_uint32),
        ("reserved", c_int32),
        *_view("input"),
        *_view("grad_output"),
        *_view("grad_input"),
        *_view("grad_weight"),
        *_view("grad_bias"),
        *_view("grad_residual"),
    )


class bn_explain_args(Structure):
    _fields_ = (
        ("struct_size", c_uint32),
        ("operation", c_int32),
        *_ACTIVATION,
        ("residual", c_int32),
        ("activation_mask", c_int32),
        ("mask", c_int32),
        ("lengths", c_int32),
        ("grad_input", c_int32),
        ("grad_weight", c_int32),
        ("grad_bias", c_int32),
        ("reserved", c_int32),
    )


class bn_plan_info(Structure):
    _fields_ = (
        ("struct_size", c_uint32),
        ("isa", c_int32),
        ("threads", c_int32),
        ("by_columns", c_int32),
        ("steps", c_int32),
        ("nontemporal", c_int32),
        ("run_channels", c_int64),
        ("rows_per_line", c_int64),
        ("piece_rows", c_int64),
        ("piece_values", c_int64),
        ("pieces", c_int64),
        ("workspace_bytes", c_int64),
        ("tensor_bytes", c_int64),
        ("bytes_read", c_int64),
        ("bytes_written", c_int64),
        ("limit_bytes_read", c_int64),
        ("limit_bytes_written", c_int64),
        ("l2_bytes", c_int64),
        ("l3_bytes", c_int64),
    )


class bn_weight_shape(Structure):
    _fields_ = (
        ("struct_size", c_uint32),
        ("dtype", c_int32),
        ("groups", c_int64),
        ("outer", c_int64),
        ("channels", c_int64),
        ("inner", c_int64),
    )


class bn_fold_args(Structure):
    _fields_ = (
        ("struct_size", c_uint32),
        ("reserved", c_int32),
        ("epsilon", c_double),
        *_view("running_mean"),
        *_view("running_var"),
        *_view("weight"),
        *_view("bias"),
        *_view("conv_weight"),
        *_view("conv_bias"),
        *_view("folded_weight"),
        *_view("folded_bias"),
        ("weight_error", c_double),
        ("bias_error", c_double),
    )


EXPLAIN_TEXT_SIZE = 2048

# Functions. Types first: what a bn_status is to ctypes, an opaque layer, and callbacks.

bn_status = c_int32
bn_layer_p = c_void_p
bn_member = CFUNCTYPE(None, c_void_p, c_int32)
bn_run_members = CFUNCTYPE(None, c_void_p, c_int32, bn_member, c_void_p)


def _raise_on_failure(status: int, function: Any, _arguments: Any) -> None:
    if status:
        text = bn_last_error_message().decode("utf-8", "replace")
        raise error_for(status, text, function.__name__)


def _declare(name: str, result: Any, *arguments: Any) -> Any:
    try:
        function = getattr(_library, name)
    except AttributeError:
        raise BatchNormImportError(
            f"{_library._name} has no function {name}: it is not the libbatchnorm that this "
            "package was written for",
            path=_library._name,
        ) from None
    function.restype = result
    function.argtypes = arguments
    return function


def _declare_checked(name: str, *arguments: Any) -> Any:
    """A function that returns a bn_status: raises on failure, returns None on success."""
    function = _declare(name, bn_status, *arguments)
    function.errcheck = _raise_on_failure
    return function


bn_status_name = _declare("bn_status_name", c_char_p, bn_status)
bn_last_error_message = _declare("bn_last_error_message", c_char_p)

bn_forward_training = _declare_checked(
    "bn_forward_training", POINTER(bn_problem), POINTER(bn_forward_training_args)
)
bn_forward_inference = _declare_checked(
    "bn_forward_inference", POINTER(bn_problem), POINTER(bn_forward_inference_args)
)
bn_backward = _declare_checked("bn_backward", POINTER(bn_problem), POINTER(bn_backward_args))

bn_moments_compute = _declare_checked(
    "bn_moments_compute",
    POINTER(bn_problem),
    *(c_void_p, c_int64),
    POINTER(bn_positions),
    POINTER(bn_moments),
)
bn_moments_merge = _declare_checked("bn_moments_merge", POINTER(bn_moments), POINTER(bn_moments))
bn_moments_statistics = _declare_checked(
    "bn_moments_statistics",
    POINTER(bn_moments),
    c_double,
    c_int32,
    *(c_void_p, c_int64) * 2,
)
bn_normalize = _declare_checked(
    "bn_normalize", POINTER(bn_problem), POINTER(bn_moments), POINTER(bn_forward_training_args)
)
bn_normalize_saved = _declare_checked(
    "bn_normalize_saved",
    POINTER(bn_problem),
    POINTER(bn_saved),
    POINTER(bn_forward_inference_args),
)
bn_backward_reduce = _declare_checked(
    "bn_backward_reduce", POINTER(bn_problem), POINTER(bn_backward_args), POINTER(bn_gradient_sums)
)
bn_backward_apply = _declare_checked(
    "bn_backward_apply", POINTER(bn_problem), POINTER(bn_gradient_sums), POINTER(bn_backward_args)
)

bn_layer_create = _declare_checked(
    "bn_layer_create", POINTER(bn_layer_options), POINTER(bn_layer_p)
)
bn_layer_destroy = _declare("bn_layer_destroy", None, bn_layer_p)
bn_layer_get_options = _declare_checked(
    "bn_layer_get_options", bn_layer_p, POINTER(bn_layer_options)
)
bn_layer_set_epsilon = _declare_checked("bn_layer_set_epsilon", bn_layer_p, c_double)
bn_layer_set_momentum = _declare_checked("bn_layer_set_momentum", bn_layer_p, c_double, c_int32)
bn_layer_set_training = _declare_checked("bn_layer_set_training", bn_layer_p, c_int32)
bn_layer_get_training = _declare_checked("bn_layer_get_training", bn_layer_p, POINTER(c_int32))
bn_layer_forward = _declare_checked(
    "bn_layer_forward", bn_layer_p, POINTER(bn_problem), c_void_p, c_int64, c_void_p, c_int64
)
bn_layer_backward = _declare_checked(
    "bn_layer_backward", bn_layer_p, POINTER(bn_problem), *(c_void_p, c_int64) * 5
)
bn_layer_forward_with = _declare_checked(
    "bn_layer_forward_with", bn_layer_p, POINTER(bn_problem), POINTER(bn_layer_forward_args)
)
bn_layer_backward_with = _declare_checked(
    "bn_layer_backward_with", bn_layer_p, POINTER(bn_problem), POINTER(bn_layer_backward_args)
)
bn_layer_get_weight = _declare_checked("bn_layer_get_weight", bn_layer_p, c_void_p, c_int64)
bn_layer_set_weight = _declare_checked("bn_layer_set_weight", bn_layer_p, c_void_p, c_int64)
bn_layer_get_bias = _declare_checked("bn_layer_get_bias", bn_layer_p, c_void_p, c_int64)
bn_layer_set_bias = _declare_checked("bn_layer_set_bias", bn_layer_p, c_void_p, c_int64)
bn_layer_get_running_mean = _declare_checked(
    "bn_layer_get_running_mean", bn_layer_p, c_void_p, c_int64
)
bn_layer_set_running_mean = _declare_checked(
    "bn_layer_set_running_mean", bn_layer_p, c_void_p, c_int64
)
bn_layer_get_running_var = _declare_checked(
    "bn_layer_get_running_var", bn_layer_p, c_void_p, c_int64
)
bn_layer_set_running_var = _declare_checked(
    "bn_layer_set_running_var", bn_layer_p, c_void_p, c_int64
)
bn_layer_get_num_batches_tracked = _declare_checked(
    "bn_layer_get_num_batches_tracked", bn_layer_p, POINTER(c_int64)
)
bn_layer_set_num_batches_tracked = _declare_checked(
    "bn_layer_set_num_batches_tracked", bn_layer_p, c_int64
)
bn_layer_get_skipped_batches = _declare_checked(
    "bn_layer_get_skipped_batches", bn_layer_p, POINTER(c_int64), c_int64
)
bn_layer_set_skipped_batches = _declare_checked(
    "bn_layer_set_skipped_batches", bn_layer_p, POINTER(c_int64), c_int64
)
bn_layer_weight_data = _declare("bn_layer_weight_data", c_void_p, bn_layer_p)
bn_layer_bias_data = _declare("bn_layer_bias_data", c_void_p, bn_layer_p)
bn_layer_get_saved_mean = _declare_checked("bn_layer_get_saved_mean", bn_layer_p, c_void_p, c_int64)
bn_layer_get_saved_mean_rest = _declare_checked(
    "bn_layer_get_saved_mean_rest", bn_layer_p, c_void_p, c_int64
)
bn_layer_get_saved_invstd = _declare_checked(
    "bn_layer_get_saved_invstd", bn_layer_p, c_void_p, c_int64
)
bn_layer_get_statistics_used = _declare_checked(
    "bn_layer_get_statistics_used", bn_layer_p, POINTER(c_int32)
)
bn_layer_get_nonfinite_channels = _declare_checked(
    "bn_layer_get_nonfinite_channels", bn_layer_p, POINTER(c_int64)
)
bn_layer_get_nonfinite_running_channels = _declare_checked(
    "bn_layer_get_nonfinite_running_channels", bn_layer_p, POINTER(c_int64)
)
bn_layer_reset_running_stats = _declare_checked("bn_layer_reset_running_stats", bn_layer_p)

bn_layer_state_size = _declare_checked("bn_layer_state_size", bn_layer_p, POINTER(c_int64))
bn_layer_save_state = _declare_checked("bn_layer_save_state", bn_layer_p, c_void_p, c_int64)
bn_layer_load_state = _declare_checked("bn_layer_load_state", bn_layer_p, c_void_p, c_int64)
bn_layer_create_from_state = _declare_checked(
    "bn_layer_create_from_state", c_void_p, c_int64, POINTER(bn_layer_p)
)

bn_fold = _declare_checked("bn_fold", POINTER(bn_weight_shape), POINTER(bn_fold_args))
bn_layer_fold = _declare_checked(
    "bn_layer_fold", bn_layer_p, POINTER(bn_weight_shape), POINTER(bn_fold_args)
)

bn_set_num_threads = _declare_checked("bn_set_num_threads", c_int32)
bn_get_num_threads = _declare("bn_get_num_threads", c_int32)
bn_set_threading = _declare_checked("bn_set_threading", c_int32)
bn_get_threading = _declare("bn_get_threading", c_int32)
bn_set_thread_pool = _declare_checked("bn_set_thread_pool", bn_run_members, c_void_p)
bn_get_thread_runtime = _declare("bn_get_thread_runtime", c_char_p)
bn_set_max_isa = _declare_checked("bn_set_max_isa", c_int32)
bn_get_isa = _declare("bn_get_isa", c_int32)
bn_isa_name = _declare("bn_isa_name", c_char_p, c_int32)
bn_version = _declare("bn_version", c_char_p)

bn_explain = _declare_checked(
    "bn_explain", POINTER(bn_problem), POINTER(bn_explain_args), POINTER(bn_plan_info)
)
bn_explain_text = _declare_checked(
    "bn_explain_text", POINTER(bn_problem), POINTER(bn_explain_args), c_char_p, c_int64
)
