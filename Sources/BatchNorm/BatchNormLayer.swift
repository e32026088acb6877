// The layer that programs use: a typed face of LayerCore, without pointers.

/// A batch normalization layer that keeps parameters, running statistics and mode, as `torch.nn.BatchNorm2d` does.
///
///     let layer = try BatchNormLayer<Float>(numFeatures: 64)
///     let activations = try layer.forward(images)
///     let gradients = try layer.backward(images, gradOutput: upstream)
///     layer.isTraining = false
///     let prediction = try layer.forward(image)
///
/// A new layer is in training mode; its weight is 1, bias 0, running mean 0, running variance 1, counters 0. One layer
/// serves tensors of every rank, layout and batch size with its number of channels. Once its memory has grown to a
/// batch's size, the span functions allocate nothing.
///
/// The layer is a reference and **not `Sendable`**: it serves one thread at a time. It holds no reference to anything
/// outside, so a layer that nobody else refers to may be sent to another task or actor (region isolation).
public final class BatchNormLayer<Scalar: BatchNormScalar> {
    private let owned: LayerCore
    /// Whether a closure has the weight, or the bias.
    private var isWeightLent = false
    private var isBiasLent = false

    /// What parameters are read or written through: nobody else may have one of them at the same time.
    func core() throws(BatchNormError) -> LayerCore {
        guard !isWeightLent else { throw .lent(.weight) }
        guard !isBiasLent else { throw .lent(.bias) }
        return owned
    }

    /// A new layer.
    ///
    /// - Throws: `.noChannels`, `.negativeCount`, `.sizeOverflow`, `.epsilon`, `.momentum` or `.outOfMemory`.
    public init(_ options: LayerOptions) throws(BatchNormError) {
        owned = try LayerCore(scalar: Scalar.scalarType, options: options)
    }

    /// A new layer for so many channels, with PyTorch's defaults but for those that are given.
    ///
    /// - Throws: As `init(_:)`.
    public convenience init(
        numFeatures: Int, epsilon: Double = 1e-5, momentum: Double = 0.1, averaging: Averaging = .exponential,
        hasWeight: Bool = true, hasBias: Bool = true, trackRunningStats: Bool = true
    ) throws(BatchNormError) {
        try self.init(
            LayerOptions(
                numFeatures: numFeatures,
                training: TrainingOptions(epsilon: epsilon, momentum: momentum, averaging: averaging),
                hasWeight: hasWeight, hasBias: hasBias, trackRunningStats: trackRunningStats))
    }

    /// What the layer was made from, but for what was set since.
    public var options: LayerOptions { owned.options }

    /// Sets what is added to the variance from the next forward on; backward goes by what the last one used.
    ///
    /// - Throws: `.epsilon` if it is negative, infinite or NaN.
    public func setEpsilon(_ epsilon: Double) throws(BatchNormError) {
        try owned.setEpsilon(epsilon)
    }

    /// Sets the weight of a new batch in the running statistics from the next forward on. `.cumulative`: the plain mean of
    /// all batches, whatever the momentum.
    ///
    /// - Throws: `.momentum` if it is infinite or NaN, and counts.
    public func setMomentum(
        _ momentum: Double, averaging: Averaging = .exponential
    ) throws(BatchNormError) {
        try owned.setMomentum(momentum, averaging)
    }

    /// Whether `forward` trains (normalizes by the batch and takes it into the running statistics) or evaluates
    /// (normalizes by the running statistics). True at first.
    public var isTraining: Bool {
        get { owned.isTraining }
        set { owned.isTraining = newValue }
    }

    // MARK: Forward and backward

    /// Forward in the layer's mode: `activation(batch normalization of input + residual)`. In evaluation a layer without
    /// running statistics uses the batch's.
    ///
    /// - Parameters:
    ///   - input: The batch.
    ///   - activation: What is done to the values in the end.
    ///   - residual: Added before the activation; of the input's shape.
    ///   - mask: Which positions take part; nil means all.
    ///   - pass: Other than by the mode. `.recompute` gives the last forward's output to the bit, if all else is as it was.
    /// - Throws: For `.recompute` also `.noForward`; `.shapeMismatch`, `.recomputeMismatch` or `.recomputeMask` for another
    ///   shape, activation or mask than the last forward's, or a residual where that had none.
    public func forward(
        _ input: Tensor<Scalar>, activation: Activation = .none, residual: Tensor<Scalar>? = nil,
        mask: PositionMask? = nil, pass: ForwardPass = .normal
    ) throws(BatchNormError) -> Tensor<Scalar> {
        try residual?.requireResidual(of: input)
        var output = try Tensor<Scalar>(repeating: 0, shape: input.shape)
        try forward(
            input: input.span, shape: input.shape, output: output.mutableSpan,
            activation: activation, residual: residual?.span, mask: mask, pass: pass)
        return output
    }

    /// `forward` of these arguments, so that `layer(input)` reads as in PyTorch.
    public func callAsFunction(
        _ input: Tensor<Scalar>, activation: Activation = .none, residual: Tensor<Scalar>? = nil,
        mask: PositionMask? = nil, pass: ForwardPass = .normal
    ) throws(BatchNormError) -> Tensor<Scalar> {
        try forward(input, activation: activation, residual: residual, mask: mask, pass: pass)
    }

    /// As the function on tensors, from memory of yours into memory of yours: `shape.count` elements each.
    public func forward(
        input: Span<Scalar>, shape: Shape, output: consuming MutableSpan<Scalar>,
        activation: Activation = .none, residual: Span<Scalar>? = nil, mask: PositionMask? = nil,
        pass: ForwardPass = .normal
    ) throws(BatchNormError) {
        defer { withExtendedLifetime(mask) {} }
        try core().forward(
            Scalar.scalarType, shape, pass: pass, input: View(input), output: MutableView(output),
            epilogue: ForwardEpilogue(activation, residual), positions: Positions(mask))
    }

    /// As the function on tensors, in place. The input is lost; keep a copy if there will be a backward.
    public func forward(
        inPlace elements: consuming MutableSpan<Scalar>, shape: Shape, activation: Activation = .none,
        residual: Span<Scalar>? = nil, mask: PositionMask? = nil, pass: ForwardPass = .normal
    ) throws(BatchNormError) {
        defer { withExtendedLifetime(mask) {} }
        let view = MutableView(elements)
        try core().forward(
            Scalar.scalarType, shape, pass: pass, input: view.constant, output: view,
            epilogue: ForwardEpilogue(activation, residual), positions: Positions(mask))
    }

    /// Backward of the last forward, with the statistics which that one used, back through its activation and with the
    /// gradient of its residual. May be called more than once; the layer has kept all it needs but the input.
    ///
    /// - Parameters:
    ///   - input: The last forward's input.
    ///   - gradOutput: The gradient with respect to its output, of the same shape.
    /// - Throws: `.noForward`, or `.shapeMismatch` for another shape than the last forward's.
    public func backward(
        _ input: Tensor<Scalar>, gradOutput: Tensor<Scalar>
    ) throws(BatchNormError) -> Gradients<Scalar> {
        guard gradOutput.shape == input.shape else {
            throw .shapeMismatch(actual: gradOutput.shape, expected: input.shape)
        }
        return try Gradients(shape: input.shape, hasResidual: owned.hadResidual) {
            (gradInput, gradWeight, gradBias, gradResidual) throws(BatchNormError) in
            try backward(
                input: input.span, gradOutput: gradOutput.span, shape: input.shape,
                gradInput: gradInput, gradWeight: gradWeight,
                gradBias: gradBias, gradResidual: gradResidual)
        }
    }

    /// As `backward(_:gradOutput:)`, from memory of yours into memory of yours. Gradients are written, not added. One
    /// that is left out is not computed.
    public func backward(
        input: Span<Scalar>, gradOutput: Span<Scalar>, shape: Shape,
        gradInput: consuming MutableSpan<Scalar>? = nil, gradWeight: consuming MutableSpan<Scalar.Parameter>? = nil,
        gradBias: consuming MutableSpan<Scalar.Parameter>? = nil, gradResidual: consuming MutableSpan<Scalar>? = nil
    ) throws(BatchNormError) {
        try core().backward(
            Scalar.scalarType, shape, input: View(input), gradOutput: View(gradOutput),
            gradInput: MutableView(gradInput),
            gradWeight: MutableView(gradWeight),
            gradBias: MutableView(gradBias),
            gradResidual: MutableView(gradResidual))
    }

    /// Mean and invstd that the last forward normalized with, and which statistics these were.
    ///
    /// After an empty batch in training, mean and invstd are those of the forward before it, or 0.
    ///
    /// - Throws: `.noForward` before the first forward.
    public func savedStatistics() throws(BatchNormError) -> SavedStatistics {
        let outcome = try owned.outcome()
        var saved = try SavedStatistics(
            channels: options.numFeatures, statistics: outcome.statistics)
        saved.nonfiniteChannels = outcome.nonfiniteChannels
        saved.nonfiniteRunningChannels = outcome.nonfiniteRunningChannels
        try saved.withViews { (mean, invstd, rest) throws(BatchNormError) in
            try owned.getSaved(.savedMean, into: mean)
            try owned.getSaved(.savedInvstd, into: invstd)
            try owned.getSaved(.savedMeanRest, into: rest)
        }
        return saved
    }

    // MARK: Parameters and running statistics

    /// A copy of the weight (γ), one per channel; nil if the layer has none.
    ///
    /// - Throws: `.outOfMemory`, as all four; `.lent` inside a closure that changes it.
    public var weight: [Scalar.Parameter]? {
        get throws(BatchNormError) {
            guard !isWeightLent else { throw .lent(.weight) }
            return try copy(of: owned.weight)
        }
    }
    /// A copy of the bias (β), one per channel; nil if the layer has none.
    ///
    /// - Throws: As `weight`.
    public var bias: [Scalar.Parameter]? {
        get throws(BatchNormError) {
            guard !isBiasLent else { throw .lent(.bias) }
            return try copy(of: owned.bias)
        }
    }
    /// A copy of the running mean, one per channel; nil if the layer keeps none.
    public var runningMean: [Scalar.Parameter]? {
        get throws(BatchNormError) { try copy(of: owned.runningMean) }
    }
    /// A copy of the running variance, one per channel; nil if the layer keeps none.
    public var runningVar: [Scalar.Parameter]? {
        get throws(BatchNormError) { try copy(of: owned.runningVar) }
    }
    /// How many batches the running statistics have taken in; nil if the layer keeps none.
    public var numBatchesTracked: Int? {
        options.trackRunningStats ? Int(owned.batches) : nil
    }
    /// Of these batches, how many each channel's running mean has not taken in, and then how many each running variance;
    /// nil if the layer keeps none. See `RunningStatistics.skippedBatches`.
    ///
    /// - Throws: `.outOfMemory`.
    public var skippedBatches: [Int]? {
        get throws(BatchNormError) {
            guard options.trackRunningStats else { return nil }
            var counters = try [Int](allocating: owned.skippedBatches.count, of: 0)
            try counters.withUnsafeMutableBufferPointer { (out) throws(BatchNormError) in
                try owned.getSkippedBatches(into: MutableView(out))
            }
            return counters
        }
    }

    /// Sets the weight, one per channel.
    ///
    /// - Throws: `.countMismatch`, `.noParameter` if the layer has none, or `.lent` inside a closure that changes it.
    public func setWeight(_ values: [Scalar.Parameter]) throws(BatchNormError) {
        guard !isWeightLent else { throw .lent(.weight) }
        defer { withExtendedLifetime(values) {} }
        try owned.set(.weight, to: View(values.span))
    }

    /// Sets the bias, one per channel.
    ///
    /// - Throws: `.countMismatch`, `.noParameter` if the layer has none, or `.lent` inside a closure that changes it.
    public func setBias(_ values: [Scalar.Parameter]) throws(BatchNormError) {
        guard !isBiasLent else { throw .lent(.bias) }
        defer { withExtendedLifetime(values) {} }
        try owned.set(.bias, to: View(values.span))
    }

    /// Sets the running mean, one per channel.
    ///
    /// - Throws: `.countMismatch`, or `.noRunningStatistics` if the layer keeps none.
    public func setRunningMean(_ values: [Scalar.Parameter]) throws(BatchNormError) {
        defer { withExtendedLifetime(values) {} }
        try owned.set(.runningMean, to: View(values.span))
    }

    /// Sets the running variance, one per channel.
    ///
    /// - Throws: `.countMismatch`, or `.noRunningStatistics` if the layer keeps none.
    public func setRunningVar(_ values: [Scalar.Parameter]) throws(BatchNormError) {
        defer { withExtendedLifetime(values) {} }
        try owned.set(.runningVar, to: View(values.span))
    }

    /// Sets the number of batches that the running statistics have taken in, of which none counts as skipped.
    ///
    /// - Throws: `.batchCounter` if it is negative, or `.noRunningStatistics` if the layer keeps none.
    public func setNumBatchesTracked(_ count: Int) throws(BatchNormError) {
        try owned.setNumBatchesTracked(Int64(count))
    }

    /// Sets how many of the batches each running mean, and then each running variance, has not taken in.
    ///
    /// - Throws: `.countMismatch`, `.skippedBatches` if one is negative or above `numBatchesTracked`, or
    ///   `.noRunningStatistics` if the layer keeps none.
    public func setSkippedBatches(_ counters: [Int]) throws(BatchNormError) {
        defer { withExtendedLifetime(counters) {} }
        try owned.setSkippedBatches(to: View(counters.span))
    }

    /// Sets the running statistics back to mean 0, variance 1, all counters 0.
    ///
    /// - Throws: `.noRunningStatistics` if the layer keeps none.
    public func resetRunningStats() throws(BatchNormError) {
        try owned.resetRunningStats()
    }

    /// Lends the weight to `body`, one element per channel, to be changed in place: for optimizers. Returns what `body`
    /// returns.
    ///
    ///     try layer.withWeight { weight in
    ///         for channel in weight.indices { weight[channel] -= 0.1 * gradients.weight[channel] }
    ///     }
    ///
    /// Until `body` returns the weight is its alone: whatever else uses it, another `withWeight` or a `forward`, throws
    /// `.lent`. The bias may be lent at the same time.
    ///
    /// - Throws: `.noParameter` if the layer has none, `.lent` if a closure has it already, and what `body` throws.
    @discardableResult
    public func withWeight<Result>(
        _ body: (inout MutableSpan<Scalar.Parameter>) throws(BatchNormError) -> Result
    ) throws(BatchNormError) -> Result {
        let lent = try lend(.weight)
        defer { giveBack(.weight) }
        var span = lent.mutableSpan
        return try body(&span)
    }

    /// Lends the bias to `body`, as `withWeight` does the weight.
    ///
    /// - Throws: `.noParameter` if the layer has none, `.lent` if a closure has it already, and what `body` throws.
    @discardableResult
    public func withBias<Result>(
        _ body: (inout MutableSpan<Scalar.Parameter>) throws(BatchNormError) -> Result
    ) throws(BatchNormError) -> Result {
        let lent = try lend(.bias)
        defer { giveBack(.bias) }
        var span = lent.mutableSpan
        return try body(&span)
    }

    #if !hasFeature(Embedded)
        /// As `withWeight`, for a `body` with errors of its own.
        @discardableResult @_disfavoredOverload
        public func withWeight<Result>(
            _ body: (inout MutableSpan<Scalar.Parameter>) throws -> Result
        ) throws -> Result {
            let lent = try lend(.weight)
            defer { giveBack(.weight) }
            var span = lent.mutableSpan
            return try body(&span)
        }

        /// As `withBias`, for a `body` with errors of its own.
        @discardableResult @_disfavoredOverload
        public func withBias<Result>(
            _ body: (inout MutableSpan<Scalar.Parameter>) throws -> Result
        ) throws -> Result {
            let lent = try lend(.bias)
            defer { giveBack(.bias) }
            var span = lent.mutableSpan
            return try body(&span)
        }
    #endif

    /// The elements of weight or bias, which nobody else gets before `giveBack`.
    private func lend(
        _ argument: BatchNormError.Argument
    ) throws(BatchNormError) -> UnsafeMutableBufferPointer<Scalar.Parameter> {
        guard !(argument == .weight ? isWeightLent : isBiasLent) else { throw .lent(argument) }
        let view = try owned.parameter(argument)
        if argument == .weight { isWeightLent = true } else { isBiasLent = true }
        return elements(of: view)
    }

    private func giveBack(_ argument: BatchNormError.Argument) {
        if argument == .weight { isWeightLent = false } else { isBiasLent = false }
    }

    private func elements(of view: MutableView) -> UnsafeMutableBufferPointer<Scalar.Parameter> {
        UnsafeMutableBufferPointer(
            start: view.address?.assumingMemoryBound(to: Scalar.Parameter.self), count: view.count)
    }

    private func copy(of view: MutableView) throws(BatchNormError) -> [Scalar.Parameter]? {
        guard !view.isAbsent else { return nil }
        defer { withExtendedLifetime(self) {} }
        try requireMemory(for: view.count, of: Scalar.Parameter.self)
        return Array(elements(of: view))
    }

    // MARK: State

    /// A layer, options and all, from what `state()` returned.
    ///
    /// - Throws: `.stateTruncated`, `.stateForeign`, `.stateVersion`, `.stateChecksum` or `.stateInvalid` for bytes
    ///   that are no intact state, `.scalarTypeMismatch` for one of another element type.
    public init(state: [UInt8]) throws(BatchNormError) {
        let core = try state.withUnsafeBufferPointer { (bytes) throws(BatchNormError) in
            try LayerCore.make(fromState: bytes.baseAddress, size: bytes.count)
        }
        guard core.scalar == Scalar.scalarType else {
            throw .scalarTypeMismatch(actual: core.scalar, expected: Scalar.scalarType)
        }
        owned = core
    }

    /// Options, mode, parameters, running statistics and counters as one block of bytes: little-endian, versioned, with
    /// a checksum; the same on every machine, and the same as the C library's. What backward needs is not part of it.
    ///
    /// - Throws: `.outOfMemory`; `.lent` inside a closure of `withWeight` or `withBias`.
    public func state() throws(BatchNormError) -> [UInt8] {
        let core = try core()
        var state = try [UInt8](allocating: core.stateByteCount, of: 0)
        try state.withUnsafeMutableBufferPointer { (bytes) throws(BatchNormError) in
            try core.saveState(to: bytes.baseAddress, size: bytes.count)
        }
        return state
    }

    /// Takes over mode, parameters, statistics and counters from a layer of the same kind.
    ///
    /// - Throws: As `init(state:)`; also `.channelsMismatch` or `.optionMismatch` if element type, number of channels
    ///   or the presence of weight, bias or running statistics differ. Then nothing has changed.
    public func load(state: [UInt8]) throws(BatchNormError) {
        try state.withUnsafeBufferPointer { (bytes) throws(BatchNormError) in
            try core().loadState(bytes.baseAddress, size: bytes.count)
        }
    }
}
