// Section STATUS of batchnorm.h: statuses, their names and the last message.

import BatchNorm
import CBatchNorm

extension BatchNormError {
    /// The status that says the same in C.
    var status: bn_status {
        let status =
            switch self {
            case .missing, .missingBoth: BN_STATUS_NULL_POINTER
            case .structSize, .unknownMember: BN_STATUS_STRUCT_SIZE
            case .invalidOption, .unusedNumber, .foldedType: BN_STATUS_INVALID_OPTION
            case .exclusive: BN_STATUS_EXCLUSIVE
            case .rank, .lengthsRank: BN_STATUS_RANK
            case .negativeSize, .negativeCount: BN_STATUS_NEGATIVE_SIZE
            case .noChannels: BN_STATUS_NO_CHANNELS
            case .sizeOverflow: BN_STATUS_SIZE_OVERFLOW
            case .countMismatch: BN_STATUS_COUNT_MISMATCH
            case .length: BN_STATUS_LENGTH
            case .misaligned: BN_STATUS_MISALIGNED
            case .overlap, .lent: BN_STATUS_OVERLAP
            case .outOfMemory: BN_STATUS_OUT_OF_MEMORY
            case .epsilon: BN_STATUS_EPSILON
            case .momentum: BN_STATUS_MOMENTUM
            case .negativeSlope: BN_STATUS_NEGATIVE_SLOPE
            case .oneValue, .oneValueOfMoments, .oneValueWithoutRunningStatistics: BN_STATUS_ONE_VALUE
            case .nonfinite: BN_STATUS_NONFINITE
            case .batchCounter, .skippedBatches: BN_STATUS_BATCH_COUNTER
            case .momentsCount, .momentsCountOverflow, .momentsM2: BN_STATUS_MOMENTS
            case .number: BN_STATUS_NUMBER
            case .noRunningStatistics: BN_STATUS_NO_RUNNING_STATISTICS
            case .noParameter: BN_STATUS_NO_PARAMETER
            case .noForward: BN_STATUS_NO_FORWARD
            case .scalarTypeMismatch, .channelsMismatch, .shapeMismatch, .optionMismatch,
                .recomputeMismatch, .recomputeMask:
                BN_STATUS_LAYER_MISMATCH
            case .stateTruncated: BN_STATUS_STATE_TRUNCATED
            case .stateForeign: BN_STATUS_STATE_FOREIGN
            case .stateVersion: BN_STATUS_STATE_VERSION
            case .stateChecksum: BN_STATUS_STATE_CHECKSUM
            case .stateInvalid: BN_STATUS_STATE_INVALID
            case .bufferTooSmall: BN_STATUS_BUFFER_TOO_SMALL
            case .noSharedRuntime: BN_STATUS_NO_SHARED_RUNTIME
            }
        return bn_status(status)
    }
}

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
