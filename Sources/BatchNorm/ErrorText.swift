// One English sentence for each error, quoting actual and expected. It is written into a fixed buffer, so that the
// C interface can report an error without allocating. Arguments are named as in batchnorm.h.

/// Appends text to a fixed buffer; what does not fit is cut off. The text always ends with a NUL.
package struct TextWriter {
    private let buffer: UnsafeMutableBufferPointer<UInt8>
    private var length = 0

    /// `buffer` has room for at least the NUL.
    package init(_ buffer: UnsafeMutableBufferPointer<UInt8>) {
        self.buffer = buffer
        buffer[0] = 0
    }

    package mutating func append(_ byte: UInt8) {
        guard length < buffer.count - 1 else { return }
        buffer[length] = byte
        length += 1
        buffer[length] = 0
    }

    package mutating func append(_ text: StaticString) {
        for offset in 0..<text.utf8CodeUnitCount { append(text.utf8Start[offset]) }
    }

    package mutating func append(_ number: Int) {
        for byte in number.description.utf8 { append(byte) }
    }

    package mutating func append(_ number: Double) {
        for byte in number.description.utf8 { append(byte) }
    }

    /// As eight (or more) hexadecimal digits.
    package mutating func append(hexadecimal number: UInt) {
        append("0x")
        var shift = number > 0xffff_ffff ? 60 : 28
        while shift >= 0 {
            let digit = UInt8(truncatingIfNeeded: (number >> UInt(shift)) & 15)
            append(digit < 10 ? 48 + digit : 87 + digit)
            shift -= 4
        }
    }

    package mutating func append(_ sizes: Sizes) {
        append("(")
        for index in 0..<sizes.rank {
            if index > 0 { append(", ") }
            append(sizes[index])
        }
        append(")")
    }

    package mutating func append(_ shape: Shape) {
        append(shape.sizes)
        // A matrix is the same in both layouts.
        guard shape.rank > 2 else { return }
        append(shape.layout == .nchw ? " NCHW" : " NHWC")
    }

    package mutating func append(_ value: BatchNormError.Value) {
        switch value {
        case .integer(let number): append(number)
        case .real(let number): append(number)
        }
    }
}

extension BatchNormError.Argument {
    package var name: StaticString {
        switch self {
        case .problem: "problem"
        case .args: "args"
        case .options: "options"
        case .layer: "layer"
        case .state: "state"
        case .out: "out"
        case .values: "values"
        case .size: "size"
        case .count: "count"
        case .channels: "channels"
        case .input: "input"
        case .output: "output"
        case .weight: "weight"
        case .bias: "bias"
        case .runningMean: "running_mean"
        case .runningVar: "running_var"
        case .numBatchesTracked: "num_batches_tracked"
        case .skippedBatches: "skipped_batches"
        case .savedMean: "saved.mean"
        case .savedInvstd: "saved.invstd"
        case .gradOutput: "grad_output"
        case .gradInput: "grad_input"
        case .gradWeight: "grad_weight"
        case .gradBias: "grad_bias"
        case .residual: "residual"
        case .gradResidual: "grad_residual"
        case .activation: "activation"
        case .activationMask: "activation_mask"
        case .mask: "mask"
        case .lengths: "lengths"
        case .masked: "masked"
        case .dtype: "dtype"
        case .layout: "layout"
        case .averaging: "averaging"
        case .runningVariance: "running_variance"
        case .oneValue: "one_value"
        case .nonfinite: "nonfinite"
        case .statistics: "statistics"
        case .reserved: "reserved"
        case .hasWeight: "has_weight"
        case .hasBias: "has_bias"
        case .trackRunningStats: "track_running_stats"
        case .training: "training"
        case .numFeatures: "num_features"
        case .epsilon: "epsilon"
        case .momentum: "momentum"
        case .threads: "threads"
        case .isa: "isa"
        case .threading: "threading"
        case .operation: "operation"
        case .info: "info"
        case .moments: "moments"
        case .other: "other"
        case .sums: "sums"
        case .mean: "mean"
        case .meanRest: "mean_rest"
        case .savedMeanRest: "saved.mean_rest"
        case .saved: "saved"
        case .slope: "activation.slope"
        case .limit: "activation.limit"
        case .m2: "m2"
        case .variance: "variance"
        case .invstd: "invstd"
        case .sumDy: "sum_dy"
        case .sumDyXmu: "sum_dy_xmu"
        case .kind: "kind"
        case .pass: "pass"
        case .shape: "shape"
        case .groups: "groups"
        case .outer: "outer"
        case .inner: "inner"
        case .convWeight: "conv_weight"
        case .convBias: "conv_bias"
        case .foldedWeight: "folded_weight"
        case .foldedBias: "folded_bias"
        }
    }

    /// The values that an option may have.
    private var allowed: StaticString {
        switch self {
        case .dtype: "1 (float32), 2 (float64), 3 (bfloat16) or 4 (float16)"
        case .layout: "1 (NCHW) or 2 (NHWC)"
        case .averaging: "0 (exponential) or 1 (cumulative)"
        case .runningVariance, .kind: "0 (unbiased) or 1 (biased)"
        case .oneValue: "0 (error), 1 (use running) or 2 (allow)"
        case .nonfinite: "0 (report) or 1 (error)"
        case .statistics: "0 (batch) or 1 (running)"
        case .activation: "0 (none), 1 (ReLU) or 2 (leaky ReLU)"
        case .masked: "0 (zero) or 1 (pass)"
        case .pass: "0 (normal), 1 (keep running) or 2 (recompute)"
        case .reserved: "0"
        case .hasWeight, .hasBias, .trackRunningStats, .training: "0 or 1"
        case .numFeatures: "1 or more"
        case .epsilon: "a finite number of at least 0"
        case .momentum: "a finite number"
        case .numBatchesTracked, .threads: "0 or more"
        case .skippedBatches: "0 to num_batches_tracked"
        case .isa: "0 (generic), 1 (avx2) or 2 (avx512)"
        case .threading: "0 (auto), 1 (own) or 2 (shared)"
        case .operation:
            "1 (forward, training), 2 (forward, inference), 3 (backward) or 4 (backward, frozen)"
        default: "another value"
        }
    }

    /// What the expected number of elements is, in the words of the header.
    private var extent: StaticString {
        switch self {
        case .input, .output, .gradOutput, .gradInput, .residual, .gradResidual: "N*C*S"
        case .activationMask: "N*C*S bits in whole bytes"
        case .mask: "N*S"
        case .lengths: "N"
        case .convWeight, .foldedWeight: "groups*outer*channels*inner"
        case .convBias, .foldedBias: "groups*channels"
        case .skippedBatches: "2*num_features"
        default: "num_features"
        }
    }

    /// The name of the number of elements: `count` itself where a call has only one.
    fileprivate func appendCount(to text: inout TextWriter) {
        switch self {
        case .values, .out: text.append("count")
        case .count, .size, .groups, .outer, .channels, .inner: text.append(name)
        case .moments, .other, .sums:
            text.append(name)
            text.append("->channels")
        default:
            text.append(name)
            text.append(".count")
        }
    }

    fileprivate func appendAllowed(to text: inout TextWriter) { text.append(allowed) }
    fileprivate func appendExtent(to text: inout TextWriter) { text.append(extent) }
}

extension BatchNormError {
    /// Writes the sentence, without a full stop.
    package func write(to text: inout TextWriter) {
        switch self {
        case .missing(let argument):
            text.append(argument.name)
            text.append(" is NULL, but required")
        case .structSize(let argument, let actual, let least, let most):
            text.append(argument.name)
            text.append("->struct_size is ")
            text.append(actual)
            text.append(", expected a multiple of 8 from ")
            text.append(least)
            text.append(" to ")
            text.append(most)
        case .unknownMember(let argument, let offset, let actual, let known):
            text.append("byte ")
            text.append(offset)
            text.append(" of ")
            text.append(argument.name)
            text.append(" is ")
            text.append(actual)
            text.append(", expected 0: this library knows its first ")
            text.append(known)
            text.append(" bytes, and newer members only as 0")
        case .invalidOption(let argument, let actual):
            text.append(argument.name)
            text.append(" is ")
            text.append(actual)
            text.append(", expected ")
            argument.appendAllowed(to: &text)

        case .unusedNumber(let argument, let actual):
            text.append(argument.name)
            text.append(" is ")
            text.append(actual)
            text.append(", expected 0, for this kind of activation has none")

        case .missingBoth(let one, let other):
            text.append(one.name)
            text.append(" and ")
            text.append(other.name)
            text.append(" are NULL, but one of them is required")
        case .exclusive(let one, let other):
            text.append(one.name)
            text.append(" and ")
            text.append(other.name)
            text.append(" were both given, expected at most one of them")

        case .rank(let actual):
            text.append("rank is ")
            text.append(actual)
            text.append(", expected 2 to 5: (N,C), (N,C,L), (N,C,H,W) or (N,C,D,H,W)")
        case .negativeSize(let dimension, let actual):
            text.append("sizes[")
            text.append(dimension)
            text.append("] is ")
            text.append(actual)
            text.append(", expected 0 or more")
        case .negativeCount(let argument, let actual):
            argument.appendCount(to: &text)
            text.append(" is ")
            text.append(actual)
            text.append(", expected 0 or more")
        case .noChannels:
            text.append(
                "the number of channels (num_features, sizes[1], groups * channels) is 0, expected 1 or more"
            )
        case .sizeOverflow(let sizes, let elementSize):
            text.append("sizes ")
            text.append(sizes)
            text.append(" of ")
            text.append(elementSize)
            text.append(" bytes per element need more bytes than fit in 63 bits")
        case .countMismatch(let argument, let actual, let expected):
            argument.appendCount(to: &text)
            text.append(" is ")
            text.append(actual)
            text.append(", expected ")
            text.append(expected)
            text.append(" (")
            argument.appendExtent(to: &text)
            text.append(")")

        case .length(let sample, let actual, let limit):
            text.append("lengths[")
            text.append(sample)
            text.append("] is ")
            text.append(actual)
            text.append(", expected 0 to ")
            text.append(limit)
            text.append(" (L)")
        case .lengthsRank(let actual):
            text.append("lengths were given, but rank is ")
            text.append(actual)
            text.append(", expected 3: (N,C,L)")

        case .misaligned(let argument, let address, let alignment):
            text.append(argument.name)
            text.append(" is at address ")
            text.append(hexadecimal: address)
            text.append(", expected a multiple of ")
            text.append(alignment)
        case .overlap(let written, let other):
            text.append(written.name)
            text.append(" overlaps ")
            text.append(other.name)
            text.append(
                written.mayBe(other)
                    ? " partly, expected the very same memory or memory of its own"
                    : ", expected memory of its own")
        case .outOfMemory(let bytes):
            text.append("could not allocate ")
            text.append(bytes)
            text.append(" bytes")
        case .lent(let argument):
            text.append(argument.name)
            text.append(" is lent to a closure that may change it, expected no other use before that returns")

        case .epsilon(let actual):
            text.append("epsilon is ")
            text.append(actual)
            text.append(", expected a finite number of at least 0")
        case .momentum(let actual):
            text.append("momentum is ")
            text.append(actual)
            text.append(", expected a finite number")
        case .negativeSlope(let actual):
            text.append("activation.slope is ")
            text.append(actual)
            text.append(", expected a finite number of at least 0 in the range of what is computed with")
        case .oneValue(let sizes):
            text.append("sizes ")
            text.append(sizes)
            text.append(" have 1 value per channel, training expected more than 1: drop the last, ")
            text.append("smaller batch (drop_last), evaluate instead, or choose another one_value policy")
        case .oneValueWithoutRunningStatistics(let sizes):
            text.append("sizes ")
            text.append(sizes)
            text.append(" have 1 value per channel and one_value is 1 (use running), ")
            text.append("but there are no running statistics")
        case .nonfinite(let channels, let running, let total):
            if channels > 0 {
                text.append("the input has NaN, infinity or an overflow in ")
                text.append(channels)
                text.append(" of ")
                text.append(total)
                text.append(" channels, expected finite values")
            }
            if channels > 0, running > 0 { text.append("; ") }
            if running > 0 {
                text.append("the running statistics were NaN or infinite before in ")
                text.append(running)
                text.append(" of ")
                text.append(total)
                text.append(" channels, and stay so: expected finite values, set or reset them")
            }
        case .batchCounter(let actual):
            text.append("num_batches_tracked is ")
            text.append(actual)
            text.append(", expected 0 or more and less than ")
            text.append(Int.max)
        case .skippedBatches(let index, let actual, let limit):
            text.append("skipped_batches[")
            text.append(index)
            text.append("] is ")
            text.append(actual)
            text.append(", expected 0 to ")
            text.append(limit)
            text.append(" (num_batches_tracked)")
        case .momentsCount(let argument, let actual, let expected):
            text.append(argument.name)
            text.append("->count is ")
            text.append(actual)
            text.append(", expected ")
            text.append(expected)
            text.append(" or more")
        case .momentsCountOverflow(let actual, let expected):
            text.append("other->count is ")
            text.append(actual)
            text.append(", expected at most ")
            text.append(expected)
            text.append(", so that the sum with moments->count fits in 63 bits")
        case .oneValueOfMoments:
            text.append("moments->count is 1 value per channel, training expected more than 1: ")
            text.append("merge more moments, evaluate instead, or choose another one_value policy")
        case .momentsM2(let argument, let channel, let actual):
            text.append(argument.name)
            text.append("->m2[")
            text.append(channel)
            text.append("] is ")
            text.append(actual)
            text.append(", expected 0 or more")
        case .foldedType(let actual):
            text.append("dtype is ")
            text.append(actual.name)
            text.append(", expected float32 or float64: fold first, then round")
        case .number(let argument, let index, let actual):
            text.append(argument.name)
            text.append("[")
            text.append(index)
            text.append("] is ")
            text.append(actual)
            text.append(", expected a finite number")
            if argument == .runningVar { text.append(" of at least 0") }

        case .noRunningStatistics:
            text.append("the layer keeps no running statistics (track_running_stats is 0)")
        case .noParameter(let argument):
            text.append("the layer has no ")
            text.append(argument.name)
        case .noForward:
            text.append("the layer has not run forward yet, so there is nothing saved")
        case .scalarTypeMismatch(let actual, let expected):
            text.append("dtype is ")
            text.append(actual.name)
            text.append(", expected the layer's ")
            text.append(expected.name)
        case .channelsMismatch(let actual, let expected):
            text.append("the number of channels is ")
            text.append(actual)
            text.append(", expected the layer's ")
            text.append(expected)
            text.append(" (num_features)")
        case .shapeMismatch(let actual, let expected):
            text.append("the shape is ")
            text.append(actual)
            text.append(", expected that of the last forward, ")
            text.append(expected)
        case .recomputeMismatch(let argument, let actual, let expected):
            switch argument {
            case .activation: text.append("the activation multiplies values <= 0 by ")
            case .residual: text.append("residual.count is ")
            default:
                text.append(argument.name)
                text.append(" is ")
            }
            text.append(actual)
            text.append(", expected that of the last forward, ")
            text.append(expected)
        case .recomputeMask(let position, let takesPart):
            text.append("position ")
            text.append(position)
            text.append(takesPart ? " takes part" : " is masked")
            text.append(takesPart ? ", expected it to be masked" : ", expected it to take part")
            text.append(" as in the last forward")
        case .optionMismatch(let argument, let actual, let expected):
            text.append("the state's ")
            text.append(argument.name)
            text.append(" is ")
            text.append(actual)
            text.append(", expected the layer's ")
            text.append(expected)

        case .stateTruncated(let actual, let expected):
            text.append("the state has ")
            text.append(actual)
            text.append(" bytes, expected ")
            text.append(expected)
        case .stateForeign:
            text.append("the bytes do not begin as a state of libbatchnorm does")
        case .stateVersion(let actual, let expected):
            text.append("the state has format version ")
            text.append(actual)
            text.append(", expected 1 to ")
            text.append(expected)
        case .stateChecksum(let actual, let expected):
            text.append("the state is damaged: its CRC-32 is ")
            text.append(hexadecimal: UInt(actual))
            text.append(", expected ")
            text.append(hexadecimal: UInt(expected))
        case .stateInvalid(let argument, let actual):
            text.append("the state's ")
            text.append(argument.name)
            text.append(" is ")
            text.append(actual)
            text.append(", expected ")
            argument.appendAllowed(to: &text)
        case .bufferTooSmall(let actual, let expected):
            text.append("size is ")
            text.append(actual)
            text.append(" bytes, expected at least ")
            text.append(expected)

        case .noSharedRuntime(let forked):
            text.append("threading is 2 (shared), but ")
            text.append(
                forked
                    ? "this process was forked, which no OpenMP threads survive: "
                    : "no OpenMP runtime besides the library's own is loaded: ")
            text.append("expected 0 (auto) or 1 (own)")
        }
    }
}

extension ScalarType {
    package var name: StaticString {
        switch self {
        case .float32: "float32"
        case .float64: "float64"
        case .bfloat16: "bfloat16"
        case .float16: "float16"
        }
    }
}

extension BatchNormError: CustomStringConvertible {
    /// The error as one English sentence, in the words of the C header.
    public var description: String {
        withUnsafeTemporaryAllocation(of: UInt8.self, capacity: 512) { buffer in
            var text = TextWriter(buffer)
            write(to: &text)
            return String(decoding: text.bytes, as: UTF8.self)
        }
    }
}

extension TextWriter {
    /// The text so far, without the NUL.
    package var bytes: UnsafeMutableBufferPointer<UInt8> {
        UnsafeMutableBufferPointer(rebasing: buffer[..<length])
    }
}
