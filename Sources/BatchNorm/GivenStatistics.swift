// Statistics that an operation does not reduce itself: what the forward in inference normalizes by, and backward goes by.

import CBatchNormKernels

/// Where mean and invstd come from.
package enum GivenStatistics {
    /// float64 values that a forward saved. `rest` is what the mean lacks, or absent: float64 gradients lose digits without
    /// it where the mean is large beside the deviation.
    case saved(mean: View, invstd: View, rest: View)
    /// Running statistics, of the parameter type.
    case running(mean: View, variance: View, epsilon: Double)
    /// An empty batch's, where a layer has had no other.
    case nothing

    func requireEpsilon() throws(BatchNormError) {
        if case .running(_, _, let epsilon) = self { try BatchNorm.requireEpsilon(epsilon) }
    }

    /// Throws unless there is what has to be read, for the reduce part of backward the mean alone.
    func requireReadable(
        channels: Int, _ scalar: ScalarType, _ buffers: inout BufferCheck, meanOnly: Bool = false
    ) throws(BatchNormError) {
        switch self {
        case .saved(let mean, let invstd, let rest):
            try buffers.read(mean, .savedMean, count: channels, elementSize: 8)
            if !meanOnly { try buffers.read(invstd, .savedInvstd, count: channels, elementSize: 8) }
            try buffers.read(optional: rest, .savedMeanRest, count: channels, elementSize: 8)
        case .running(let mean, let variance, _):
            let size = scalar.parameter.size
            try buffers.read(mean, .runningMean, count: channels, elementSize: size)
            if !meanOnly { try buffers.read(variance, .runningVar, count: channels, elementSize: size) }
        case .nothing: break
        }
    }

    /// In the kernels' words.
    var kernel: bnk_statistics {
        var statistics = bnk_statistics()
        switch self {
        case .saved(let mean, let invstd, let rest):
            statistics.mean = mean.address?.assumingMemoryBound(to: Double.self)
            statistics.mean_rest = rest.address?.assumingMemoryBound(to: Double.self)
            statistics.invstd = invstd.address?.assumingMemoryBound(to: Double.self)
        case .running(let mean, let variance, let epsilon):
            statistics.running_mean = mean.address
            statistics.running_var = variance.address
            statistics.epsilon = epsilon
        case .nothing: break
        }
        return statistics
    }
}
