// The element types of tensors, parameters and running statistics.

/// The element types that the library knows, for code that chooses one at run time.
public enum ScalarType: Int32, Sendable {
    /// IEEE 754 binary32, Swift's `Float`.
    case float32 = 1
    /// IEEE 754 binary64, Swift's `Double`.
    case float64 = 2
    /// The upper half of a binary32.
    case bfloat16 = 3
    /// IEEE 754 binary16, Swift's `Float16`.
    case float16 = 4

    package var size: Int {
        switch self {
        case .bfloat16, .float16: 2
        case .float32: 4
        case .float64: 8
        }
    }

    /// The type of weight, bias, running statistics and their gradients, and of computing: half types are for tensors.
    package var parameter: ScalarType { self == .float64 ? .float64 : .float32 }
}

/// A type that tensors can hold: `Float`, `Double`, ``BFloat16`` or `Float16`.
///
/// Do not conform other types to it: the kernels read memory as what `scalarType` says.
public protocol BatchNormScalar: Comparable, ExpressibleByIntegerLiteral, BitwiseCopyable, Sendable {
    /// The type of weight, bias, running statistics and their gradients: `Double` of `Double`, else `Float`.
    associatedtype Parameter: BatchNormParameter
    /// Which of the library's element types this is.
    static var scalarType: ScalarType { get }
}

/// A type that parameters can have: `Float` or `Double`, whose tensors have parameters of their own type.
public protocol BatchNormParameter: BatchNormScalar, BinaryFloatingPoint where Parameter == Self {}

extension Float: BatchNormParameter {
    public typealias Parameter = Float
    public static var scalarType: ScalarType { .float32 }
}

extension Double: BatchNormParameter {
    public typealias Parameter = Double
    public static var scalarType: ScalarType { .float64 }
}

extension Float16: BatchNormScalar {
    public typealias Parameter = Float
    public static var scalarType: ScalarType { .float16 }
}

extension BFloat16: BatchNormScalar {
    public typealias Parameter = Float
    public static var scalarType: ScalarType { .bfloat16 }
}
