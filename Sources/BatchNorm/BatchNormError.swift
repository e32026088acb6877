// What can go wrong, with the values that a person needs to see. Every public function throws this one type. In
// ErrorText.swift each has a row: its status in C and its sentence.

/// Why a call was refused. Unless a case says otherwise, a call that throws has written nothing.
///
/// Later versions may add cases: a `switch` over errors should have a `default`.
public enum BatchNormError: Error, Equatable, Sendable {

    // MARK: The call itself

    /// Something required is not there (in C: a pointer is NULL).
    case missing(Argument)
    /// A C structure has a size that none can have. Swift callers never see it.
    case structSize(Argument, actual: Int, least: Int, most: Int)
    /// A C structure is of a newer version and sets a member that this library does not know. Swift callers never see it.
    case unknownMember(Argument, offset: Int, actual: Int, known: Int)
    /// An option or reserved member has an unknown value.
    case invalidOption(Argument, actual: Int)
    /// A number was given that the chosen kind of activation has no use for. Swift callers never see it.
    case unusedNumber(Argument, actual: Double)
    /// None of the two is there, of which one is required.
    case missingBoth(Argument, Argument)
    /// Both were given, of which only one may be.
    case exclusive(Argument, Argument)

    // MARK: Shapes

    /// The rank is not 2, 3, 4 or 5.
    case rank(actual: Int)
    /// A size is negative.
    case negativeSize(dimension: Int, actual: Int)
    /// A number of elements or bytes is negative.
    case negativeCount(Argument, actual: Int)
    /// The number of channels is 0.
    case noChannels
    /// The bytes of a tensor do not fit in 63 bits.
    case sizeOverflow(Sizes, elementSize: Int)
    /// A buffer has another number of elements than the shape asks for.
    case countMismatch(Argument, actual: Int, expected: Int)
    /// A sequence's length is negative or beyond the number of steps.
    case length(sample: Int, actual: Int, limit: Int)
    /// There are lengths, but the tensor is no sequence (N,C,L).
    case lengthsRank(actual: Int)

    // MARK: Memory

    /// A pointer is not aligned to its element's size.
    case misaligned(Argument, address: UInt, alignment: Int)
    /// A buffer that is written overlaps another one.
    case overlap(written: Argument, other: Argument)
    /// There is no memory for a workspace, a state or a result.
    case outOfMemory(bytes: Int)
    /// A closure of `withWeight` or `withBias` is changing it, and nothing else may use it before that returns. In Swift
    /// alone.
    case lent(Argument)

    // MARK: Numbers

    /// Epsilon is negative, infinite or NaN.
    case epsilon(actual: Double)
    /// Momentum is infinite or NaN.
    case momentum(actual: Double)
    /// A leaky ReLU's slope is negative, infinite or NaN, or beyond the range of the type that is computed with.
    case negativeSlope(actual: Double)
    /// Training on one value per channel, whose variance says nothing; see `OneValuePolicy`.
    case oneValue(Sizes)
    /// `OneValuePolicy.useRunning` met one value per channel, but there are no running statistics.
    case oneValueWithoutRunningStatistics(Sizes)
    /// So many channels of the input hold NaN or infinity, and the running statistics of so many. Outputs, and the
    /// statistics of the other channels, **have** been written; see `NonfinitePolicy`.
    case nonfinite(channels: Int, runningChannels: Int, of: Int)
    /// The number of batches tracked is negative or at its end.
    case batchCounter(actual: Int)
    /// A number of skipped batches is negative, or more than there are tracked.
    case skippedBatches(index: Int, actual: Int, limit: Int)
    /// Moments that are of one value per channel; as `oneValue`.
    case oneValueOfMoments
    /// Moments or gradient sums are of too few values for what is asked of them.
    case momentsCount(Argument, actual: Int, expected: Int)
    /// Two moments together are of more values than can be counted.
    case momentsCountOverflow(actual: Int, expected: Int)
    /// The sum of squared distances of a channel is negative.
    case momentsM2(Argument, channel: Int, actual: Double)
    /// A number that is folded is NaN or infinite, or a variance negative; or a result of folding is beyond the range of
    /// its type.
    case number(Argument, index: Int, actual: Double)
    /// Weights of this type cannot be folded into: what is shipped in halves is folded in float32 and then rounded.
    case foldedType(ScalarType)

    // MARK: A layer's state

    /// The layer keeps no running statistics.
    case noRunningStatistics
    /// The layer has no weight, or no bias.
    case noParameter(Argument)
    /// Backward, or a saved value, before any forward.
    case noForward
    /// The tensor has another element type than the layer.
    case scalarTypeMismatch(actual: ScalarType, expected: ScalarType)
    /// The tensor, or the state, has another number of channels than the layer.
    case channelsMismatch(actual: Int, expected: Int)
    /// The shape is not that of the layer's last forward.
    case shapeMismatch(actual: Shape, expected: Shape)
    /// A recomputation's activation, residual or masked output is not the last forward's.
    case recomputeMismatch(Argument, actual: Value, expected: Value)
    /// A recomputation masks other positions than the last forward.
    case recomputeMask(position: Int, takesPart: Bool)
    /// The state's option has another value than the layer's.
    case optionMismatch(Argument, actual: Int, expected: Int)

    // MARK: A layer's state as bytes

    /// There are fewer bytes than the state says it has, or more.
    case stateTruncated(actual: Int, expected: Int)
    /// The bytes are not a state of this library.
    case stateForeign
    /// The state was written by a newer, incompatible library.
    case stateVersion(actual: Int, expected: Int)
    /// The state is damaged.
    case stateChecksum(actual: UInt32, expected: UInt32)
    /// The state is intact, but holds a value that no layer can have.
    case stateInvalid(Argument, actual: Value)
    /// The caller's buffer cannot hold the state or the text.
    case bufferTooSmall(actual: Int, expected: Int)

    // MARK: The process

    /// `Threading.shared` was asked for, but no other OpenMP runtime is loaded; or one may be, but this process was
    /// forked, and the runtime's threads stayed behind.
    case noSharedRuntime(forked: Bool)

    /// A value that an error quotes.
    public enum Value: Equatable, Sendable {
        /// A count or an option.
        case integer(Int)
        /// Epsilon, momentum or a slope.
        case real(Double)
    }

    /// What an error is about: an argument, or a member of one. The names are those of batchnorm.h.
    public enum Argument: String, Sendable {
        case problem, args, options, layer, state, out, values, size, count, channels
        case input, output, weight, bias, runningMean = "running_mean", runningVar = "running_var"
        case numBatchesTracked = "num_batches_tracked", skippedBatches = "skipped_batches"
        case saved, savedMean = "saved.mean", savedInvstd = "saved.invstd"
        case gradOutput = "grad_output", gradInput = "grad_input", gradWeight = "grad_weight", gradBias = "grad_bias"
        case residual, gradResidual = "grad_residual", activation, slope = "activation.slope"
        case limit = "activation.limit", activationMask = "activation_mask", mask, lengths, masked
        case dtype, layout, averaging, runningVariance = "running_variance", oneValue = "one_value", nonfinite
        case statistics, reserved
        case hasWeight = "has_weight", hasBias = "has_bias", trackRunningStats = "track_running_stats", training
        case numFeatures = "num_features", epsilon, momentum
        case threads, isa, threading, operation, info
        case moments, other, sums, mean, meanRest = "mean_rest", savedMeanRest = "saved.mean_rest", m2, variance
        case invstd, sumDy = "sum_dy", sumDyXmu = "sum_dy_xmu", kind
        case pass
        case shape, groups, outer, inner, convWeight = "conv_weight", convBias = "conv_bias"
        case foldedWeight = "folded_weight", foldedBias = "folded_bias"
    }
}
