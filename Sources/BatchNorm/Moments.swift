// The statistics of a batch that is not in one place: moments per channel, which merge.

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
        try self.init(of: input.span, shape: input.shape, mask: mask)
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
        let saved = try BatchNormalization.normalize(
            input: Span(), shape: .nc(0, channels), output: MutableSpan(), moments: self,
            running: running.mutableView, options: options)
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
