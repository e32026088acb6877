// Which positions take part in an operation, and what stands at the others.

import CBatchNormKernels

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

    /// In the words of a call.
    var kind: BatchNormCall.Mask? {
        if !lengths.isAbsent { return .lengths }
        return mask.isAbsent ? nil : .positions
    }

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

    /// In the kernels' words, with what `resolve` returned.
    func kernel(_ mask: UnsafePointer<UInt8>?) -> bnk_positions {
        bnk_positions(mask: mask, pass_masked: masked == .pass ? 1 : 0)
    }

    /// Of how many values moments or sums for a tensor must be: of none if it may be that none takes part.
    func leastCount(_ shape: Shape) -> Int { shape.isEmpty || !isAbsent ? 0 : 1 }
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
    func countTakingPart(_ mask: UnsafePointer<UInt8>?) -> Int {
        guard let mask, !isEmpty else { return valuesPerChannel }
        return Kernels.countTakingPart(mask, valuesPerChannel)
    }
}
