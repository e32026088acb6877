// The public functions for a batch that is not in one place: forward from given moments or saved statistics, and the two
// parts of backward.

// MARK: - Forward

extension BatchNormalization {
    /// `forwardTraining` with given moments: the input is not reduced. Everything else means what it means there.
    ///
    /// For a second forward (activation checkpointing) keep the moments and leave `running` out: it has the first one's
    /// bits, and updates nothing. Of a batch's parts, one takes the whole batch in.
    public static func normalize<Scalar: BatchNormScalar>(
        _ input: Tensor<Scalar>, moments: Moments, weight: [Scalar.Parameter]? = nil, bias: [Scalar.Parameter]? = nil,
        activation: Activation = .none, residual: Tensor<Scalar>? = nil, mask: PositionMask? = nil,
        running: consuming MutableRunningStatistics<Scalar>? = nil, options: TrainingOptions = TrainingOptions()
    ) throws(BatchNormError) -> (output: Tensor<Scalar>, saved: SavedStatistics) {
        try residual?.requireResidual(of: input)
        var output = try Tensor<Scalar>(repeating: 0, shape: input.shape)
        let saved = try normalize(
            input: input.span, shape: input.shape, output: output.mutableSpan, moments: moments,
            weight: weight?.span, bias: bias?.span, activation: activation,
            residual: residual?.span, mask: mask, running: running, options: options)
        return (output, saved)
    }

    /// `normalize` from memory of yours into memory of yours: `input` and `output` hold `shape.count` elements.
    public static func normalize<Scalar: BatchNormScalar>(
        input: Span<Scalar>, shape: Shape, output: consuming MutableSpan<Scalar>, moments: Moments,
        weight: Span<Scalar.Parameter>? = nil, bias: Span<Scalar.Parameter>? = nil,
        activation: Activation = .none, residual: Span<Scalar>? = nil, mask: PositionMask? = nil,
        running: consuming MutableRunningStatistics<Scalar>? = nil, options: TrainingOptions = TrainingOptions()
    ) throws(BatchNormError) -> SavedStatistics {
        var job = ForwardTraining(
            scalar: Scalar.scalarType, shape: shape, options: options, input: View(input), output: MutableView(output))
        job.take(weight, bias, activation, residual, mask)
        job.update(running)
        return try moments.withView { (view) throws(BatchNormError) in
            job.moments = view
            return try job.runAndSave(mask)
        }
    }

    /// The forward once more from what a forward saved: `y = (x - mean) * invstd * weight + bias`, then the residual
    /// and the activation. With the forward's `meanRest` it has that forward's bits; by how much it may differ without
    /// stands in batchnorm.h (bn_normalize_saved).
    ///
    ///     let again = try BatchNormalization.normalize(
    ///         x, saved: saved, weight: weight, activation: .relu, residual: shortcut)
    ///
    /// Activation, residual and mask are those of this call: of `saved` mean, its rest and invstd alone are used, so
    /// that those of one part serve another.
    ///
    /// - Parameters:
    ///   - input: The batch, or a part of it.
    ///   - saved: What a forward returned.
    ///   - weight: One factor per channel; nil means 1.
    ///   - bias: One summand per channel; nil means 0.
    ///   - activation: What is done to the values in the end.
    ///   - residual: Added before the activation; of the input's shape.
    ///   - mask: Which positions take part; nil means all.
    /// - Returns: The output, of the input's shape. `ActivationMask(_:output:)` makes the activation's mask of it.
    public static func normalize<Scalar: BatchNormScalar>(
        _ input: Tensor<Scalar>, saved: SavedStatistics, weight: [Scalar.Parameter]? = nil,
        bias: [Scalar.Parameter]? = nil, activation: Activation = .none, residual: Tensor<Scalar>? = nil,
        mask: PositionMask? = nil
    ) throws(BatchNormError) -> Tensor<Scalar> {
        try residual?.requireResidual(of: input)
        var output = try Tensor<Scalar>(repeating: 0, shape: input.shape)
        try normalize(
            input: input.span, shape: input.shape, output: output.mutableSpan, saved: saved,
            weight: weight?.span, bias: bias?.span, activation: activation,
            residual: residual?.span, mask: mask)
        return output
    }

    /// The forward once more from what a forward saved, from memory of yours into memory of yours: `input`, `residual`
    /// and `output` hold `shape.count` elements, `weight` and `bias` one per channel.
    public static func normalize<Scalar: BatchNormScalar>(
        input: Span<Scalar>, shape: Shape, output: consuming MutableSpan<Scalar>, saved: SavedStatistics,
        weight: Span<Scalar.Parameter>? = nil, bias: Span<Scalar.Parameter>? = nil,
        activation: Activation = .none, residual: Span<Scalar>? = nil, mask: PositionMask? = nil
    ) throws(BatchNormError) {
        defer { withExtendedLifetime((saved, mask)) {} }
        var job = ForwardInference(
            scalar: Scalar.scalarType, shape: shape, input: View(input), output: MutableView(output),
            source: .saved(saved))
        job.take(weight, bias, activation, residual, mask)
        try job.run()
    }
}

// MARK: - Backward

/// What the backward of a batch needs of all its values, per channel. Those of several parts add up: see `add`.
public struct GradientSums: Equatable, Sendable {
    /// Values per channel.
    public var count: Int
    /// Σ gradOutput of each channel.
    public var dy: [Double]
    /// Σ gradOutput * (input - mean) of each channel.
    public var dyXmu: [Double]

    /// Sums from elsewhere, an all-reduce for example.
    public init(count: Int, dy: [Double], dyXmu: [Double]) {
        self.count = count
        self.dy = dy
        self.dyXmu = dyXmu
    }

    /// Takes the sums of another part in.
    ///
    /// - Throws: `.countMismatch` if the channels differ, `.momentsCount` if a count is negative,
    ///   `.momentsCountOverflow`.
    public mutating func add(_ other: GradientSums) throws(BatchNormError) {
        guard other.dy.count == dy.count else {
            throw .countMismatch(.sumDy, actual: other.dy.count, expected: dy.count)
        }
        guard other.dyXmu.count == dyXmu.count else {
            throw .countMismatch(.sumDyXmu, actual: other.dyXmu.count, expected: dyXmu.count)
        }
        guard count >= 0 else { throw .momentsCount(.sums, actual: count, expected: 0) }
        guard other.count >= 0 else { throw .momentsCount(.other, actual: other.count, expected: 0) }
        let (sum, overflow) = count.addingReportingOverflow(other.count)
        guard !overflow else {
            throw .momentsCountOverflow(actual: other.count, expected: .max &- count)
        }
        count = sum
        for channel in dy.indices { dy[channel] += other.dy[channel] }
        for channel in dyXmu.indices { dyXmu[channel] += other.dyXmu[channel] }
    }
}

extension BatchNormalization {
    /// The reduce part of `backward`: the sums of one part. Mean and invstd of `saved` are the whole batch's, the
    /// activation's mask and the positions the part's own, as the part's `normalize` returned them.
    public static func backwardReduce<Scalar: BatchNormScalar>(
        _ input: Tensor<Scalar>, gradOutput: Tensor<Scalar>, saved: SavedStatistics
    ) throws(BatchNormError) -> GradientSums {
        guard gradOutput.shape == input.shape else {
            throw .shapeMismatch(actual: gradOutput.shape, expected: input.shape)
        }
        return try backwardReduce(
            input: input.span, gradOutput: gradOutput.span, shape: input.shape,
            saved: saved)
    }

    /// The reduce part of `backward`, from memory of yours.
    public static func backwardReduce<Scalar: BatchNormScalar>(
        input: Span<Scalar>, gradOutput: Span<Scalar>, shape: Shape, saved: SavedStatistics
    ) throws(BatchNormError) -> GradientSums {
        defer { withExtendedLifetime(saved) {} }
        let job = Backward(input, gradOutput, shape, saved)
        var sums = GradientSums(
            count: 0, dy: try Array(allocating: shape.channels, of: 0),
            dyXmu: try Array(allocating: shape.channels, of: 0))
        sums.count = try sums.dy.withUnsafeMutableBufferPointer { (dy) throws(BatchNormError) in
            try sums.dyXmu.withUnsafeMutableBufferPointer { (dyXmu) throws(BatchNormError) in
                try job.reduce(
                    into: GradientSumsView(count: 0, dy: MutableView(dy), dyXmu: MutableView(dyXmu)))
            }
        }
        return sums
    }

    /// The apply part of `backward`: the gradients of one part from the whole batch's sums and statistics. Those of
    /// weight and bias are what `sums` say; from a part's own sums they are that part's. `saved` is what the part's
    /// `normalize` returned: it says what else that did, and whether there is a gradient with respect to a residual.
    public static func backwardApply<Scalar: BatchNormScalar>(
        _ input: Tensor<Scalar>, gradOutput: Tensor<Scalar>, sums: GradientSums,
        weight: [Scalar.Parameter]? = nil, saved: SavedStatistics
    ) throws(BatchNormError) -> Gradients<Scalar> {
        guard gradOutput.shape == input.shape else {
            throw .shapeMismatch(actual: gradOutput.shape, expected: input.shape)
        }
        return try Gradients(shape: input.shape, hasResidual: saved.hasResidual) {
            (gradInput, gradWeight, gradBias, gradResidual) throws(BatchNormError) in
            try backwardApply(
                input: input.span, gradOutput: gradOutput.span, shape: input.shape,
                sums: sums, weight: weight?.span, saved: saved, gradInput: gradInput,
                gradWeight: gradWeight, gradBias: gradBias, gradResidual: gradResidual)
        }
    }

    /// The apply part of `backward`, from memory of yours into memory of yours. A gradient that is
    /// left out is not computed.
    public static func backwardApply<Scalar: BatchNormScalar>(
        input: Span<Scalar>, gradOutput: Span<Scalar>, shape: Shape, sums: GradientSums,
        weight: Span<Scalar.Parameter>? = nil, saved: SavedStatistics, gradInput: consuming MutableSpan<Scalar>? = nil,
        gradWeight: consuming MutableSpan<Scalar.Parameter>? = nil,
        gradBias: consuming MutableSpan<Scalar.Parameter>? = nil,
        gradResidual: consuming MutableSpan<Scalar>? = nil
    ) throws(BatchNormError) {
        defer { withExtendedLifetime(saved) {} }
        var job = Backward(input, gradOutput, shape, saved)
        job.take(weight, gradInput, gradWeight, gradBias, gradResidual)
        try sums.dy.withUnsafeBufferPointer { (dy) throws(BatchNormError) in
            try sums.dyXmu.withUnsafeBufferPointer { (dyXmu) throws(BatchNormError) in
                // Lent to a call that reads them only.
                job.sums = GradientSumsView(
                    count: sums.count, dy: MutableView(UnsafeMutableBufferPointer(mutating: dy)),
                    dyXmu: MutableView(UnsafeMutableBufferPointer(mutating: dyXmu)))
                try job.run()
            }
        }
    }
}
