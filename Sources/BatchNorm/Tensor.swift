// A dense tensor with value semantics: an array that knows its shape.

/// Elements in memory order together with their shape.
///
///     let images = try Tensor<Float>(pixels, shape: .nchw(32, 3, 28, 28))
///
/// A tensor is a value: copies are independent, and share memory until one of them is written. To work on
/// memory of your own without copying, use the functions that take a `Span` and a `Shape`.
public struct Tensor<Scalar: BatchNormScalar>: Equatable, Sendable {
    /// The sizes and the memory layout.
    public let shape: Shape
    /// The elements in memory order; as many as `shape.count`.
    public private(set) var elements: [Scalar]

    /// A tensor of these elements, in the memory order that `shape.layout` says.
    ///
    /// - Throws: `BatchNormError.countMismatch` if there are not `shape.count` of them.
    public init(_ elements: [Scalar], shape: Shape) throws(BatchNormError) {
        guard elements.count == shape.count else {
            throw .countMismatch(.input, actual: elements.count, expected: shape.count)
        }
        self.shape = shape
        self.elements = elements
    }

    /// A tensor of equal elements.
    ///
    /// - Throws: `BatchNormError.sizeOverflow` if it is larger than an address can count, `.outOfMemory` if there is no
    ///   memory for it.
    public init(repeating element: Scalar, shape: Shape) throws(BatchNormError) {
        try shape.requireAddressable(Scalar.scalarType)
        self.shape = shape
        self.elements = try Array(allocating: shape.count, of: element)
    }

    /// Lends the elements to `body`, which may change them in place. To read them, use `elements.span`.
    public mutating func withMutableSpan<Result, Failure: Error>(
        _ body: (inout MutableSpan<Scalar>) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        var span = elements.mutableSpan
        return try body(&span)
    }
}
