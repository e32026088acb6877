// What a call may ask for beyond batch normalization itself: an activation and a residual in the same sweep over
// memory, and positions that take no part. Shared by all operations.

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

/// What stands at masked positions of an output, and of a gradient with respect to the input.
public enum MaskedOutput: Int32, Sendable {
    /// Zero.
    case zero = 0
    /// The input as it is; in a gradient the output's gradient as it is.
    case pass = 1
}

/// Which positions of a tensor take part.
package struct Positions {
    /// One byte for each of the N * S positions, 0 for masked.
    package var mask = View.absent
    /// The number of steps that take part, for each of N sequences.
    package var lengths = View.absent
    package var masked = MaskedOutput.zero

    package init() {}

    var isAbsent: Bool { mask.isAbsent && lengths.isAbsent }

    func validate(
        _ shape: Shape, _ buffers: inout BufferCheck
    ) throws(BatchNormError) {
        guard !isAbsent else { return }
        guard mask.isAbsent || lengths.isAbsent else { throw .exclusive(.mask, .lengths) }
        try buffers.read(
            optional: mask, .mask, count: shape.valuesPerChannel, elementSize: 1)
        guard !lengths.isAbsent else { return }
        guard shape.rank == 3 else { throw .lengthsRank(actual: shape.rank) }
        try buffers.read(lengths, .lengths, count: shape.batch, elementSize: 8)
        for sample in 0..<shape.batch {
            let length = length(of: sample)
            guard 0...shape.sizes[2] ~= length else {
                throw .length(sample: sample, actual: length, limit: shape.sizes[2])
            }
        }
    }

    private func length(of sample: Int) -> Int {
        guard let lengths = lengths.address else { return 0 }
        return Int(lengths.load(fromByteOffset: sample &* 8, as: Int64.self))
    }

    /// The mask, made from the lengths in `memory` if there are these instead; nil: all positions take part.
    func resolve(
        _ shape: Shape, memory: inout Memory
    ) throws(BatchNormError) -> UnsafePointer<UInt8>? {
        guard !lengths.isAbsent, !shape.isEmpty else {
            return mask.address?.assumingMemoryBound(to: UInt8.self)
        }
        let steps = shape.sizes[2]
        try memory.reserve(shape.batch &* steps)
        guard let bytes = memory.address?.assumingMemoryBound(to: UInt8.self) else { return nil }
        for sample in 0..<shape.batch {
            let length = length(of: sample)
            let row = bytes + sample &* steps
            row.update(repeating: 1, count: length)
            (row + length).update(repeating: 0, count: steps &- length)
        }
        return UnsafePointer(bytes)
    }

    /// Puts the mask into `memory`, which has room for N * S bytes.
    func store(
        _ shape: Shape, in memory: inout Memory
    ) throws(BatchNormError) {
        guard let bytes = try resolve(shape, memory: &memory), let own = memory.address,
            UnsafeRawPointer(bytes) != UnsafeRawPointer(own)
        else { return }
        own.copyMemory(from: bytes, byteCount: shape.valuesPerChannel)
    }
}

/// output = activation(batch normalization + residual), at the positions that take part.
package struct ForwardExtras {
    package var activation = Activation.none
    package var residual = View.absent
    /// One bit a value: whether the output is not ≤ 0.
    package var activationMask = MutableView.absent
    package var positions = Positions()

    package init() {}

    func validate(
        _ shape: Shape, elementSize: Int, _ buffers: inout BufferCheck
    ) throws(BatchNormError) {
        try activation.validate(elementSize: elementSize)
        try buffers.read(
            optional: residual, .residual, count: shape.count, elementSize: elementSize)
        try buffers.write(
            optional: activationMask, .activationMask, count: Activation.maskBytes(shape.count),
            elementSize: 1)
        try positions.validate(shape, &buffers)
    }

    var isPlain: Bool {
        activation == .none && residual.isAbsent && activationMask.isAbsent && positions.isAbsent
    }

    /// How many tensors more than without them a call moves.
    var tensors: Int { residual.isAbsent ? 0 : 1 }

    func kernels(_ keep: UnsafePointer<UInt8>?) -> bnk_extras {
        var extras = bnk_extras()
        extras.activation = activation.kernel
        extras.residual = residual.address
        extras.written_activation_mask = activationMask.address?.assumingMemoryBound(to: UInt8.self)
        extras.positions = keep
        extras.pass_masked = positions.masked == .pass ? 1 : 0
        return extras
    }
}

/// The way back through `ForwardExtras`.
package struct BackwardExtras {
    package var activation = Activation.none
    /// What the forward wrote; or
    package var activationMask = View.absent
    /// the forward's output.
    package var output = View.absent
    package var gradResidual = MutableView.absent
    package var positions = Positions()

    package init() {}

    func validate(
        _ shape: Shape, elementSize: Int, _ buffers: inout BufferCheck
    ) throws(BatchNormError) {
        try activation.validate(elementSize: elementSize)
        if activation != .none {
            // Of an empty batch both have no bytes, and may be absent.
            if activationMask.isAbsent, output.isAbsent, !shape.isEmpty {
                throw .missingBoth(.activationMask, .output)
            }
            try buffers.read(
                optional: activationMask, .activationMask,
                count: Activation.maskBytes(shape.count), elementSize: 1)
            try buffers.read(
                optional: output, .output, count: shape.count, elementSize: elementSize)
        }
        try buffers.write(
            optional: gradResidual, .gradResidual, count: shape.count, elementSize: elementSize)
        try positions.validate(shape, &buffers)
    }

    var isPlain: Bool {
        activation == .none && gradResidual.isAbsent && positions.isAbsent
    }

    /// How many tensors more than without them a call moves.
    var tensors: Int {
        (gradResidual.isAbsent ? 0 : 1)
            &+ (activation != .none && activationMask.isAbsent ? 1 : 0)
    }

    func kernels(_ keep: UnsafePointer<UInt8>?) -> bnk_extras {
        var extras = bnk_extras()
        extras.activation = activation.kernel
        extras.activation_mask = activationMask.address?.assumingMemoryBound(to: UInt8.self)
        extras.output = output.address
        extras.grad_residual = gradResidual.address
        extras.positions = keep
        extras.pass_masked = positions.masked == .pass ? 1 : 0
        return extras
    }
}

extension MutableView {
    /// As an output of which all positions are masked.
    func fillMasked(_ masked: MaskedOutput, from input: View, _ scalar: ScalarType) {
        guard let address else { return }
        let bytes = count &* scalar.size
        switch masked {
        case .zero: address.initializeMemory(as: UInt8.self, repeating: 0, count: bytes)
        case .pass:
            guard let from = input.address, from != UnsafeRawPointer(address) else { return }
            address.copyMemory(from: from, byteCount: bytes)
        }
    }

    /// As mask bits of which none is set.
    func clear() { address?.initializeMemory(as: UInt8.self, repeating: 0, count: count) }
}

extension Shape {
    /// M: the values of each channel that take part.
    func keptPerChannel(_ keep: UnsafePointer<UInt8>?) -> Int {
        guard let keep, !isEmpty else { return valuesPerChannel }
        return Kernels.countKept(keep, valuesPerChannel)
    }
}

extension Positions {
    /// Of how many values moments or sums for a tensor must be: of none if it may be that none takes part.
    func leastCount(_ shape: Shape) -> Int { shape.isEmpty || !isAbsent ? 0 : 1 }
}

/// Memory of a call that may serve the next one again.
struct Workspace: ~Copyable {
    /// What the kernels need.
    var kernels = Memory()
    /// A mask made from lengths.
    var mask = Memory()
}
