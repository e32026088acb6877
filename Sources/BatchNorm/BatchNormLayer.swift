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
    let core: LayerCore

    /// A new layer.
    ///
    /// - Throws: `.noChannels`, `.negativeCount`, `.sizeOverflow`, `.epsilon`, `.momentum` or `.outOfMemory`.
    public init(_ options: LayerOptions) throws(BatchNormError) {
        core = try LayerCore(scalar: Scalar.scalarType, options: options)
    }

    /// A new layer with PyTorch's defaults for so many channels.
    public convenience init(numFeatures: Int) throws(BatchNormError) {
        try self.init(LayerOptions(numFeatures: numFeatures))
    }

    /// What the layer was made from.
    public var options: LayerOptions { core.options }

    /// Whether `forward` trains (normalizes by the batch and takes it into the running statistics) or evaluates
    /// (normalizes by the running statistics). True at first.
    public var isTraining: Bool {
        get { core.isTraining }
        set { core.isTraining = newValue }
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
        try output.withMutableSpan { (output) throws(BatchNormError) in
            try forward(
                input: input.elements.span, shape: input.shape, output: &output,
                activation: activation, residual: residual?.elements.span, mask: mask, pass: pass)
        }
        return output
    }

    /// As the function on tensors, from memory of yours into memory of yours: `shape.count` elements each.
    public func forward(
        input: Span<Scalar>, shape: Shape, output: inout MutableSpan<Scalar>,
        activation: Activation = .none, residual: Span<Scalar>? = nil, mask: PositionMask? = nil,
        pass: ForwardPass = .normal
    ) throws(BatchNormError) {
        defer { withExtendedLifetime(mask) {} }
        try core.forward(
            Scalar.scalarType, shape, pass: pass, input: View(input), output: MutableView(&output),
            extras: ForwardExtras(activation, residual, mask))
    }

    /// As the function on tensors, in place. The input is lost; keep a copy if there will be a backward.
    public func forward(
        inPlace elements: inout MutableSpan<Scalar>, shape: Shape, activation: Activation = .none,
        residual: Span<Scalar>? = nil, mask: PositionMask? = nil, pass: ForwardPass = .normal
    ) throws(BatchNormError) {
        defer { withExtendedLifetime(mask) {} }
        let view = MutableView(&elements)
        try core.forward(
            Scalar.scalarType, shape, pass: pass, input: view.constant, output: view,
            extras: ForwardExtras(activation, residual, mask))
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
        return try Gradients(shape: input.shape, hasResidual: core.hadResidual) {
            (gradInput, gradWeight, gradBias, gradResidual) throws(BatchNormError) in
            try backward(
                input: input.elements.span, gradOutput: gradOutput.elements.span,
                shape: input.shape, gradInput: &gradInput, gradWeight: &gradWeight,
                gradBias: &gradBias, gradResidual: &gradResidual)
        }
    }

    /// As `backward(_:gradOutput:)`, from memory of yours into memory of yours. Gradients are written, not added. Pass
    /// an empty span (`MutableSpan()`) to skip one: what nobody wants is not computed.
    public func backward(
        input: Span<Scalar>, gradOutput: Span<Scalar>, shape: Shape,
        gradInput: inout MutableSpan<Scalar>, gradWeight: inout MutableSpan<Scalar.Parameter>,
        gradBias: inout MutableSpan<Scalar.Parameter>, gradResidual: inout MutableSpan<Scalar>
    ) throws(BatchNormError) {
        try core.backward(
            Scalar.scalarType, shape, input: View(input), gradOutput: View(gradOutput),
            gradInput: MutableView(unlessEmpty: &gradInput),
            gradWeight: MutableView(unlessEmpty: &gradWeight),
            gradBias: MutableView(unlessEmpty: &gradBias),
            gradResidual: MutableView(unlessEmpty: &gradResidual))
    }

    /// As the function with `gradResidual`, for forwards without a residual.
    public func backward(
        input: Span<Scalar>, gradOutput: Span<Scalar>, shape: Shape,
        gradInput: inout MutableSpan<Scalar>, gradWeight: inout MutableSpan<Scalar.Parameter>,
        gradBias: inout MutableSpan<Scalar.Parameter>
    ) throws(BatchNormError) {
        var gradResidual = MutableSpan<Scalar>()
        try backward(
            input: input, gradOutput: gradOutput, shape: shape, gradInput: &gradInput,
            gradWeight: &gradWeight, gradBias: &gradBias, gradResidual: &gradResidual)
    }

    /// Mean and invstd that the last forward normalized with, and which statistics these were.
    ///
    /// After an empty batch in training, mean and invstd are those of the forward before it, or 0.
    ///
    /// - Throws: `.noForward` before the first forward.
    public func savedStatistics() throws(BatchNormError) -> SavedStatistics {
        let outcome = try core.outcome()
        var saved = SavedStatistics(
            channels: options.numFeatures, statistics: outcome.statistics)
        saved.nonfiniteChannels = outcome.nonfiniteChannels
        saved.nonfiniteRunningChannels = outcome.nonfiniteRunningChannels
        try saved.withViews { (mean, invstd) throws(BatchNormError) in
            try core.getSavedMean(into: mean)
            try core.getSavedInvstd(into: invstd)
        }
        return saved
    }

    // MARK: Parameters and running statistics

    /// A copy of the weight (γ), one per channel; nil if the layer has none.
    public var weight: [Scalar.Parameter]? { copy(of: core.weight) }
    /// A copy of the bias (β), one per channel; nil if the layer has none.
    public var bias: [Scalar.Parameter]? { copy(of: core.bias) }
    /// A copy of the running mean, one per channel; nil if the layer keeps none.
    public var runningMean: [Scalar.Parameter]? { copy(of: core.runningMean) }
    /// A copy of the running variance, one per channel; nil if the layer keeps none.
    public var runningVar: [Scalar.Parameter]? { copy(of: core.runningVar) }
    /// How many batches the running statistics have taken in; nil if the layer keeps none.
    public var numBatchesTracked: Int? {
        options.trackRunningStats ? Int(core.batches) : nil
    }
    /// Of these batches, how many each channel's running mean has not taken in, and then how many each running variance;
    /// nil if the layer keeps none. See `RunningStatistics.skippedBatches`.
    public var skippedBatches: [Int]? {
        guard options.trackRunningStats else { return nil }
        var counters = [Int](repeating: 0, count: core.skippedBatches.count)
        counters.withUnsafeMutableBufferPointer { out in
            // The counters are there, and of that number.
            try? core.getSkippedBatches(into: MutableView(out))
        }
        return counters
    }

    /// Sets the weight, one per channel.
    ///
    /// - Throws: `.countMismatch`, or `.noParameter` if the layer has none.
    public func setWeight(_ values: [Scalar.Parameter]) throws(BatchNormError) {
        try core.set(.weight, to: View(values.span))
    }

    /// Sets the bias, one per channel.
    ///
    /// - Throws: `.countMismatch`, or `.noParameter` if the layer has none.
    public func setBias(_ values: [Scalar.Parameter]) throws(BatchNormError) {
        try core.set(.bias, to: View(values.span))
    }

    /// Sets the running mean, one per channel.
    ///
    /// - Throws: `.countMismatch`, or `.noRunningStatistics` if the layer keeps none.
    public func setRunningMean(_ values: [Scalar.Parameter]) throws(BatchNormError) {
        try core.set(.runningMean, to: View(values.span))
    }

    /// Sets the running variance, one per channel.
    ///
    /// - Throws: `.countMismatch`, or `.noRunningStatistics` if the layer keeps none.
    public func setRunningVar(_ values: [Scalar.Parameter]) throws(BatchNormError) {
        try core.set(.runningVar, to: View(values.span))
    }

    /// Sets the number of batches that the running statistics have taken in, of which none counts as skipped.
    ///
    /// - Throws: `.batchCounter` if it is negative, or `.noRunningStatistics` if the layer keeps none.
    public func setNumBatchesTracked(_ count: Int) throws(BatchNormError) {
        try core.setNumBatchesTracked(Int64(count))
    }

    /// Sets how many of the batches each running mean, and then each running variance, has not taken in.
    ///
    /// - Throws: `.countMismatch`, `.skippedBatches` if one is negative or above `numBatchesTracked`, or
    ///   `.noRunningStatistics` if the layer keeps none.
    public func setSkippedBatches(_ counters: [Int]) throws(BatchNormError) {
        try core.setSkippedBatches(to: View(counters.span))
    }

    /// Sets the running statistics back to mean 0, variance 1, all counters 0.
    ///
    /// - Throws: `.noRunningStatistics` if the layer keeps none.
    public func resetRunningStats() throws(BatchNormError) {
        try core.resetRunningStats()
    }

    /// Lends the weight to `body`, one element per channel, to be changed in place: for optimizers.
    ///
    /// - Throws: `.noParameter` if the layer has none.
    public func withWeight(
        _ body: (inout MutableSpan<Scalar.Parameter>) -> Void
    ) throws(BatchNormError) {
        lend(try core.parameter(.weight), to: body)
    }

    /// Lends the bias to `body`, one element per channel, to be changed in place: for optimizers.
    ///
    /// - Throws: `.noParameter` if the layer has none.
    public func withBias(
        _ body: (inout MutableSpan<Scalar.Parameter>) -> Void
    ) throws(BatchNormError) {
        lend(try core.parameter(.bias), to: body)
    }

    private func elements(of view: MutableView) -> UnsafeMutableBufferPointer<Scalar.Parameter> {
        UnsafeMutableBufferPointer(
            start: view.address?.assumingMemoryBound(to: Scalar.Parameter.self), count: view.count)
    }

    private func lend(_ view: MutableView, to body: (inout MutableSpan<Scalar.Parameter>) -> Void) {
        var span = elements(of: view).mutableSpan
        body(&span)
        withExtendedLifetime(self) {}
    }

    private func copy(of view: MutableView) -> [Scalar.Parameter]? {
        defer { withExtendedLifetime(self) {} }
        return view.isAbsent ? nil : Array(elements(of: view))
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
        self.core = core
    }

    /// Options, mode, parameters, running statistics and counters as one block of bytes: little-endian, versioned, with
    /// a checksum; the same on every machine, and the same as the C library's. What backward needs is not part of it.
    public func state() -> [UInt8] {
        let size = core.stateByteCount
        return [UInt8](unsafeUninitializedCapacity: size) { bytes, count in
            // The buffer is as large as the state says, which is all that saving can object to.
            guard (try? core.saveState(to: bytes.baseAddress, size: size)) != nil else { return }
            count = size
        }
    }

    /// Takes over mode, parameters, statistics and counters from a layer of the same kind.
    ///
    /// - Throws: As `init(state:)`; also `.channelsMismatch` or `.optionMismatch` if element type, number of channels
    ///   or the presence of weight, bias or running statistics differ. Then nothing has changed.
    public func load(state: [UInt8]) throws(BatchNormError) {
        try state.withUnsafeBufferPointer { (bytes) throws(BatchNormError) in
            try core.loadState(bytes.baseAddress, size: bytes.count)
        }
    }
}
