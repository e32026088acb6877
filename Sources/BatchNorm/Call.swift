// What a call moves over memory, told by its kind alone, without tensors. The plan that an operation runs by and the one
// that is explained both come of this: an operation's call is made of the arguments it has, an explained one of words.

/// The operations that can be explained. Raw values are those of the C header: pinned.
public enum BatchNormOperation: Int32, Sendable {
    /// Forward with the batch's statistics.
    case forwardTraining = 1
    /// Forward with running statistics.
    case forwardInference = 2
    /// Backward of a training forward.
    case backward = 3
    /// Backward through running statistics, which are constants.
    case backwardFrozen = 4
}

/// A call as `BatchNormalization.explain` is asked about it: an operation, and what is done in the same sweep over memory.
///
///     .forwardTraining(activation: .relu, residual: true)
///     .backward(activation: .relu, gradients: .input)
public struct BatchNormCall: Equatable, Sendable {
    /// How it is told which positions take part.
    public enum Mask: Sendable {
        /// By one byte a position.
        case positions
        /// By the number of steps of each sequence (N, C, L), of which the call makes the bytes.
        case lengths
    }

    /// The gradients that a backward can write, but for the residual's.
    public struct Gradients: OptionSet, Sendable {
        public let rawValue: Int32
        public init(rawValue: Int32) { self.rawValue = rawValue }

        /// With respect to the input.
        public static let input = Gradients(rawValue: 1)
        /// With respect to the weight.
        public static let weight = Gradients(rawValue: 2)
        /// With respect to the bias.
        public static let bias = Gradients(rawValue: 4)
        /// All three.
        public static let all: Gradients = [.input, .weight, .bias]
    }

    /// What is computed.
    public var operation: BatchNormOperation
    /// What a forward does to the values in the end, and a backward goes back through.
    public var activation = Activation.none
    /// Whether a forward adds a residual, or a backward writes the residual's gradient.
    public var hasResidual = false
    /// Whether a forward writes where its activation let values pass, one bit a value; and whether a backward knows it
    /// from there, instead of from the forward's output.
    public var hasActivationMask = false
    /// How it is told which positions take part; nil: all do.
    public var mask: Mask?
    /// What a backward writes. A forward does not look at it.
    public var gradients = Gradients.all

    /// The plain operation, with all three gradients.
    public init(_ operation: BatchNormOperation) { self.operation = operation }

    private init(
        _ operation: BatchNormOperation, _ activation: Activation, residual: Bool, bits: Bool, _ mask: Mask?,
        _ gradients: Gradients = .all
    ) {
        self.init(operation)
        self.activation = activation
        hasResidual = residual
        hasActivationMask = bits && activation != .none
        self.mask = mask
        self.gradients = gradients
    }

    /// As `BatchNormalization.forwardTraining` does it, which returns an activation's mask.
    public static func forwardTraining(
        activation: Activation = .none, residual: Bool = false, mask: Mask? = nil
    ) -> BatchNormCall {
        BatchNormCall(.forwardTraining, activation, residual: residual, bits: true, mask)
    }

    /// As `BatchNormalization.forwardInference` does it, which returns the output alone. (A layer in evaluation keeps an
    /// activation's mask as well: `hasActivationMask`.)
    public static func forwardInference(
        activation: Activation = .none, residual: Bool = false, mask: Mask? = nil
    ) -> BatchNormCall {
        BatchNormCall(.forwardInference, activation, residual: residual, bits: false, mask)
    }

    /// As `BatchNormalization.backward` does it after a training forward: by an activation's mask.
    public static func backward(
        activation: Activation = .none, residual: Bool = false, mask: Mask? = nil, gradients: Gradients = .all
    ) -> BatchNormCall {
        BatchNormCall(.backward, activation, residual: residual, bits: true, mask, gradients)
    }

    /// As `BatchNormalization.backward` does it through running statistics.
    public static func backwardFrozen(
        activation: Activation = .none, residual: Bool = false, mask: Mask? = nil, gradients: Gradients = .all
    ) -> BatchNormCall {
        BatchNormCall(.backwardFrozen, activation, residual: residual, bits: true, mask, gradients)
    }
}

extension BatchNormCall {
    /// A forward that has these arguments.
    init(_ operation: BatchNormOperation, _ epilogue: ForwardEpilogue, _ positions: Positions) {
        self.init(operation)
        activation = epilogue.activation
        hasResidual = !epilogue.residual.isAbsent
        hasActivationMask = !epilogue.activationMask.isAbsent
        mask = positions.kind
    }

    /// A backward that has these arguments.
    init(_ job: Backward) {
        self.init(job.statistics == .running ? .backwardFrozen : .backward)
        activation = job.epilogue.activation
        hasResidual = !job.epilogue.gradResidual.isAbsent
        hasActivationMask = !job.epilogue.activationMask.isAbsent
        mask = job.positions.kind
        if job.gradInput.isAbsent { gradients.remove(.input) }
        if job.gradWeight.isAbsent { gradients.remove(.weight) }
        if job.gradBias.isAbsent { gradients.remove(.bias) }
    }

    /// Throws what the operation would throw of its activation and its masks.
    func validate(_ shape: Shape, _ scalar: ScalarType) throws(BatchNormError) {
        try activation.validate(elementSize: scalar.size)
        if mask == .lengths, shape.rank != 3 { throw .lengthsRank(actual: shape.rank) }
    }
}

// MARK: - What is moved

/// Memory of the caller's that grows with the batch.
struct Operands: OptionSet {
    let rawValue: Int32

    static let input = Operands(rawValue: 1)
    static let output = Operands(rawValue: 2)
    static let residual = Operands(rawValue: 4)
    static let gradOutput = Operands(rawValue: 8)
    static let gradInput = Operands(rawValue: 16)
    static let gradResidual = Operands(rawValue: 32)
    private static let allTensors = Operands(rawValue: 63)

    /// A bit a value.
    static let activationMask = Operands(rawValue: 64)
    /// A byte a position.
    static let mask = Operands(rawValue: 128)
    /// A number a sample. The bytes made of them are workspace.
    static let lengths = Operands(rawValue: 256)
    static let allMasks: Operands = [.activationMask, .mask, .lengths]

    /// How many of them are tensors.
    var tensors: Int { intersection(.allTensors).rawValue.nonzeroBitCount }

    /// Their bytes, or the largest number there is: of tensors whose bytes just fit in 63 bits there may be several.
    func bytes(_ shape: Shape, _ scalar: ScalarType) -> Int {
        var bytes = product(shape.count &* scalar.size, tensors)
        if contains(.activationMask) { bytes = sum(bytes, Activation.maskBytes(shape.count)) }
        if contains(.mask) { bytes = sum(bytes, shape.valuesPerChannel) }
        if contains(.lengths) { bytes = sum(bytes, product(shape.batch, 8)) }
        return bytes
    }
}

/// The product, or the largest number there is.
private func product(_ a: Int, _ b: Int) -> Int {
    let (value, overflow) = a.multipliedReportingOverflow(by: b)
    return overflow ? .max : value
}

/// The sum, or the largest number there is.
func sum(_ a: Int, _ b: Int) -> Int {
    let (value, overflow) = a.addingReportingOverflow(b)
    return overflow ? .max : value
}

extension BatchNormCall {
    /// The same without activation and residual.
    var unfused: BatchNormCall {
        var plain = self
        plain.activation = .none
        plain.hasResidual = false
        plain.hasActivationMask = false
        return plain
    }

    var isForward: Bool { operation == .forwardTraining || operation == .forwardInference }

    /// Whether sums over the batch are formed,
    var reduces: Bool {
        switch operation {
        case .forwardTraining: true
        case .forwardInference: false
        case .backward: !gradients.isEmpty
        case .backwardFrozen: gradients.contains(.weight) || gradients.contains(.bias)
        }
    }

    /// and whether anything is done to every value.
    var applies: Bool { isForward || hasResidual || gradients.contains(.input) }

    /// What is read to form the sums,
    var readToReduce: Operands {
        guard reduces else { return [] }
        return isForward ? [.input, positions] : [.input, .gradOutput, gate, positions]
    }

    /// and what to apply them. Constant statistics leave the input out of its own gradient.
    var readToApply: Operands {
        guard applies else { return [] }
        switch operation {
        case .forwardTraining, .forwardInference: return [.input, residual(.residual), positions]
        case .backward: return [.input, .gradOutput, gate, positions]
        case .backwardFrozen: return [.gradOutput, gate, positions]
        }
    }

    var written: Operands {
        guard !isForward else { return hasActivationMask ? [.output, .activationMask] : .output }
        return gradients.contains(.input) ? [.gradInput, residual(.gradResidual)] : residual(.gradResidual)
    }

    /// What no implementation can do without: the bias's gradient alone needs no input.
    var needed: Operands {
        let all = readToReduce.union(readToApply)
        guard !isForward else { return all }
        let needsInput = gradients.contains(.weight) || operation == .backward && gradients.contains(.input)
        return needsInput ? all : all.subtracting(.input)
    }

    /// How many tensors are moved.
    var tensors: Int { readToReduce.union(readToApply).union(written).tensors }

    /// What tells a backward where the activation let values pass.
    var gate: Operands {
        if activation.isIdentity { return [] }
        return hasActivationMask ? .activationMask : .output
    }

    private var positions: Operands {
        switch mask {
        case nil: []
        case .positions: .mask
        case .lengths: .lengths
        }
    }

    private func residual(_ operand: Operands) -> Operands { hasResidual ? operand : [] }
}
