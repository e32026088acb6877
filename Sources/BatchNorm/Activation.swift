// The activations that an operation can apply in its own sweep over memory.

import CBatchNormKernels

/// What is done to a value after batch normalization, and after the residual if there is one.
///
/// NaN stays NaN. Whether a value was let pass can be told from the sign of the output, which is all that backward needs
/// to know.
public enum Activation: Equatable, Sendable {
    /// Nothing.
    case none
    /// Values ≤ 0 become 0.
    case relu
    /// Values ≤ 0 are multiplied by the slope, which is at least 0, and finite in the type that is computed with.
    case leakyReLU(negativeSlope: Double)

    /// What values ≤ 0 are multiplied with.
    var negativeSlope: Double {
        switch self {
        case .none: 1
        case .relu: 0
        case .leakyReLU(let slope): slope
        }
    }

    /// What the kernels are told. A slope of 1 changes nothing.
    var kernel: bnk_activation {
        switch self {
        case .none, .leakyReLU(1): bnk_activation()
        case .relu: bnk_activation(kind: Int32(BNK_ACTIVATION_RELU), slope: 0)
        case .leakyReLU(let slope):
            bnk_activation(kind: Int32(BNK_ACTIVATION_LEAKY_RELU), slope: slope)
        }
    }

    /// The number of bytes that hold one bit for each of so many values.
    package static func maskBytes(_ count: Int) -> Int { count / 8 &+ (count % 8 == 0 ? 0 : 1) }

    /// Throws unless the slope is one in the type that elements of this size are computed with.
    func validate(elementSize: Int) throws(BatchNormError) {
        guard case .leakyReLU(let slope) = self else { return }
        let isFinite = elementSize == 8 ? slope.isFinite : Float(slope).isFinite
        guard isFinite, slope >= 0 else { throw .negativeSlope(actual: slope) }
    }
}
