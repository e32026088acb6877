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

    /// A tensor of zeros. Throws as `init(repeating:shape:)`.
    public static func zeros(_ shape: Shape) throws(BatchNormError) -> Tensor {
        try Tensor(repeating: 0, shape: shape)
    }

    /// The number of elements.
    public var count: Int { elements.count }

    /// The element at these logical indices (N, C, then the spatial ones), whatever the layout. It is a mistake in the
    /// program, which stops there, if there are not `shape.rank` of them or if one is out of range.
    public subscript(indices: Int...) -> Scalar {
        get { elements[offset(of: indices)] }
        set { elements[offset(of: indices)] = newValue }
    }

    private func offset(of indices: [Int]) -> Int {
        precondition(indices.count == shape.rank, "a tensor takes one index for each of its sizes")
        var offset = indices[0]
        precondition((0..<shape.batch).contains(offset), "an index is out of range")
        func step(into axis: Int) {
            precondition((0..<shape.sizes[axis]).contains(indices[axis]), "an index is out of range")
            offset = offset * shape.sizes[axis] + indices[axis]
        }
        if shape.layout == .nchw { step(into: 1) }
        for axis in 2..<shape.rank { step(into: axis) }
        if shape.layout == .nhwc { step(into: 1) }
        return offset
    }

    /// The tensor of the same shape whose elements are what `transform` makes of this one's.
    public func map<Result, Failure: Error>(
        _ transform: (Scalar) throws(Failure) -> Result
    ) throws(Failure) -> Tensor<Result> {
        Tensor<Result>(mapped: try elements.map(transform), shape: shape)
    }

    /// Of as many elements as the shape has.
    private init(mapped elements: [Scalar], shape: Shape) {
        self.shape = shape
        self.elements = elements
    }

    /// The elements in memory order, to be read.
    public var span: Span<Scalar> {
        @_lifetime(borrow self) get { elements.span }
    }

    /// The elements in memory order, to be changed in place.
    public var mutableSpan: MutableSpan<Scalar> {
        @_lifetime(&self) mutating get { elements.mutableSpan }
    }
}
