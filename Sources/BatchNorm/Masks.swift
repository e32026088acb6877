// The two masks as values: which positions take part, and where an activation let values pass. Arrays own the bytes; the
// core sees views of them.

/// Which positions of a tensor take part in batch normalization, and what stands at the others in an output.
///
///     let mask = PositionMask.lengths([12, 7, 30])               // of three sequences
///     let output = try layer.forward(batch, mask: mask)
///
/// Positions that do not take part are in no mean, variance or gradient, whatever stands there, NaN included, and the
/// number of values per channel does not count them. If none takes part, a forward succeeds and updates no statistics.
public struct PositionMask: Equatable, Sendable {
    /// How the mask says it.
    public enum Content: Equatable, Sendable {
        /// One for each of the N * S positions in the order (n, spatial...), whatever the layout: whether it takes part.
        case positions([Bool])
        /// For sequences (N, C, L): how many of its L steps take part, for each of the N.
        case lengths([Int])
    }

    /// Which positions take part.
    public var content: Content
    /// What stands at the others, in an output and in the gradient with respect to the input.
    public var masked: MaskedOutput

    /// A mask of this content.
    public init(_ content: Content, masked: MaskedOutput = .zero) {
        self.content = content
        self.masked = masked
    }

    /// A mask that says of each of the N * S positions, in the order (n, spatial...), whether it takes part.
    public static func positions(
        _ takePart: [Bool], masked: MaskedOutput = .zero
    ) -> PositionMask {
        PositionMask(.positions(takePart), masked: masked)
    }

    /// A mask that says of each of N sequences how many steps take part.
    public static func lengths(_ lengths: [Int], masked: MaskedOutput = .zero) -> PositionMask {
        PositionMask(.lengths(lengths), masked: masked)
    }
}

/// Where a forward's activation let values pass: what backward needs to know of it, one bit a value.
public struct ActivationMask: Equatable, Sendable {
    /// The activation.
    public let activation: Activation
    /// The number of values.
    public let count: Int
    /// Bit `i % 8` (`1 << (i % 8)`) of byte `i / 8` tells whether value `i`, in the order of memory, is not ≤ 0 in the
    /// output.
    public private(set) var bytes: [UInt8]

    /// The mask that belongs to an output of this activation, for forwards that return none (inference).
    ///
    ///     saved.activationMask = try ActivationMask(.relu, output: output)
    ///
    /// - Throws: `.negativeSlope` or `.outOfMemory`.
    public init<Scalar: BatchNormScalar>(
        _ activation: Activation, output: Tensor<Scalar>
    ) throws(BatchNormError) {
        try activation.validate(elementSize: Scalar.scalarType.size)
        try self.init(activation, count: output.shape.count)
        let values = output.elements.span
        for index in 0..<count where !(values[index] <= 0) {
            bytes[index / 8] |= 1 << UInt8(index % 8)
        }
    }

    /// One that has let nothing pass.
    init(_ activation: Activation, count: Int) throws(BatchNormError) {
        self.activation = activation
        self.count = count
        self.bytes = try Array(allocating: Activation.maskBytes(count), of: 0)
    }

    /// Whether the activation let value `index`, in the order of memory, pass.
    ///
    /// - Precondition: `index` is from 0 to below `count`; others trap, as an Array's do.
    public subscript(index: Int) -> Bool {
        precondition(0..<count ~= index, "ActivationMask: index out of range")
        return bytes[index / 8] & 1 << UInt8(index % 8) != 0
    }

    /// Lends the bytes to a call that writes them.
    mutating func withView<Result, Failure: Error>(
        _ body: (MutableView) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        try bytes.withUnsafeMutableBufferPointer { (bytes) throws(Failure) in
            try body(MutableView(bytes))
        }
    }
}
