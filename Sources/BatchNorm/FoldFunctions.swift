// The public functions of folding: normalization by running statistics as one affine pair, or folded into the layer before.

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
        defer { withExtendedLifetime((self, weight, bias)) {} }
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
        defer { withExtendedLifetime((convWeight, convBias)) {} }
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
