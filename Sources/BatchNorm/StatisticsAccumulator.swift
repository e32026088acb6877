// The statistics of many batches, collected without keeping any of them.

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

extension BatchNormLayer {
    /// Replaces the running statistics by those of a stream of the layer's inputs ("PreciseBN", see
    /// `StatisticsAccumulator`). They change at the very end: on any error the layer is as it was.
    ///
    ///     try layer.recalibrate(batches)
    ///
    /// In a network, where each layer's inputs depend on the layers before it, run the network in training mode and `add`
    /// each layer's input to a `StatisticsAccumulator` of its own.
    ///
    /// - Parameters:
    ///   - batches: The inputs; read once.
    ///   - method: What is collected.
    ///   - runningVariance: Which variance: of all values together, or of each batch.
    /// - Throws: `.noRunningStatistics` if the layer keeps none; `.momentsCount` if no batch has values, `.countMismatch`
    ///   for one of other channels, `.nonfinite` for NaN, infinity and statistics beyond the parameters' range.
    public func recalibrate<Batches: Sequence<Tensor<Scalar>>>(
        _ batches: Batches, method: StatisticsAccumulator.Method = .exact,
        runningVariance: RunningVariance = .unbiased
    ) throws(BatchNormError) {
        try recalibrate(method, runningVariance) { (collected) throws(BatchNormError) in
            for batch in batches { try collected.add(batch) }
        }
    }

    /// As `recalibrate` with tensors, from the moments of the batches.
    public func recalibrate<Batches: Sequence<Moments>>(
        _ batches: Batches, method: StatisticsAccumulator.Method = .exact,
        runningVariance: RunningVariance = .unbiased
    ) throws(BatchNormError) {
        try recalibrate(method, runningVariance) { (collected) throws(BatchNormError) in
            for moments in batches { try collected.add(moments) }
        }
    }

    private func recalibrate(
        _ method: StatisticsAccumulator.Method, _ runningVariance: RunningVariance,
        _ collect: (inout StatisticsAccumulator) throws(BatchNormError) -> Void
    ) throws(BatchNormError) {
        guard options.trackRunningStats else { throw .noRunningStatistics }
        var collected = try StatisticsAccumulator(
            channels: options.numFeatures, method: method, runningVariance: runningVariance)
        try collect(&collected)
        let running = try collected.statistics(as: Scalar.self)
        try setRunningMean(running.mean)
        try setRunningVar(running.variance)
        try setNumBatchesTracked(running.numBatchesTracked)
    }
}
