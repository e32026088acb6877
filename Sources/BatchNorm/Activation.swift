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

    /// What the library knows of an activation.
    private struct Row {
        /// The kind's number: bn_activation_kind in batchnorm.h, and the kernels'.
        let kind: Int
        /// As texts call it.
        let name: StaticString
        /// What values ≤ 0 are multiplied with.
        let negativeSlope: Double
        /// Whether that is a number of the caller's.
        var takesSlope = false
    }

    private var row: Row {
        switch self {
        case .none: Row(kind: BNK_ACTIVATION_NONE, name: "none", negativeSlope: 1)
        case .relu: Row(kind: BNK_ACTIVATION_RELU, name: "ReLU", negativeSlope: 0)
        case .leakyReLU(let slope):
            Row(kind: BNK_ACTIVATION_LEAKY_RELU, name: "leaky ReLU", negativeSlope: slope, takesSlope: true)
        }
    }

    /// The activation of that kind, which has no other numbers than it takes.
    package init(kind: Int, slope: Double) throws(BatchNormError) {
        switch kind {
        case BNK_ACTIVATION_NONE: self = .none
        case BNK_ACTIVATION_RELU: self = .relu
        case BNK_ACTIVATION_LEAKY_RELU: self = .leakyReLU(negativeSlope: slope)
        default: throw .invalidOption(.activation, actual: kind)
        }
        guard row.takesSlope || slope == 0 else { throw .unusedNumber(.slope, actual: slope) }
    }

    /// As texts call it.
    var name: StaticString { row.name }

    /// What values ≤ 0 are multiplied with.
    var negativeSlope: Double { row.negativeSlope }

    /// Whether that is a number of the caller's.
    var takesSlope: Bool { row.takesSlope }

    /// Whether no value is changed: a slope of 1 does nothing.
    var isIdentity: Bool { negativeSlope == 1 }

    /// What the kernels are told.
    var kernel: bnk_activation {
        isIdentity ? bnk_activation() : bnk_activation(kind: Int32(row.kind), slope: negativeSlope)
    }

    /// Throws unless the slope is one in the type that elements of this size are computed with.
    func validate(elementSize: Int) throws(BatchNormError) {
        let isFinite = elementSize == 8 ? negativeSlope.isFinite : Float(negativeSlope).isFinite
        guard isFinite, negativeSlope >= 0 else { throw .negativeSlope(actual: negativeSlope) }
    }

    /// The number of bytes that hold one bit for each of so many values.
    package static func maskBytes(_ count: Int) -> Int { count / 8 &+ (count % 8 == 0 ? 0 : 1) }
}
