// Section STATUS of batchnorm.h: the names of statuses and the last message.

import BatchNorm
import CBatchNorm

@_cdecl("bn_status_name") @implementation
public func bn_status_name(_ status: bn_status) -> UnsafePointer<CChar>? {
    let name: StaticString =
        switch Int(status) {
        case BN_STATUS_OK: "BN_STATUS_OK"
        case BN_STATUS_NULL_POINTER: "BN_STATUS_NULL_POINTER"
        case BN_STATUS_STRUCT_SIZE: "BN_STATUS_STRUCT_SIZE"
        case BN_STATUS_INVALID_OPTION: "BN_STATUS_INVALID_OPTION"
        case BN_STATUS_EXCLUSIVE: "BN_STATUS_EXCLUSIVE"
        case BN_STATUS_RANK: "BN_STATUS_RANK"
        case BN_STATUS_NEGATIVE_SIZE: "BN_STATUS_NEGATIVE_SIZE"
        case BN_STATUS_NO_CHANNELS: "BN_STATUS_NO_CHANNELS"
        case BN_STATUS_SIZE_OVERFLOW: "BN_STATUS_SIZE_OVERFLOW"
        case BN_STATUS_COUNT_MISMATCH: "BN_STATUS_COUNT_MISMATCH"
        case BN_STATUS_LENGTH: "BN_STATUS_LENGTH"
        case BN_STATUS_MISALIGNED: "BN_STATUS_MISALIGNED"
        case BN_STATUS_OVERLAP: "BN_STATUS_OVERLAP"
        case BN_STATUS_OUT_OF_MEMORY: "BN_STATUS_OUT_OF_MEMORY"
        case BN_STATUS_EPSILON: "BN_STATUS_EPSILON"
        case BN_STATUS_MOMENTUM: "BN_STATUS_MOMENTUM"
        case BN_STATUS_ONE_VALUE: "BN_STATUS_ONE_VALUE"
        case BN_STATUS_NONFINITE: "BN_STATUS_NONFINITE"
        case BN_STATUS_BATCH_COUNTER: "BN_STATUS_BATCH_COUNTER"
        case BN_STATUS_NEGATIVE_SLOPE: "BN_STATUS_NEGATIVE_SLOPE"
        case BN_STATUS_MOMENTS: "BN_STATUS_MOMENTS"
        case BN_STATUS_NUMBER: "BN_STATUS_NUMBER"
        case BN_STATUS_NO_RUNNING_STATISTICS: "BN_STATUS_NO_RUNNING_STATISTICS"
        case BN_STATUS_NO_PARAMETER: "BN_STATUS_NO_PARAMETER"
        case BN_STATUS_NO_FORWARD: "BN_STATUS_NO_FORWARD"
        case BN_STATUS_LAYER_MISMATCH: "BN_STATUS_LAYER_MISMATCH"
        case BN_STATUS_STATE_TRUNCATED: "BN_STATUS_STATE_TRUNCATED"
        case BN_STATUS_STATE_FOREIGN: "BN_STATUS_STATE_FOREIGN"
        case BN_STATUS_STATE_VERSION: "BN_STATUS_STATE_VERSION"
        case BN_STATUS_STATE_CHECKSUM: "BN_STATUS_STATE_CHECKSUM"
        case BN_STATUS_STATE_INVALID: "BN_STATUS_STATE_INVALID"
        case BN_STATUS_BUFFER_TOO_SMALL: "BN_STATUS_BUFFER_TOO_SMALL"
        case BN_STATUS_NO_SHARED_RUNTIME: "BN_STATUS_NO_SHARED_RUNTIME"
        case BN_STATUS_INTERNAL: "BN_STATUS_INTERNAL"
        default: "BN_STATUS_UNKNOWN"
        }
    return cString(name)
}

@_cdecl("bn_last_error_message") @implementation
public func bn_last_error_message() -> UnsafePointer<CChar>? {
    UnsafeRawPointer(Kernels.threadText.baseAddress)?.assumingMemoryBound(to: CChar.self)
}
