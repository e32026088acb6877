// Folding: a normalization by running statistics is one affine map per channel, and an affine map behind a
// convolution or a linear layer is another convolution or linear layer. It is done once, before a network is shipped,
// so everything here is plain loops: formed in float64 from the values given, rounded once.

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

    func validate() throws(BatchNormError) {
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
