// What a layer keeps of its last forward: backward goes by it, and a recomputation must be the same call.

struct LastForward: ~Copyable {
    /// The call, but for its tensors.
    struct Call {
        var shape: Shape
        var outcome: ForwardTraining.Outcome
        var activation: Activation
        var hasResidual: Bool
        var isMasked: Bool
        var masked: MaskedOutput
    }

    private let channels: Int
    /// Mean, invstd and mean's rest: 3 * C float64 values, from the first forward with values on.
    private var arrays = Memory()
    /// Where there was an activation: one bit a value, whether that let pass.
    private var bits = Memory()
    /// Where positions were masked: one byte each.
    private var mask = Memory()
    private var last: Call?

    init(channels: Int) { self.channels = channels }

    /// The last call; throws if there was none.
    func call() throws(BatchNormError) -> Call {
        guard let last else { throw .noForward }
        return last
    }

    /// The last call; throws unless it was of this shape.
    func call(of shape: Shape) throws(BatchNormError) -> Call {
        let call = try call()
        guard shape == call.shape else { throw .shapeMismatch(actual: shape, expected: call.shape) }
        return call
    }

    // MARK: Statistics

    mutating func reserveStatistics() throws(BatchNormError) {
        guard arrays.address == nil else { return }
        try arrays.reserve(3 &* channels &* 8)
        arrays.address?.initializeMemory(as: Double.self, repeating: 0, count: 3 &* channels)
    }

    /// Absent until a forward had values.
    var mean: MutableView { array(0) }
    var invstd: MutableView { array(1) }
    var meanRest: MutableView { array(2) }

    private func array(_ index: Int) -> MutableView {
        guard let address = arrays.address else { return .absent }
        return MutableView(address + index &* channels &* 8, count: channels)
    }

    /// What the last forward normalized by.
    var statistics: GivenStatistics {
        guard arrays.address != nil else { return .nothing }
        return .saved(mean: mean.constant, invstd: invstd.constant, rest: meanRest.constant)
    }

    // MARK: Activation and positions

    /// Room for all that a forward with valid arguments leaves behind, and where its activation's bits go. The
    /// last forward's stay until it runs.
    mutating func makeRoom(
        for epilogue: inout ForwardEpilogue, _ positions: Positions, _ shape: Shape
    ) throws(BatchNormError) {
        epilogue.activationMask = .absent
        // At least a byte, so that those of an empty batch are there as well.
        if epilogue.activation != .none {
            try bits.grow(Activation.maskBytes(shape.count) &+ 1)
            epilogue.activationMask = bits(of: shape)
        }
        if !positions.isAbsent { try mask.grow(shape.valuesPerChannel &+ 1) }
    }

    private func bits(of shape: Shape) -> MutableView {
        MutableView(bits.address, count: Activation.maskBytes(shape.count))
    }

    /// Takes over what backward needs of a forward that has run.
    mutating func remember(
        _ shape: Shape, _ outcome: ForwardTraining.Outcome, _ epilogue: ForwardEpilogue, _ positions: Positions
    ) throws(BatchNormError) {
        try positions.store(shape, in: &mask)
        last = Call(
            shape: shape, outcome: outcome, activation: epilogue.activation,
            hasResidual: !epilogue.residual.isAbsent, isMasked: !positions.isAbsent,
            masked: positions.masked)
    }

    /// The way back through the call's epilogue.
    func epilogue(of call: Call) -> BackwardEpilogue {
        var epilogue = BackwardEpilogue()
        epilogue.activation = call.activation
        if call.activation != .none { epilogue.activationMask = bits(of: call.shape).constant }
        return epilogue
    }

    func positions(of call: Call) -> Positions {
        var positions = Positions()
        if call.isMasked { positions.mask = View(mask.address, count: call.shape.valuesPerChannel) }
        positions.masked = call.masked
        return positions
    }

    /// Throws unless these are the last forward's. If they are not, the caller means another forward than the last one:
    /// a layer that is used twice, say. Its statistics are gone. `memory` is for a mask made from lengths.
    func requireSame(
        _ epilogue: ForwardEpilogue, _ positions: Positions, _ shape: Shape, memory: inout Memory
    ) throws(BatchNormError) {
        let call = try call(of: shape)
        let slope = epilogue.activation.negativeSlope
        guard slope == call.activation.negativeSlope else {
            throw .recomputeMismatch(
                .activation, actual: .real(slope), expected: .real(call.activation.negativeSlope))
        }
        guard epilogue.residual.isAbsent != call.hasResidual else {
            throw .recomputeMismatch(
                .residual, actual: .integer(epilogue.residual.count),
                expected: .integer(call.hasResidual ? call.shape.count : 0))
        }
        guard call.isMasked || !positions.isAbsent, !call.shape.isEmpty else { return }
        let now = try positions.resolve(call.shape, memory: &memory)
        let before = call.isMasked ? mask.address?.assumingMemoryBound(to: UInt8.self) : nil
        var isMasked = false
        for position in 0..<call.shape.valuesPerChannel {
            let takesPart = now.map { $0[position] != 0 } ?? true
            guard takesPart == (before.map { $0[position] != 0 } ?? true) else {
                throw .recomputeMask(position: position, takesPart: takesPart)
            }
            isMasked = isMasked || !takesPart
        }
        guard !isMasked || positions.masked == call.masked else {
            throw .recomputeMismatch(
                .masked, actual: .integer(Int(positions.masked.rawValue)),
                expected: .integer(Int(call.masked.rawValue)))
        }
    }
}
