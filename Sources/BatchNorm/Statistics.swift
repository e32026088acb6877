// Statistics as values, for those who call the stateless functions and keep state themselves.

/// Running averages of mean and variance per channel, collected in training and used in inference.
public struct RunningStatistics<Scalar: BatchNormScalar>: Hashable, Sendable {
    /// One mean per channel.
    public var mean: [Scalar.Parameter]
    /// One variance per channel.
    public var variance: [Scalar.Parameter]
    /// How many batches have been taken in.
    public var numBatchesTracked: Int {
        get { counter[0] }
        set { counter[0] = newValue }
    }
    /// That number, in memory that can be lent as that of the arrays.
    fileprivate var counter: [Int]
    /// Of these batches, how many each channel's mean has **not** taken in, and then how many each variance: two numbers
    /// per channel. NaN and infinity leave a channel alone, one value per channel (`OneValuePolicy.allow`) its variance.
    /// Cumulative averages weigh a batch by what a channel has taken in.
    public var skippedBatches: [Int]

    /// Statistics from elsewhere, of a trained model for example. Without `skippedBatches` there are none.
    public init(
        mean: [Scalar.Parameter], variance: [Scalar.Parameter], numBatchesTracked: Int = 0,
        skippedBatches: [Int]? = nil
    ) {
        self.mean = mean
        self.variance = variance
        self.counter = [numBatchesTracked]
        self.skippedBatches =
            skippedBatches ?? Array(repeating: 0, count: mean.count + variance.count)
    }

    /// Mean 0 and variance 1, as before the first batch.
    ///
    ///     var running = try RunningStatistics<Float>(channels: 64)
    ///
    /// - Throws: `.noChannels`, `.negativeCount`, `.sizeOverflow` or `.outOfMemory`.
    public init(channels: Int) throws(BatchNormError) {
        try requireChannels(channels)
        self.init(
            mean: try Array(allocating: channels, of: 0),
            variance: try Array(allocating: channels, of: 1),
            skippedBatches: try Array(allocating: 2 &* channels, of: 0))
    }
}

#if !hasFeature(Embedded)
    extension RunningStatistics: Codable where Scalar.Parameter: Codable {
        private enum Key: CodingKey { case mean, variance, numBatchesTracked, skippedBatches }

        public init(from decoder: any Decoder) throws {
            let values = try decoder.container(keyedBy: Key.self)
            self.init(
                mean: try values.decode([Scalar.Parameter].self, forKey: .mean),
                variance: try values.decode([Scalar.Parameter].self, forKey: .variance),
                numBatchesTracked: try values.decode(Int.self, forKey: .numBatchesTracked),
                skippedBatches: try values.decode([Int].self, forKey: .skippedBatches))
        }

        public func encode(to encoder: any Encoder) throws {
            var values = encoder.container(keyedBy: Key.self)
            try values.encode(mean, forKey: .mean)
            try values.encode(variance, forKey: .variance)
            try values.encode(numBatchesTracked, forKey: .numBatchesTracked)
            try values.encode(skippedBatches, forKey: .skippedBatches)
        }
    }
#endif

/// What a forward pass saves for its backward: the statistics that it normalized with, and which values took part and
/// passed.
///
/// They are float64 whatever the tensors hold, because a mean rounded to float32 may be off by more than the deviation.
public struct SavedStatistics: Equatable, Sendable {
    /// One mean per channel.
    public var mean: [Double]
    /// One inverse standard deviation, 1 / √(variance + ε), per channel.
    public var invstd: [Double]
    /// What the mean has beyond `mean`, one per channel. Float64 gradients lose digits without it where the mean is large
    /// beside the deviation.
    public var meanRest: [Double]
    /// Where they come from: the gradient flows through the batch's own, not through running ones.
    public var statistics: Statistics
    /// How many channels of the batch held NaN or infinity.
    public var nonfiniteChannels: Int
    /// How many channels' running mean or variance was NaN or infinite, and has stayed so: see `Averaging`.
    public var nonfiniteRunningChannels = 0
    /// Where the forward's activation let pass; nil if it had none.
    public var activationMask: ActivationMask?
    /// Which positions took part; nil: all.
    public var positionMask: PositionMask?
    /// Whether the forward added a residual, so that there is a gradient with respect to it.
    public var hasResidual = false

    /// Statistics from elsewhere, one mean and invstd per channel; without `meanRest` it is 0.
    public init(
        mean: [Double], invstd: [Double], meanRest: [Double]? = nil, statistics: Statistics = .batch,
        nonfiniteChannels: Int = 0
    ) {
        self.mean = mean
        self.invstd = invstd
        self.meanRest = meanRest ?? Array(repeating: 0, count: mean.count)
        self.statistics = statistics
        self.nonfiniteChannels = nonfiniteChannels
    }

    /// What backward needs after an inference forward with these statistics ("frozen" batch normalization). If the
    /// forward had an activation, a mask or a residual, set these members.
    ///
    /// - Throws: `.countMismatch` if mean and variance differ in length, `.noChannels` if there are none, `.epsilon`,
    ///   `.outOfMemory`.
    public init<Scalar: BatchNormScalar>(
        running: RunningStatistics<Scalar>, epsilon: Double = 1e-5
    ) throws(BatchNormError) {
        let channels = running.mean.count
        guard running.variance.count == channels else {
            throw .countMismatch(
                .runningVar, actual: running.variance.count, expected: channels)
        }
        guard channels > 0 else { throw .noChannels }
        try requireEpsilon(epsilon)
        try self.init(channels: channels, statistics: .running)
        withViews { mean, invstd, _ in
            running.mean.withUnsafeBytes { runningMean in
                running.variance.withUnsafeBytes { runningVar in
                    Kernels.statisticsFromRunning(
                        channels: channels, Scalar.scalarType, mean: runningMean.baseAddress,
                        variance: runningVar.baseAddress, epsilon: epsilon,
                        savedMean: mean.address, savedInvstd: invstd.address)
                }
            }
        }
    }

    init(channels: Int, statistics: Statistics = .batch) throws(BatchNormError) {
        self.init(
            mean: try Array(allocating: channels, of: 0),
            invstd: try Array(allocating: channels, of: 0),
            meanRest: try Array(allocating: channels, of: 0), statistics: statistics)
    }
}

/// Running statistics lent to a call that may take a batch into them: `running.mutableView`.
public struct MutableRunningStatistics<Scalar: BatchNormScalar>: ~Copyable, ~Escapable {
    let mean, variance, numBatchesTracked, skippedBatches: MutableView

    @_lifetime(&statistics)
    fileprivate init(lending statistics: inout RunningStatistics<Scalar>) {
        mean = MutableView(statistics.mean.mutableSpan)
        variance = MutableView(statistics.variance.mutableSpan)
        numBatchesTracked = MutableView(statistics.counter.mutableSpan)
        skippedBatches = MutableView(statistics.skippedBatches.mutableSpan)
    }
}

extension RunningStatistics {
    /// These statistics, lent to a call that takes a batch in.
    public var mutableView: MutableRunningStatistics<Scalar> {
        @_lifetime(&self) mutating get { MutableRunningStatistics(lending: &self) }
    }
}

extension SavedStatistics {
    /// Lends mean, invstd and the mean's rest to a call that writes them.
    mutating func withViews<Result, Failure: Error>(
        _ body: (MutableView, MutableView, MutableView) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        try mean.withUnsafeMutableBufferPointer { (mean) throws(Failure) in
            try invstd.withUnsafeMutableBufferPointer { (invstd) throws(Failure) in
                try meanRest.withUnsafeMutableBufferPointer { (rest) throws(Failure) in
                    try body(MutableView(mean), MutableView(invstd), MutableView(rest))
                }
            }
        }
    }
}
