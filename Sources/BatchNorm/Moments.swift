// The public halves of the operations, for a batch that is not in one place, and the statistics of many batches. All of
// them end in SplitOperations.swift and Operations.swift.

/// Count, mean and sum of squared distances from the mean, per channel; they can be merged.
///
///     var moments = try Moments(of: firstPart)
///     try moments.merge(Moments(of: secondPart))
///     let (output, saved) = try BatchNormalization.normalize(firstPart, moments: moments)
///
/// With moments of one part, `normalize` writes the same bits as `forwardTraining`. With several it does if they are
/// the pieces that the whole batch would be cut into, merged in ascending order: see batchnorm.h.
public struct Moments: Equatable, Sendable {
    /// Values per channel, the same for all; with 0 the arrays say nothing.
    public var count: Int
    /// One mean per channel, together with `meanRest`.
    public var mean: [Double]
    /// What the mean has beyond `mean`: a sum that is not carried out, for in float64 alone a mean that is large beside
    /// the deviation would cost float64 tensors digits.
    public var meanRest: [Double]
    /// Σ (x - mean)² of each channel, not negative; NaN in a channel that holds NaN or infinity.
    public var m2: [Double]

    /// Moments from elsewhere; without `meanRest` it is 0.
    public init(count: Int, mean: [Double], m2: [Double], meanRest: [Double]? = nil) {
        self.count = count
        self.mean = mean
        self.meanRest = meanRest ?? Array(repeating: 0, count: mean.count)
        self.m2 = m2
    }

    /// Moments of no values, to which others are merged.
    ///
    /// - Throws: `.noChannels`, `.negativeCount`, `.sizeOverflow` or `.outOfMemory`.
    public init(channels: Int) throws(BatchNormError) {
        try requireChannels(channels)
        let zeros = try [Double](allocating: channels, of: 0)
        // Each becomes an array of its own when it is written.
        try requireMemory(for: channels, of: (Double, Double, Double).self)
        self.init(count: 0, mean: zeros, m2: zeros, meanRest: zeros)
    }

    /// The moments of a tensor. NaN or infinity in it is no error here; it is what `NonfinitePolicy` is about.
    /// `mask` tells which positions take part; nil means all.
    public init<Scalar: BatchNormScalar>(
        of input: Tensor<Scalar>, mask: PositionMask? = nil
    ) throws(BatchNormError) {
        try self.init(of: input.elements.span, shape: input.shape, mask: mask)
    }

    /// The moments of `shape.count` elements in memory of yours.
    public init<Scalar: BatchNormScalar>(
        of input: Span<Scalar>, shape: Shape, mask: PositionMask? = nil
    ) throws(BatchNormError) {
        try self.init(channels: shape.channels)
        defer { withExtendedLifetime(mask) {} }
        count = try withMutableView { (view) throws(BatchNormError) in
            try computeMoments(Scalar.scalarType, shape, View(input), Positions(mask), into: view)
        }
    }

    /// The number of channels.
    public var channels: Int { mean.count }

    /// Takes `other` in: afterwards these are the moments of all values of both. The order matters for the last bits.
    ///
    /// Follows Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
    /// 1979.
    ///
    /// - Throws: `.momentsCount`, `.momentsM2`, `.momentsCountOverflow`, or `.countMismatch` if the channels differ.
    public mutating func merge(_ other: Moments) throws(BatchNormError) {
        count = try withMutableView { (view) throws(BatchNormError) in
            try other.withView { (other) throws(BatchNormError) in
                try mergeMoments(other, into: view)
            }
        }
    }

    /// The variance of each channel, M2 / count or M2 / (count - 1); NaN where a channel holds NaN or infinity.
    ///
    /// - Throws: `.momentsCount` if the count is 0, or 1 for the unbiased one.
    public func variance(_ kind: RunningVariance = .biased) throws(BatchNormError) -> [Double] {
        var variance = try [Double](allocating: channels, of: 0)
        try withView { (view) throws(BatchNormError) in
            try variance.withUnsafeMutableBufferPointer { (variance) throws(BatchNormError) in
                try momentsStatistics(
                    view, epsilon: 0, kind, variance: MutableView(variance), invstd: .absent)
            }
        }
        return variance
    }

    /// 1 / √(biased variance + ε) of each channel, as `forwardTraining` saves it.
    public func invstd(epsilon: Double = 1e-5) throws(BatchNormError) -> [Double] {
        var invstd = try [Double](allocating: channels, of: 0)
        try withView { (view) throws(BatchNormError) in
            try invstd.withUnsafeMutableBufferPointer { (invstd) throws(BatchNormError) in
                try momentsStatistics(
                    view, epsilon: epsilon, .biased, variance: .absent, invstd: MutableView(invstd))
            }
        }
        return invstd
    }

    /// Takes these moments into running statistics, as `forwardTraining` does with those of its input. Moments of no
    /// values change nothing.
    ///
    /// - Returns: How many channels of these moments held NaN or infinity, and how many channels' running statistics;
    ///   see `NonfinitePolicy` and `Averaging`.
    @discardableResult
    public func update<Scalar: BatchNormScalar>(
        _ running: inout RunningStatistics<Scalar>, options: TrainingOptions = TrainingOptions()
    ) throws(BatchNormError) -> (nonfiniteChannels: Int, nonfiniteRunningChannels: Int) {
        var nothing = MutableSpan<Scalar>()
        let saved = try BatchNormalization.normalize(
            input: Span(), shape: .nc(0, channels), output: &nothing, moments: self,
            running: &running, options: options)
        return (saved.nonfiniteChannels, saved.nonfiniteRunningChannels)
    }
}

extension Moments {
    func withView<Result, Failure: Error>(
        _ body: (MomentsView) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        try mean.withUnsafeBufferPointer { (mean) throws(Failure) in
            try meanRest.withUnsafeBufferPointer { (meanRest) throws(Failure) in
                try m2.withUnsafeBufferPointer { (m2) throws(Failure) in
                    // Lent to calls that read them only.
                    try body(
                        MomentsView(
                            count: count, mean: MutableView(UnsafeMutableBufferPointer(mutating: mean)),
                            meanRest: MutableView(UnsafeMutableBufferPointer(mutating: meanRest)),
                            m2: MutableView(UnsafeMutableBufferPointer(mutating: m2))))
                }
            }
        }
    }

    fileprivate mutating func withMutableView<Result, Failure: Error>(
        _ body: (MomentsView) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        let count = count
        return try mean.withUnsafeMutableBufferPointer { (mean) throws(Failure) in
            try meanRest.withUnsafeMutableBufferPointer { (meanRest) throws(Failure) in
                try m2.withUnsafeMutableBufferPointer { (m2) throws(Failure) in
                    try body(
                        MomentsView(
                            count: count, mean: MutableView(mean), meanRest: MutableView(meanRest),
                            m2: MutableView(m2)))
                }
            }
        }
    }
}

// MARK: - Forward

extension BatchNormalization {
    /// `forwardTraining` with given moments: the input is not reduced. Everything else means what it means there.
    ///
    /// For a second forward (activation checkpointing) keep the moments and use the function without `running`: it has
    /// the first one's bits, and updates nothing.
    public static func normalize<Scalar: BatchNormScalar>(
        _ input: Tensor<Scalar>, moments: Moments, weight: [Scalar.Parameter]? = nil, bias: [Scalar.Parameter]? = nil,
        activation: Activation = .none, residual: Tensor<Scalar>? = nil, mask: PositionMask? = nil,
        running: inout RunningStatistics<Scalar>, options: TrainingOptions = TrainingOptions()
    ) throws(BatchNormError) -> (output: Tensor<Scalar>, saved: SavedStatistics) {
        try residual?.requireResidual(of: input)
        var output = try Tensor<Scalar>(repeating: 0, shape: input.shape)
        let saved = try output.withMutableSpan { (output) throws(BatchNormError) in
            try normalize(
                input: input.elements.span, shape: input.shape, output: &output, moments: moments,
                weight: weight?.span, bias: bias?.span, activation: activation,
                residual: residual?.elements.span, mask: mask, running: &running, options: options)
        }
        return (output, saved)
    }

    /// As the function with `running`, for parts after the first and for second forwards.
    public static func normalize<Scalar: BatchNormScalar>(
        _ input: Tensor<Scalar>, moments: Moments, weight: [Scalar.Parameter]? = nil, bias: [Scalar.Parameter]? = nil,
        activation: Activation = .none, residual: Tensor<Scalar>? = nil, mask: PositionMask? = nil,
        options: TrainingOptions = TrainingOptions()
    ) throws(BatchNormError) -> (output: Tensor<Scalar>, saved: SavedStatistics) {
        try residual?.requireResidual(of: input)
        var output = try Tensor<Scalar>(repeating: 0, shape: input.shape)
        let saved = try output.withMutableSpan { (output) throws(BatchNormError) in
            try normalize(
                input: input.elements.span, shape: input.shape, output: &output, moments: moments,
                weight: weight?.span, bias: bias?.span, activation: activation,
                residual: residual?.elements.span, mask: mask, options: options)
        }
        return (output, saved)
    }

    /// `normalize` from memory of yours into memory of yours: `input` and `output` hold `shape.count` elements.
    public static func normalize<Scalar: BatchNormScalar>(
        input: Span<Scalar>, shape: Shape, output: inout MutableSpan<Scalar>, moments: Moments,
        weight: Span<Scalar.Parameter>? = nil, bias: Span<Scalar.Parameter>? = nil,
        activation: Activation = .none, residual: Span<Scalar>? = nil, mask: PositionMask? = nil,
        running: inout RunningStatistics<Scalar>, options: TrainingOptions = TrainingOptions()
    ) throws(BatchNormError) -> SavedStatistics {
        var job = ForwardTraining(
            scalar: Scalar.scalarType, shape: shape, options: options, input: View(input),
            output: MutableView(&output))
        job.weight = View(weight)
        job.bias = View(bias)
        job.epilogue = ForwardEpilogue(activation, residual)
        job.positions = Positions(mask)
        return try moments.withView { (view) throws(BatchNormError) in
            job.moments = view
            return try job.run(&running, mask)
        }
    }

    /// As the function with `running`, for parts after the first and for second forwards.
    public static func normalize<Scalar: BatchNormScalar>(
        input: Span<Scalar>, shape: Shape, output: inout MutableSpan<Scalar>, moments: Moments,
        weight: Span<Scalar.Parameter>? = nil, bias: Span<Scalar.Parameter>? = nil,
        activation: Activation = .none, residual: Span<Scalar>? = nil, mask: PositionMask? = nil,
        options: TrainingOptions = TrainingOptions()
    ) throws(BatchNormError) -> SavedStatistics {
        var job = ForwardTraining(
            scalar: Scalar.scalarType, shape: shape, options: options, input: View(input),
            output: MutableView(&output))
        job.weight = View(weight)
        job.bias = View(bias)
        job.epilogue = ForwardEpilogue(activation, residual)
        job.positions = Positions(mask)
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
        try output.withMutableSpan { (output) throws(BatchNormError) in
            try normalize(
                input: input.elements.span, shape: input.shape, output: &output, saved: saved,
                weight: weight?.span, bias: bias?.span, activation: activation,
                residual: residual?.elements.span, mask: mask)
        }
        return output
    }

    /// The forward once more from what a forward saved, from memory of yours into memory of yours: `input`, `residual`
    /// and `output` hold `shape.count` elements, `weight` and `bias` one per channel.
    public static func normalize<Scalar: BatchNormScalar>(
        input: Span<Scalar>, shape: Shape, output: inout MutableSpan<Scalar>, saved: SavedStatistics,
        weight: Span<Scalar.Parameter>? = nil, bias: Span<Scalar.Parameter>? = nil,
        activation: Activation = .none, residual: Span<Scalar>? = nil, mask: PositionMask? = nil
    ) throws(BatchNormError) {
        defer { withExtendedLifetime((saved, mask)) {} }
        var job = ForwardInference(
            scalar: Scalar.scalarType, shape: shape, epsilon: 0, input: View(input),
            output: MutableView(&output))
        job.saved = (View(saved.mean.span), View(saved.invstd.span))
        job.savedMeanRest = View(saved.meanRest.span)
        job.weight = View(weight)
        job.bias = View(bias)
        job.epilogue = ForwardEpilogue(activation, residual)
        job.positions = Positions(mask)
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
    /// The first half of `backward`: the sums of one part. Mean and invstd of `saved` are the whole batch's, the
    /// activation's mask and the positions the part's own, as the part's `normalize` returned them.
    public static func backwardReduce<Scalar: BatchNormScalar>(
        _ input: Tensor<Scalar>, gradOutput: Tensor<Scalar>, saved: SavedStatistics
    ) throws(BatchNormError) -> GradientSums {
        guard gradOutput.shape == input.shape else {
            throw .shapeMismatch(actual: gradOutput.shape, expected: input.shape)
        }
        return try backwardReduce(
            input: input.elements.span, gradOutput: gradOutput.elements.span, shape: input.shape,
            saved: saved)
    }

    /// The first half of `backward`, from memory of yours.
    public static func backwardReduce<Scalar: BatchNormScalar>(
        input: Span<Scalar>, gradOutput: Span<Scalar>, shape: Shape, saved: SavedStatistics
    ) throws(BatchNormError) -> GradientSums {
        var job = Backward(
            scalar: Scalar.scalarType, shape: shape, statistics: saved.statistics,
            source: .saved(mean: View(saved.mean.span), invstd: View(saved.invstd.span)),
            input: View(input), gradOutput: View(gradOutput))
        job.savedMeanRest = View(saved.meanRest.span)
        job.epilogue = BackwardEpilogue(saved)
        job.positions = Positions(saved.positionMask)
        defer { withExtendedLifetime(saved) {} }
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

    /// The second half of `backward`: the gradients of one part from the whole batch's sums and statistics. Those of
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
                input: input.elements.span, gradOutput: gradOutput.elements.span, shape: input.shape,
                sums: sums, weight: weight?.span, saved: saved, gradInput: &gradInput,
                gradWeight: &gradWeight, gradBias: &gradBias, gradResidual: &gradResidual)
        }
    }

    /// The second half of `backward`, from memory of yours into memory of yours. Pass an empty span to skip a gradient.
    public static func backwardApply<Scalar: BatchNormScalar>(
        input: Span<Scalar>, gradOutput: Span<Scalar>, shape: Shape, sums: GradientSums,
        weight: Span<Scalar.Parameter>? = nil, saved: SavedStatistics, gradInput: inout MutableSpan<Scalar>,
        gradWeight: inout MutableSpan<Scalar.Parameter>, gradBias: inout MutableSpan<Scalar.Parameter>,
        gradResidual: inout MutableSpan<Scalar>
    ) throws(BatchNormError) {
        var job = Backward(
            scalar: Scalar.scalarType, shape: shape, statistics: saved.statistics,
            source: .saved(mean: View(saved.mean.span), invstd: View(saved.invstd.span)),
            input: View(input), gradOutput: View(gradOutput))
        job.weight = View(weight)
        job.gradInput = MutableView(unlessEmpty: &gradInput)
        job.gradWeight = MutableView(unlessEmpty: &gradWeight)
        job.gradBias = MutableView(unlessEmpty: &gradBias)
        job.savedMeanRest = View(saved.meanRest.span)
        job.epilogue = BackwardEpilogue(saved)
        job.positions = Positions(saved.positionMask)
        job.epilogue.gradResidual = MutableView(unlessEmpty: &gradResidual)
        defer { withExtendedLifetime(saved) {} }
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

    /// As the function with `gradResidual`, for forwards without a residual.
    public static func backwardApply<Scalar: BatchNormScalar>(
        input: Span<Scalar>, gradOutput: Span<Scalar>, shape: Shape, sums: GradientSums,
        weight: Span<Scalar.Parameter>? = nil, saved: SavedStatistics, gradInput: inout MutableSpan<Scalar>,
        gradWeight: inout MutableSpan<Scalar.Parameter>, gradBias: inout MutableSpan<Scalar.Parameter>
    ) throws(BatchNormError) {
        var gradResidual = MutableSpan<Scalar>()
        try backwardApply(
            input: input, gradOutput: gradOutput, shape: shape, sums: sums, weight: weight, saved: saved,
            gradInput: &gradInput, gradWeight: &gradWeight, gradBias: &gradBias,
            gradResidual: &gradResidual)
    }
}

// MARK: - Statistics of many batches

/// Collects the statistics of a stream of batches, without keeping any of them.
///
/// Running statistics from training lag behind the weights and weigh the last batches most. Collected anew after
/// training they fit the weights: "PreciseBN" (Wu and Johnson 2021, arXiv:2105.07576).
///
///     var collected = try StatisticsAccumulator(channels: 3)
///     for batch in batches { try collected.add(batch) }
///     let running: RunningStatistics<Float> = try collected.statistics()
public struct StatisticsAccumulator: Sendable {
    /// What is collected.
    public enum Method: Sendable {
        /// Mean and variance of all values of all batches together, as Wu and Johnson advise.
        case exact
        /// The plain mean of each batch's mean and variance, as fvcore's update_bn_stats and PyTorch's `momentum=None`
        /// do; batches of different size count the same.
        case mean
    }

    /// What is collected.
    public let method: Method
    /// Which variance: of all values together, or of each batch.
    public let runningVariance: RunningVariance
    private var all: Moments
    private var means: RunningStatistics<Double>

    /// None collected yet.
    ///
    /// - Throws: `.noChannels`, `.negativeCount`, `.sizeOverflow` or `.outOfMemory`.
    public init(
        channels: Int, method: Method = .exact, runningVariance: RunningVariance = .unbiased
    ) throws(BatchNormError) {
        self.method = method
        self.runningVariance = runningVariance
        self.all = try Moments(channels: channels)
        self.means = try RunningStatistics(channels: channels)
    }

    /// Takes a batch in. An empty one changes nothing.
    ///
    /// - Throws: `.nonfinite` if a channel holds NaN or infinity, which would spoil all that was collected; on any
    ///   error nothing has changed.
    public mutating func add<Scalar: BatchNormScalar>(
        _ batch: Tensor<Scalar>
    ) throws(BatchNormError) {
        try add(Moments(of: batch))
    }

    /// Takes in the moments of a batch.
    public mutating func add(_ moments: Moments) throws(BatchNormError) {
        // On copies, for `.nonfinite` comes after the other channels have been written.
        var means = means
        let options = TrainingOptions(
            averaging: .cumulative, runningVariance: runningVariance,
            oneValue: method == .exact ? .allow : .error, nonfinite: .error)
        try moments.update(&means, options: options)
        if method == .exact { try all.merge(moments) }
        self.means = means
    }

    /// What has been collected, with the number of batches.
    ///
    /// - Throws: `.momentsCount` if there was no batch with values, `.nonfinite` if statistics exceed `Scalar`'s range.
    public func statistics<Scalar: BatchNormScalar>(
        as type: Scalar.Type = Scalar.self
    ) throws(BatchNormError) -> RunningStatistics<Scalar> {
        guard means.numBatchesTracked > 0 else {
            throw .momentsCount(.moments, actual: 0, expected: 1)
        }
        let mean = method == .exact ? all.mean : means.mean
        let variance = method == .exact ? try all.variance(runningVariance) : means.variance
        let running = RunningStatistics<Scalar>(
            mean: mean.map { Scalar.Parameter($0) }, variance: variance.map { Scalar.Parameter($0) },
            numBatchesTracked: means.numBatchesTracked)
        let channels = running.mean.indices
        let lost = channels.count { !running.mean[$0].isFinite || !running.variance[$0].isFinite }
        guard lost == 0 else { throw .nonfinite(channels: lost, runningChannels: 0, of: channels.count) }
        return running
    }
}
