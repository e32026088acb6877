// What passes between the two parts of an operation, in raw memory: moments from the forward's reduce part, sums from
// backward's. The apply parts are ForwardTraining and Backward themselves, which take over what is given.

import CBatchNormKernels

/// Moments in memory of the caller's: see bn_moments in batchnorm.h.
package struct MomentsView {
    package var count: Int
    package var mean: MutableView
    package var meanRest: MutableView
    package var m2: MutableView

    package init(count: Int, mean: MutableView, meanRest: MutableView, m2: MutableView) {
        self.count = count
        self.mean = mean
        self.meanRest = meanRest
        self.m2 = m2
    }

    var arrays: bnk_moment_arrays {
        bnk_moment_arrays(
            count: Double(count), mean: mean.address?.assumingMemoryBound(to: Double.self),
            mean_rest: meanRest.address?.assumingMemoryBound(to: Double.self),
            m2: m2.address?.assumingMemoryBound(to: Double.self))
    }

    /// Throws unless there are as many channels as that; `argument` is what the error names.
    func requireReadable(
        _ argument: BatchNormError.Argument, channels: Int, _ buffers: inout BufferCheck
    ) throws(BatchNormError) {
        try requireChannels(mean.count, channels, argument)
        try buffers.read(mean.constant, .mean, count: channels, elementSize: 8)
        try buffers.read(meanRest.constant, .meanRest, count: channels, elementSize: 8)
        try buffers.read(m2.constant, .m2, count: channels, elementSize: 8)
    }

    func requireWritable(
        _ argument: BatchNormError.Argument, channels: Int, _ buffers: inout BufferCheck
    ) throws(BatchNormError) {
        try requireChannels(mean.count, channels, argument)
        try buffers.write(mean, .mean, count: channels, elementSize: 8)
        try buffers.write(meanRest, .meanRest, count: channels, elementSize: 8)
        try buffers.write(m2, .m2, count: channels, elementSize: 8)
    }

    /// Throws unless they can be the moments of at least so many values. NaN is what the moments of NaN are.
    /// The buffers have been checked.
    func requireValid(
        _ argument: BatchNormError.Argument, least: Int
    ) throws(BatchNormError) {
        guard count >= least else {
            throw .momentsCount(argument, actual: count, expected: least)
        }
        guard count > 0, let m2 = m2.address?.assumingMemoryBound(to: Double.self) else { return }
        for channel in 0..<self.m2.count where m2[channel] < 0 {
            throw .momentsM2(argument, channel: channel, actual: m2[channel])
        }
    }

    fileprivate func copy(from other: MomentsView) {
        let bytes = other.mean.count &* 8
        guard bytes > 0, let mean = other.mean.address, let rest = other.meanRest.address,
            let m2 = other.m2.address
        else { return }
        self.mean.address?.copyMemory(from: mean, byteCount: bytes)
        meanRest.address?.copyMemory(from: rest, byteCount: bytes)
        self.m2.address?.copyMemory(from: m2, byteCount: bytes)
    }
}

/// Sums for backward in memory of the caller's: see bn_gradient_sums in batchnorm.h.
package struct GradientSumsView {
    package var count: Int
    package var dy: MutableView
    package var dyXmu: MutableView

    package init(count: Int, dy: MutableView, dyXmu: MutableView) {
        self.count = count
        self.dy = dy
        self.dyXmu = dyXmu
    }

    var arrays: bnk_gradient_sums {
        bnk_gradient_sums(
            count: Double(count), dy: dy.address?.assumingMemoryBound(to: Double.self),
            dy_xmu: dyXmu.address?.assumingMemoryBound(to: Double.self))
    }

    func requireReadable(
        channels: Int, _ buffers: inout BufferCheck
    ) throws(BatchNormError) {
        try requireChannels(dy.count, channels, .sums)
        try buffers.read(dy.constant, .sumDy, count: channels, elementSize: 8)
        try buffers.read(dyXmu.constant, .sumDyXmu, count: channels, elementSize: 8)
    }

    func requireWritable(
        channels: Int, _ buffers: inout BufferCheck
    ) throws(BatchNormError) {
        try requireChannels(dy.count, channels, .sums)
        try buffers.write(dy, .sumDy, count: channels, elementSize: 8)
        try buffers.write(dyXmu, .sumDyXmu, count: channels, elementSize: 8)
    }

    func requireValid(least: Int) throws(BatchNormError) {
        guard count >= least else { throw .momentsCount(.sums, actual: count, expected: least) }
    }
}

private func requireChannels(
    _ actual: Int, _ expected: Int, _ argument: BatchNormError.Argument
) throws(BatchNormError) {
    guard actual >= 0 else { throw .negativeCount(argument, actual: actual) }
    guard actual == expected else {
        throw .countMismatch(argument, actual: actual, expected: expected)
    }
}

extension MutableView {
    /// As float64 values.
    func zero() {
        address?.initializeMemory(as: UInt8.self, repeating: 0, count: count &* 8)
    }
}

/// See bn_moments_compute in batchnorm.h; returns the count.
package func computeMoments(
    _ scalar: ScalarType, _ shape: Shape, _ input: View, _ positions: Positions = Positions(),
    into moments: MomentsView
) throws(BatchNormError) -> Int {
    try shape.requireAddressable(scalar)
    var buffers = BufferCheck()
    try buffers.read(input, .input, count: shape.count, elementSize: scalar.size)
    try moments.requireWritable(.moments, channels: shape.channels, &buffers)
    try positions.validate(shape, &buffers)
    try buffers.requireSeparate()
    var memory = Memory()
    let mask = try positions.resolve(shape, memory: &memory)
    let count = shape.countTakingPart(mask)
    guard count > 0 else {
        moments.mean.zero()
        moments.meanRest.zero()
        moments.m2.zero()
        return 0
    }
    var arrays = moments.arrays
    try Kernels.moments(shape.grid(scalar), input, positions.kernel(mask), &arrays)
    return count
}

/// See bn_moments_merge in batchnorm.h; returns the count.
package func mergeMoments(
    _ other: MomentsView, into moments: MomentsView
) throws(BatchNormError) -> Int {
    let channels = moments.mean.count
    guard channels != 0 else { throw .noChannels }
    try requireAllocatable(channels, .moments)
    var buffers = BufferCheck()
    try moments.requireWritable(.moments, channels: channels, &buffers)
    try other.requireReadable(.other, channels: channels, &buffers)
    try buffers.requireSeparate()
    try moments.requireValid(.moments, least: 0)
    try other.requireValid(.other, least: 0)
    let (count, overflow) = moments.count.addingReportingOverflow(other.count)
    guard !overflow else {
        throw .momentsCountOverflow(actual: other.count, expected: .max &- moments.count)
    }
    guard other.count > 0 else { return count }
    guard moments.count > 0 else {
        moments.copy(from: other)
        return count
    }
    var all = moments.arrays
    var own = other.arrays
    bnk_merge_moments(&all, &own, Int64(channels))
    return count
}

/// See bn_moments_statistics in batchnorm.h.
package func momentsStatistics(
    _ moments: MomentsView, epsilon: Double, _ kind: RunningVariance, variance: MutableView,
    invstd: MutableView
) throws(BatchNormError) {
    let channels = moments.mean.count
    guard channels != 0 else { throw .noChannels }
    try requireAllocatable(channels, .moments)
    try requireEpsilon(epsilon)
    var buffers = BufferCheck()
    try moments.requireReadable(.moments, channels: channels, &buffers)
    try buffers.write(optional: variance, .variance, count: channels, elementSize: 8)
    try buffers.write(optional: invstd, .invstd, count: channels, elementSize: 8)
    try buffers.requireSeparate()
    let lost = kind == .unbiased && !variance.isAbsent ? 1 : 0
    try moments.requireValid(.moments, least: 1 + lost)
    var arrays = moments.arrays
    bnk_moments_statistics(
        &arrays, Int64(channels), Double(moments.count - lost), epsilon,
        variance.address?.assumingMemoryBound(to: Double.self),
        invstd.address?.assumingMemoryBound(to: Double.self))
}

/// So many channels that C float64 values are addressable, as `Shape` makes sure elsewhere; a negative number has
/// an error of its own.
func requireAllocatable(
    _ channels: Int, _ argument: BatchNormError.Argument
) throws(BatchNormError) {
    guard channels >= 0 else { throw .negativeCount(argument, actual: channels) }
    guard channels <= Int.max / 8 else {
        throw .sizeOverflow(Sizes(0, channels, rank: 2), elementSize: 8)
    }
}
