// What each error is in C and in English: a row an error. The sentences quote actual and expected, have no full stop and
// name arguments as batchnorm.h does. They lie on the stack, for there may be no memory to tell that there is none.

extension BatchNormError {
    /// The status that C and Python know the error by, and its sentence.
    package var row: (status: Status, sentence: Sentence) {
        switch self {
        case .missing(let argument): (.nullPointer, "\(argument) is NULL, but required")
        case .structSize(let argument, let actual, let least, let most):
            (.structSize, "\(argument)->struct_size is \(actual), expected a multiple of 8 from \(least) to \(most)")
        case .unknownMember(let argument, let offset, let actual, let known):
            (.structSize, .unknownMember(argument, offset, actual, known))
        case .invalidOption(let argument, let actual):
            (.invalidOption, "\(argument) is \(actual), expected \(argument.allowed)")
        case .unusedNumber(let argument, let actual):
            (.invalidOption, "\(argument) is \(actual), expected 0, for this kind of activation has none")
        case .missingBoth(let a, let b): (.nullPointer, "\(a) and \(b) are NULL, but one of them is required")
        case .exclusive(let a, let b): (.exclusive, "\(a) and \(b) were both given, expected at most one of them")

        case .rank(let actual): (.rank, "rank is \(actual), expected 2 to 5: (N,C), (N,C,L), (N,C,H,W) or (N,C,D,H,W)")
        case .negativeSize(let dimension, let actual):
            (.negativeSize, "sizes[\(dimension)] is \(actual), expected 0 or more")
        case .negativeCount(let argument, let actual):
            (.negativeSize, "\(argument.count) is \(actual), expected 0 or more")
        case .noChannels: (.noChannels, .noChannels)
        case .sizeOverflow(let sizes, let size):
            (.sizeOverflow, "sizes \(sizes) of \(size) bytes per element need more bytes than fit in 63 bits")
        case .countMismatch(let argument, let actual, let expected):
            (.countMismatch, "\(argument.count) is \(actual), expected \(expected) (\(argument.extent))")
        case .length(let sample, let actual, let limit):
            (.length, "lengths[\(sample)] is \(actual), expected 0 to \(limit) (L)")
        case .lengthsRank(let actual): (.rank, "lengths were given, but rank is \(actual), expected 3: (N,C,L)")

        case .misaligned(let argument, let address, let alignment):
            (.misaligned, "\(argument) is at address \(hexadecimal: address), expected a multiple of \(alignment)")
        case .overlap(let written, let other): (.overlap, .overlap(written, other))
        case .outOfMemory(let bytes): (.outOfMemory, "could not allocate \(bytes) bytes")
        case .lent(let argument): (.overlap, .lent(argument))

        case .epsilon(let actual): (.epsilon, "epsilon is \(actual), expected a finite number of at least 0")
        case .momentum(let actual): (.momentum, "momentum is \(actual), expected a finite number")
        case .negativeSlope(let actual): (.negativeSlope, .negativeSlope(actual))
        case .oneValue(let sizes): (.oneValue, .oneValue(sizes))
        case .oneValueOfMoments: (.oneValue, .oneValueOfMoments)
        case .oneValueWithoutRunningStatistics(let sizes): (.oneValue, .oneValueWithoutRunningStatistics(sizes))
        case .nonfinite(let channels, let running, let total): (.nonfinite, .nonfinite(channels, running, of: total))
        case .batchCounter(let actual):
            (.batchCounter, "num_batches_tracked is \(actual), expected 0 or more and less than \(Int.max)")
        case .skippedBatches(let index, let actual, let limit):
            (.batchCounter, "skipped_batches[\(index)] is \(actual), expected 0 to \(limit) (num_batches_tracked)")
        case .momentsCount(let argument, let actual, let least):
            (.moments, "\(argument)->count is \(actual), expected \(least) or more")
        case .momentsCountOverflow(let actual, let most): (.moments, .momentsCountOverflow(actual, most))
        case .momentsM2(let argument, let channel, let actual):
            (.moments, "\(argument)->m2[\(channel)] is \(actual), expected 0 or more")
        case .foldedType(let actual):
            (.invalidOption, "dtype is \(actual.name), expected float32 or float64: fold first, then round")
        case .number(let argument, let index, let actual):
            (.number, "\(argument)[\(index)] is \(actual), expected a finite number\(argument.atLeast0)")

        case .noRunningStatistics:
            (.noRunningStatistics, "the layer keeps no running statistics (track_running_stats is 0)")
        case .noParameter(let argument): (.noParameter, "the layer has no \(argument)")
        case .noForward: (.noForward, "the layer has not run forward yet, so there is nothing saved")
        case .scalarTypeMismatch(let actual, let expected):
            (.layerMismatch, "dtype is \(actual.name), expected the layer's \(expected.name)")
        case .channelsMismatch(let actual, let expected):
            (.layerMismatch, "the number of channels is \(actual), expected the layer's \(expected) (num_features)")
        case .shapeMismatch(let actual, let expected):
            (.layerMismatch, "the shape is \(actual), expected that of the last forward, \(expected)")
        case .recomputeMismatch(let argument, let actual, let expected):
            (.layerMismatch, "\(argument.recomputed) \(actual), expected that of the last forward, \(expected)")
        case .recomputeMask(let position, let takesPart): (.layerMismatch, .recomputeMask(position, takesPart))
        case .optionMismatch(let argument, let actual, let expected):
            (.layerMismatch, "the state's \(argument) is \(actual), expected the layer's \(expected)")

        case .stateTruncated(let actual, let expected):
            (.stateTruncated, "the state has \(actual) bytes, expected \(expected)")
        case .stateForeign: (.stateForeign, "the bytes do not begin as a state of libbatchnorm does")
        case .stateVersion(let actual, let newest):
            (.stateVersion, "the state has format version \(actual), expected 1 to \(newest)")
        case .stateChecksum(let actual, let expected): (.stateChecksum, .stateChecksum(UInt(actual), UInt(expected)))
        case .stateInvalid(let argument, let actual):
            (.stateInvalid, "the state's \(argument) is \(actual), expected \(argument.allowed)")
        case .bufferTooSmall(let actual, let least):
            (.bufferTooSmall, "size is \(actual) bytes, expected at least \(least)")

        case .noSharedRuntime(let forked): (.noSharedRuntime, .noSharedRuntime(forked))
        }
    }
}

// MARK: - Sentences that need more than a line

extension Sentence {
    fileprivate static func unknownMember(
        _ argument: BatchNormError.Argument, _ offset: Int, _ actual: Int, _ known: Int
    ) -> Sentence {
        """
        byte \(offset) of \(argument) is \(actual), expected 0: this library knows its first \(known) bytes, \
        and newer members only as 0
        """
    }

    fileprivate static var noChannels: Sentence {
        """
        the number of channels (num_features, sizes[1], groups * channels) is 0, expected 1 or more
        """
    }

    fileprivate static func overlap(_ written: BatchNormError.Argument, _ other: BatchNormError.Argument) -> Sentence {
        written.mayBe(other)
            ? "\(written) overlaps \(other) partly, expected the very same memory or memory of its own"
            : "\(written) overlaps \(other), expected memory of its own"
    }

    fileprivate static func lent(_ argument: BatchNormError.Argument) -> Sentence {
        "\(argument) is lent to a closure that may change it, expected no other use before that returns"
    }

    fileprivate static func negativeSlope(_ actual: Double) -> Sentence {
        """
        activation.slope is \(actual), expected a finite number of at least 0 in the range of what is computed with
        """
    }

    fileprivate static func oneValue(_ sizes: Sizes) -> Sentence {
        """
        sizes \(sizes) have 1 value per channel, training expected more than 1: drop the last, \
        smaller batch (drop_last), evaluate instead, or choose another one_value policy
        """
    }

    fileprivate static var oneValueOfMoments: Sentence {
        """
        moments->count is 1 value per channel, training expected more than 1: \
        merge more moments, evaluate instead, or choose another one_value policy
        """
    }

    fileprivate static func oneValueWithoutRunningStatistics(_ sizes: Sizes) -> Sentence {
        """
        sizes \(sizes) have 1 value per channel and one_value is 1 (use running), but there are no running statistics
        """
    }

    fileprivate static func nonfinite(_ channels: Int, _ running: Int, of total: Int) -> Sentence {
        let input: Sentence =
            "the input has NaN, infinity or an overflow in \(channels) of \(total) channels, expected finite values"
        let statistics: Sentence = """
            the running statistics were NaN or infinite before in \(running) of \(total) channels, and stay so: \
            expected finite values, set or reset them
            """
        return channels == 0 ? statistics : running == 0 ? input : "\(input); \(statistics)"
    }

    fileprivate static func momentsCountOverflow(_ actual: Int, _ most: Int) -> Sentence {
        """
        other->count is \(actual), expected at most \(most), so that the sum with moments->count fits in 63 bits
        """
    }

    fileprivate static func recomputeMask(_ position: Int, _ takesPart: Bool) -> Sentence {
        takesPart
            ? "position \(position) takes part, expected it to be masked as in the last forward"
            : "position \(position) is masked, expected it to take part as in the last forward"
    }

    fileprivate static func stateChecksum(_ actual: UInt, _ expected: UInt) -> Sentence {
        "the state is damaged: its CRC-32 is \(hexadecimal: actual), expected \(hexadecimal: expected)"
    }

    fileprivate static func noSharedRuntime(_ forked: Bool) -> Sentence {
        let reason: StaticString =
            forked
            ? "this process was forked, which no OpenMP threads survive"
            : "no OpenMP runtime besides the library's own is loaded"
        return "threading is 2 (shared), but \(reason): expected 0 (auto) or 1 (own)"
    }
}

// MARK: - What sentences say of an argument

extension BatchNormError.Argument {
    /// The values that an option may have.
    fileprivate var allowed: StaticString {
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
        case .residual, .activationMask, .mask, .lengths, .gradInput, .gradWeight, .gradBias: "0 or 1"
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
    fileprivate var extent: StaticString {
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
    fileprivate var count: Sentence {
        switch self {
        case .values, .out: "count"
        case .count, .size, .groups, .outer, .channels, .inner: "\(self)"
        case .moments, .other, .sums: "\(self)->channels"
        default: "\(self).count"
        }
    }

    /// What a recomputation has that its forward had not.
    fileprivate var recomputed: Sentence {
        switch self {
        case .activation: "the activation multiplies values <= 0 by"
        case .residual: "residual.count is"
        default: "\(self) is"
        }
    }

    fileprivate var atLeast0: StaticString { self == .runningVar ? " of at least 0" : "" }
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
    public var description: String { row.sentence.description }
}
