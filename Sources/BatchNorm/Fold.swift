// Folding: a normalization by running statistics is one affine map per channel, and an affine map behind a
// convolution or a linear layer is another convolution or linear layer. It is done once, before a network is shipped,
// so everything here is plain loops: formed in float64 from the values given, rounded once.

// MARK: - The weight of a convolution or linear layer

/// Where the output channels lie in a weight tensor: it is seen as `[groups][outer][channels][inner]`, dense, and the
/// values of output channel `group * channels + channel` are those at `[group][...][channel][...]`.
///
/// That is every layout there is: what lies before the axis of the output channels is `outer`, what lies behind it
/// `inner`. Only PyTorch's transposed convolutions, whose output channels are counted within a group, need `groups`.
public struct WeightShape: Equatable, Sendable {
    /// Parts of the tensor, each with output channels of its own.
    public let groups: Int
    /// Values before the axis of the output channels.
    public let outer: Int
    /// Output channels of a group.
    public let channels: Int
    /// Values behind the axis of the output channels.
    public let inner: Int
    /// The number of elements of the tensor.
    public let count: Int

    /// - Throws: `BatchNormError.negativeCount`, `.noChannels` if `groups` or `channels` is 0, or `.sizeOverflow`.
    public init(
        groups: Int = 1, outer: Int = 1, channels: Int, inner: Int = 1
    ) throws(BatchNormError) {
        try requireNotNegative(groups, .groups)
        try requireNotNegative(outer, .outer)
        try requireNotNegative(channels, .channels)
        try requireNotNegative(inner, .inner)
        guard groups > 0, channels > 0 else { throw .noChannels }
        // Also of a weight without values, the bias must be addressable.
        let sizes = Sizes(groups, outer, channels, inner, rank: 4)
        guard let output = Self.product(groups, channels), output <= Int.max / 8,
            let values = Self.product(outer, inner), let count = Self.product(output, values),
            count <= Int.max / 8
        else { throw .sizeOverflow(sizes, elementSize: 8) }
        self.groups = groups
        self.outer = outer
        self.channels = channels
        self.inner = inner
        self.count = count
    }

    private static func product(_ a: Int, _ b: Int) -> Int? {
        let product = a.multipliedReportingOverflow(by: b)
        return product.overflow ? nil : product.partialValue
    }

    /// The number of output channels in all.
    public var outputChannels: Int { groups &* channels }

    /// `[output][...]`: PyTorch's convolutions `[O][I/groups][spatial...]`, grouped, depthwise and channels-last ones
    /// included, and linear layers `[O][I]`. `values` is the number of values per output channel.
    public static func outputFirst(
        channels: Int, values: Int
    ) throws(BatchNormError) -> WeightShape {
        try WeightShape(channels: channels, inner: values)
    }

    /// `[...][output]`: convolutions `[spatial...][I/groups][O]` and dense layers `[I][O]` of Keras, Flax and JAX. A
    /// depthwise kernel of Keras, `[spatial...][I][multiplier]`, has `I * multiplier` channels.
    public static func outputLast(
        values: Int, channels: Int
    ) throws(BatchNormError) -> WeightShape {
        try WeightShape(outer: values, channels: channels)
    }

    /// `[groups][I/groups][O/groups][spatial...]`: PyTorch's transposed convolutions, `[I][O/groups][spatial...]`.
    ///
    /// - Parameters:
    ///   - inputs: Input channels of a group, I/groups.
    ///   - channels: Output channels of a group, O/groups.
    ///   - spatial: The product of the spatial sizes.
    public static func transposed(
        groups: Int = 1, inputs: Int, channels: Int, spatial: Int
    ) throws(BatchNormError) -> WeightShape {
        try WeightShape(groups: groups, outer: inputs, channels: channels, inner: spatial)
    }

    /// Calls `body` with the index of each value of an output channel.
    fileprivate func forEachIndex(
        of output: Int, _ body: (Int) throws(BatchNormError) -> Void
    ) throws(BatchNormError) {
        // Without values there may be any number of rows.
        guard count > 0 else { return }
        let (group, channel) = output.quotientAndRemainder(dividingBy: channels)
        for row in 0..<outer {
            let start = ((group &* outer &+ row) &* channels &+ channel) &* inner
            for index in start..<start &+ inner { try body(index) }
        }
    }
}

private func requireNotNegative(
    _ size: Int, _ argument: BatchNormError.Argument
) throws(BatchNormError) {
    guard size >= 0 else { throw .negativeCount(argument, actual: size) }
}

// MARK: - The operation

/// How far rounding has moved a fold from what it is in float64.
///
/// Both are 0 for float64, and for float32 below 6e-8, half a unit, unless values underflow or the mean is large.
public struct FoldingErrors: Equatable, Sendable {
    /// The largest |rounded - float64| of a weight, relative to the largest |weight| of its output channel.
    public var weight = 0.0
    /// The largest |rounded - float64| of a bias, relative to the size of the normalized output, the larger of |γ| and
    /// |β| of its channel: how much folding shifts the output. It grows with |mean| / deviation.
    public var bias = 0.0
}

/// Folding: see bn_fold in batchnorm.h.
package struct Fold {
    package var scalar: ScalarType
    package var shape: WeightShape
    package var epsilon: Double
    package var runningMean: View
    package var runningVar: View
    package var weight = View.absent
    package var bias = View.absent
    /// Absent: 1 in each channel, so that the results are scale and shift.
    package var convWeight = View.absent
    package var convBias = View.absent
    package var foldedWeight = MutableView.absent
    package var foldedBias = MutableView.absent

    package init(
        scalar: ScalarType, shape: WeightShape, epsilon: Double, runningMean: View, runningVar: View
    ) {
        self.scalar = scalar
        self.shape = shape
        self.epsilon = epsilon
        self.runningMean = runningMean
        self.runningVar = runningVar
    }

    /// Runs it: once through all numbers to see that they are finite, and how far they are rounded; then again to
    /// write them.
    package func run() throws(BatchNormError) -> FoldingErrors {
        try validate()
        var errors = FoldingErrors()
        for channel in 0..<shape.outputChannels { try measure(channel, &errors) }
        for channel in 0..<shape.outputChannels { try write(channel) }
        return errors
    }

    fileprivate func validate() throws(BatchNormError) {
        guard scalar == scalar.parameter else { throw .foldedType(scalar) }
        try requireEpsilon(epsilon)
        // Only where there is one value per channel does an absent weight stand for something.
        let isAffine = shape.count == shape.outputChannels
        if convWeight.isAbsent, !isAffine { throw .missing(.convWeight) }

        let size = scalar.size
        let channels = shape.outputChannels
        var buffers = BufferCheck()
        try buffers.read(runningMean, .runningMean, count: channels, elementSize: size)
        try buffers.read(runningVar, .runningVar, count: channels, elementSize: size)
        try buffers.read(optional: weight, .weight, count: channels, elementSize: size)
        try buffers.read(optional: bias, .bias, count: channels, elementSize: size)
        try buffers.read(optional: convWeight, .convWeight, count: shape.count, elementSize: size)
        try buffers.read(optional: convBias, .convBias, count: channels, elementSize: size)
        try buffers.write(
            optional: foldedWeight, .foldedWeight, count: shape.count, elementSize: size)
        try buffers.write(optional: foldedBias, .foldedBias, count: channels, elementSize: size)
        try buffers.requireSeparate()
    }

    /// A channel's normalization in float64: `y = (x - mean) * scale + shift`.
    private func normalization(
        _ channel: Int
    ) throws(BatchNormError) -> (scale: Double, mean: Double, factor: Double, shift: Double) {
        let mean = try finite(runningMean, .runningMean, channel)
        let variance = try finite(runningVar, .runningVar, channel)
        guard variance >= 0 else { throw .number(.runningVar, index: channel, actual: variance) }
        let factor = try finite(weight, .weight, channel, absent: 1)
        let shift = try finite(bias, .bias, channel, absent: 0)
        let spread = variance + epsilon
        let invstd = spread > 0 ? 1 / spread.squareRoot() : 0
        return (factor * invstd, mean, factor, shift)
    }

    /// Throws if a number that goes in or comes out is not finite.
    private func measure(_ channel: Int, _ errors: inout FoldingErrors) throws(BatchNormError) {
        let (scale, mean, factor, shift) = try normalization(channel)
        var largest = 0.0
        var error = 0.0
        try shape.forEachIndex(of: channel) { (index) throws(BatchNormError) in
            let exact = try finite(convWeight, .convWeight, index, absent: 1) * scale
            let rounded = scalar.rounded(exact)
            guard rounded.isFinite else {
                throw .number(.foldedWeight, index: index, actual: rounded)
            }
            largest = max(largest, abs(exact))
            error = max(error, abs(rounded - exact))
        }
        if error > 0 { errors.weight = max(errors.weight, error / largest) }

        let exact = (try finite(convBias, .convBias, channel, absent: 0) - mean) * scale + shift
        let rounded = scalar.rounded(exact)
        guard rounded.isFinite else { throw .number(.foldedBias, index: channel, actual: rounded) }
        error = abs(rounded - exact)
        if error > 0 { errors.bias = max(errors.bias, error / max(abs(factor), abs(shift))) }
    }

    private func write(_ channel: Int) throws(BatchNormError) {
        let (scale, mean, _, shift) = try normalization(channel)
        if let target = foldedWeight.address {
            try shape.forEachIndex(of: channel) { (index) throws(BatchNormError) in
                let value = try finite(convWeight, .convWeight, index, absent: 1)
                scalar.store(value * scale, to: target, at: index)
            }
        }
        if let target = foldedBias.address {
            let value = try finite(convBias, .convBias, channel, absent: 0)
            scalar.store((value - mean) * scale + shift, to: target, at: channel)
        }
    }

    private func finite(
        _ view: View, _ argument: BatchNormError.Argument, _ index: Int, absent: Double = 0
    ) throws(BatchNormError) -> Double {
        guard let address = view.address else { return absent }
        let value = scalar.load(from: address, at: index)
        guard value.isFinite else { throw .number(argument, index: index, actual: value) }
        return value
    }
}

/// Single elements as float64, for code that need not be fast. Of half types their parameters'.
extension ScalarType {
    fileprivate func load(from address: UnsafeRawPointer, at index: Int) -> Double {
        let element = address.advanced(by: index &* size)
        return switch self {
        case .float32, .bfloat16, .float16: Double(element.load(as: Float.self))
        case .float64: element.load(as: Double.self)
        }
    }

    fileprivate func store(
        _ value: Double, to address: UnsafeMutableRawPointer, at index: Int
    ) {
        let element = address.advanced(by: index &* size)
        switch self {
        case .float32, .bfloat16, .float16: element.storeBytes(of: Float(value), as: Float.self)
        case .float64: element.storeBytes(of: value, as: Double.self)
        }
    }

    /// The nearest number of this type.
    fileprivate func rounded(_ value: Double) -> Double {
        switch self {
        case .float32, .bfloat16, .float16: Double(Float(value))
        case .float64: value
        }
    }
}

// MARK: - In a layer

extension LayerCore {
    /// A fold of the layer's running statistics, weight and bias, in either mode.
    package func fold(
        _ scalar: ScalarType, _ shape: WeightShape
    ) throws(BatchNormError) -> Fold {
        guard scalar == self.scalar.parameter else {
            throw .scalarTypeMismatch(actual: scalar, expected: self.scalar.parameter)
        }
        guard shape.outputChannels == options.numFeatures else {
            throw .channelsMismatch(actual: shape.outputChannels, expected: options.numFeatures)
        }
        var fold = Fold(
            scalar: scalar, shape: shape, epsilon: options.training.epsilon,
            runningMean: try parameter(.runningMean).constant,
            runningVar: try parameter(.runningVar).constant)
        fold.weight = weight.constant
        fold.bias = bias.constant
        return fold
    }
}

// MARK: - For Swift

/// Weight and bias of a layer that does what another and the batch normalization behind it did.
public struct Folded<Scalar: BatchNormParameter>: Equatable, Sendable {
    /// In the shape of the weight that was given; of an affine pair the scale, one per channel.
    public var weight: [Scalar]
    /// One per output channel; of an affine pair the shift.
    public var bias: [Scalar]
    /// How far rounding to `Scalar` has moved them.
    public var errors: FoldingErrors
}

extension RunningStatistics where Scalar: BatchNormParameter {
    /// Normalization by these statistics as one affine map per channel: `y = x * pair.weight + pair.bias`.
    ///
    /// - Parameters:
    ///   - weight: γ, one per channel; nil means 1.
    ///   - bias: β, one per channel; nil means 0.
    ///   - epsilon: Added to the variance; with 0, a channel of variance 0 gets scale 0.
    /// - Throws: `.countMismatch`, `.epsilon`, `.noChannels`; `.number` if a number is not finite, a variance is
    ///   negative, or a result is beyond the range of `Scalar`.
    public func affine(
        weight: [Scalar]? = nil, bias: [Scalar]? = nil, epsilon: Double = 1e-5
    ) throws(BatchNormError) -> Folded<Scalar> {
        try folded(nil, nil, WeightShape(channels: mean.count), weight, bias, epsilon)
    }

    /// Folds normalization by these statistics into the convolution or linear layer before it.
    ///
    /// With `scale = γ / √(variance + ε)` the new weight is `convWeight * scale` and the new bias
    /// `(convBias - mean) * scale + β`, formed in float64 and rounded once. Follows
    /// `torch.nn.utils.fuse_conv_bn_weights`.
    ///
    /// - Parameters:
    ///   - convWeight: The layer's weight, `shape.count` values.
    ///   - convBias: The layer's bias, one per output channel; nil means 0.
    ///   - shape: Where the output channels lie in `convWeight`.
    ///   - weight: γ of the normalization, one per channel; nil means 1.
    ///   - bias: β of the normalization, one per channel; nil means 0.
    ///   - epsilon: Added to the variance.
    /// - Throws: As `affine(weight:bias:epsilon:)`.
    public func fold(
        into convWeight: [Scalar], bias convBias: [Scalar]? = nil, shape: WeightShape,
        weight: [Scalar]? = nil, bias: [Scalar]? = nil, epsilon: Double = 1e-5
    ) throws(BatchNormError) -> Folded<Scalar> {
        try folded(convWeight, convBias, shape, weight, bias, epsilon)
    }

    private func folded(
        _ convWeight: [Scalar]?, _ convBias: [Scalar]?, _ shape: WeightShape,
        _ weight: [Scalar]?, _ bias: [Scalar]?, _ epsilon: Double
    ) throws(BatchNormError) -> Folded<Scalar> {
        var fold = Fold(
            scalar: Scalar.scalarType, shape: shape, epsilon: epsilon, runningMean: View(mean.span),
            runningVar: View(variance.span))
        fold.weight = View(weight?.span)
        fold.bias = View(bias?.span)
        return try fold.run(convWeight, convBias)
    }
}

extension BatchNormLayer where Scalar: BatchNormParameter {
    /// What the layer does in evaluation as one affine map per channel: `y = x * pair.weight + pair.bias`.
    ///
    /// - Throws: `.noRunningStatistics`; `.number` as `RunningStatistics.affine` does.
    public func affine() throws(BatchNormError) -> Folded<Scalar> {
        try core().fold(Scalar.scalarType, WeightShape(channels: options.numFeatures)).run(nil, nil)
    }

    /// Folds what the layer does in evaluation into the convolution or linear layer before it, see
    /// `RunningStatistics.fold`.
    ///
    /// - Throws: `.noRunningStatistics`, `.channelsMismatch`, `.countMismatch`; `.number` as
    ///   `RunningStatistics.fold` does.
    public func fold(
        into convWeight: [Scalar], bias convBias: [Scalar]? = nil, shape: WeightShape
    ) throws(BatchNormError) -> Folded<Scalar> {
        try core().fold(Scalar.scalarType, shape).run(convWeight, convBias)
    }
}

extension Fold {
    /// Runs it into new arrays.
    fileprivate func run<Scalar: BatchNormParameter>(
        _ convWeight: [Scalar]?, _ convBias: [Scalar]?
    ) throws(BatchNormError) -> Folded<Scalar> {
        // Before there is memory for so many values as the shape says.
        var given = self
        given.convWeight = View(convWeight?.span)
        given.convBias = View(convBias?.span)
        try given.validate()
        let channels = shape.outputChannels
        let weight = if let convWeight { convWeight } else { try [Scalar](allocating: channels, of: 1) }
        let bias = if let convBias { convBias } else { try [Scalar](allocating: channels, of: 0) }
        var folded = Folded<Scalar>(weight: weight, bias: bias, errors: FoldingErrors())
        folded.errors = try folded.weight.withUnsafeMutableBufferPointer {
            (weight) throws(BatchNormError) in
            try folded.bias.withUnsafeMutableBufferPointer { (bias) throws(BatchNormError) in
                var job = self
                job.foldedWeight = MutableView(weight)
                job.foldedBias = MutableView(bias)
                job.convWeight = job.foldedWeight.constant
                job.convBias = job.foldedBias.constant
                return try job.run()
            }
        }
        return folded
    }
}
