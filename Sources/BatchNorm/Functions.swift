// The public, stateless functions: on tensors, which allocate their results, and on spans, which allocate nothing that
// grows with the batch. All of them end in ForwardTraining.swift, ForwardInference.swift or Backward.swift.

/// Where the stateless functions live, so that they clash with nobody's `backward` or `normalize`.
///
///     let (output, saved) = try BatchNormalization.forwardTraining(x, weight: weight, bias: bias)
///     let gradients = try BatchNormalization.backward(x, gradOutput: dy, weight: weight, saved: saved)
///
/// What a call may write is lent to it: `running: running.mutableView`, `gradInput: gradInput.mutableSpan`. Unlike an
/// `inout` argument, this can be left out.
public enum BatchNormalization {}

/// The gradients of a loss with respect to a batch normalization's input and parameters.
public struct Gradients<Scalar: BatchNormScalar>: Equatable, Sendable {
    /// Of the input's shape.
    public var input: Tensor<Scalar>
    /// One per channel.
    public var weight: [Scalar.Parameter]
    /// One per channel.
    public var bias: [Scalar.Parameter]
    /// Of the residual's shape, which is the input's; nil if the forward had none.
    public var residual: Tensor<Scalar>?
}

// MARK: - Forward in training

extension BatchNormalization {
    /// Normalizes a batch by its own statistics and takes it into running statistics.
    ///
    ///     y = (x - mean) / √(variance + ε) * weight + bias
    ///
    /// Follows `torch.nn.functional.batch_norm(training=True)`. An empty batch changes no statistics.
    ///
    /// A residual is added to y, and an activation follows, in the same sweep over memory:
    /// `activation(y + residual)`, as cuDNN's `BN_ADD_ACTIVATION` has it.
    ///
    /// - Parameters:
    ///   - input: The batch.
    ///   - weight: One factor per channel; nil means 1.
    ///   - bias: One summand per channel; nil means 0.
    ///   - activation: What is done to the values in the end.
    ///   - residual: Added before the activation; of the input's shape.
    ///   - mask: Which positions take part; nil means all.
    ///   - running: Takes in the batch as `options` say, unless the call throws; nil means that nothing does.
    ///   - options: Epsilon and how the running statistics take in a batch.
    /// - Returns: The output, of the input's shape, and what `backward` needs.
    /// - Throws: `BatchNormError`; only `.nonfinite` comes after the running statistics have been updated.
    public static func forwardTraining<Scalar: BatchNormScalar>(
        _ input: Tensor<Scalar>, weight: [Scalar.Parameter]? = nil, bias: [Scalar.Parameter]? = nil,
        activation: Activation = .none, residual: Tensor<Scalar>? = nil, mask: PositionMask? = nil,
        running: consuming MutableRunningStatistics<Scalar>? = nil, options: TrainingOptions = TrainingOptions()
    ) throws(BatchNormError) -> (output: Tensor<Scalar>, saved: SavedStatistics) {
        try residual?.requireResidual(of: input)
        var output = try Tensor<Scalar>(repeating: 0, shape: input.shape)
        let saved = try forwardTraining(
            input: input.span, shape: input.shape, output: output.mutableSpan, weight: weight?.span,
            bias: bias?.span, activation: activation, residual: residual?.span, mask: mask,
            running: running, options: options)
        return (output, saved)
    }

    /// Normalizes a batch by its own statistics, from memory of yours into memory of yours, and takes it into running
    /// statistics. `input`, `residual` and `output` hold `shape.count` elements, `weight` and `bias` one per channel.
    ///
    /// - Returns: What `backward` needs, together with the input. An activation's mask in it has one bit a value;
    ///   nothing else grows with the batch. (`BatchNormLayer` keeps such memory from call to call.)
    /// - Throws: `BatchNormError`; only `.nonfinite` comes after output and statistics have been written.
    public static func forwardTraining<Scalar: BatchNormScalar>(
        input: Span<Scalar>, shape: Shape, output: consuming MutableSpan<Scalar>,
        weight: Span<Scalar.Parameter>? = nil, bias: Span<Scalar.Parameter>? = nil, activation: Activation = .none,
        residual: Span<Scalar>? = nil, mask: PositionMask? = nil,
        running: consuming MutableRunningStatistics<Scalar>? = nil, options: TrainingOptions = TrainingOptions()
    ) throws(BatchNormError) -> SavedStatistics {
        var job = ForwardTraining(
            scalar: Scalar.scalarType, shape: shape, options: options, input: View(input), output: MutableView(output))
        job.take(weight, bias, activation, residual, mask)
        job.update(running)
        return try job.runAndSave(mask)
    }

    /// Normalizes a batch by its own statistics in place, and takes it into running statistics. The input is lost; keep
    /// a copy if there will be a backward.
    ///
    /// - Throws: `BatchNormError`; only `.nonfinite` comes after elements and statistics have been written.
    public static func forwardTraining<Scalar: BatchNormScalar>(
        inPlace elements: consuming MutableSpan<Scalar>, shape: Shape,
        weight: Span<Scalar.Parameter>? = nil, bias: Span<Scalar.Parameter>? = nil, activation: Activation = .none,
        residual: Span<Scalar>? = nil, mask: PositionMask? = nil,
        running: consuming MutableRunningStatistics<Scalar>? = nil, options: TrainingOptions = TrainingOptions()
    ) throws(BatchNormError) -> SavedStatistics {
        let view = MutableView(elements)
        var job = ForwardTraining(
            scalar: Scalar.scalarType, shape: shape, options: options, input: view.constant, output: view)
        job.take(weight, bias, activation, residual, mask)
        job.update(running)
        return try job.runAndSave(mask)
    }
}

// MARK: - Forward in inference

extension BatchNormalization {
    /// Normalizes a batch by running statistics: `y = (x - mean) / √(variance + ε) * weight + bias`.
    ///
    /// Follows `torch.nn.functional.batch_norm(training=False)`.
    ///
    /// - Parameters:
    ///   - input: The batch.
    ///   - weight: One factor per channel; nil means 1.
    ///   - bias: One summand per channel; nil means 0.
    ///   - activation: What is done to the values in the end.
    ///   - residual: Added before the activation; of the input's shape.
    ///   - mask: Which positions take part; nil means all.
    ///   - running: Collected in training.
    ///   - epsilon: Added to the variance; finite and at least 0.
    /// - Returns: The output, of the input's shape.
    public static func forwardInference<Scalar: BatchNormScalar>(
        _ input: Tensor<Scalar>, weight: [Scalar.Parameter]? = nil, bias: [Scalar.Parameter]? = nil,
        activation: Activation = .none, residual: Tensor<Scalar>? = nil, mask: PositionMask? = nil,
        running: RunningStatistics<Scalar>, epsilon: Double = 1e-5
    ) throws(BatchNormError) -> Tensor<Scalar> {
        try residual?.requireResidual(of: input)
        var output = try Tensor<Scalar>(repeating: 0, shape: input.shape)
        try forwardInference(
            input: input.span, shape: input.shape, output: output.mutableSpan, weight: weight?.span,
            bias: bias?.span, activation: activation, residual: residual?.span, mask: mask,
            runningMean: running.mean.span, runningVar: running.variance.span, epsilon: epsilon)
        return output
    }

    /// Normalizes a batch by running statistics, from memory of yours into memory of yours. `input`, `residual` and
    /// `output` hold `shape.count` elements, all others one per channel. Nothing is allocated, but for the bytes of a
    /// mask that is given by lengths.
    public static func forwardInference<Scalar: BatchNormScalar>(
        input: Span<Scalar>, shape: Shape, output: consuming MutableSpan<Scalar>,
        weight: Span<Scalar.Parameter>? = nil, bias: Span<Scalar.Parameter>? = nil, activation: Activation = .none,
        residual: Span<Scalar>? = nil, mask: PositionMask? = nil, runningMean: Span<Scalar.Parameter>,
        runningVar: Span<Scalar.Parameter>, epsilon: Double = 1e-5
    ) throws(BatchNormError) {
        defer { withExtendedLifetime(mask) {} }
        var job = ForwardInference(
            scalar: Scalar.scalarType, shape: shape, input: View(input), output: MutableView(output),
            source: .running(mean: View(runningMean), variance: View(runningVar), epsilon: epsilon))
        job.take(weight, bias, activation, residual, mask)
        try job.run()
    }

    /// Normalizes a batch by running statistics in place.
    public static func forwardInference<Scalar: BatchNormScalar>(
        inPlace elements: consuming MutableSpan<Scalar>, shape: Shape,
        weight: Span<Scalar.Parameter>? = nil, bias: Span<Scalar.Parameter>? = nil, activation: Activation = .none,
        residual: Span<Scalar>? = nil, mask: PositionMask? = nil, runningMean: Span<Scalar.Parameter>,
        runningVar: Span<Scalar.Parameter>, epsilon: Double = 1e-5
    ) throws(BatchNormError) {
        defer { withExtendedLifetime(mask) {} }
        let view = MutableView(elements)
        var job = ForwardInference(
            scalar: Scalar.scalarType, shape: shape, input: view.constant, output: view,
            source: .running(mean: View(runningMean), variance: View(runningVar), epsilon: epsilon))
        job.take(weight, bias, activation, residual, mask)
        try job.run()
    }
}

// MARK: - Backward

extension BatchNormalization {
    /// The gradients of a loss with respect to input, weight and bias.
    ///
    /// With c = input - mean, r = invstd, S₁ = Σ gradOutput, S₂ = Σ gradOutput * c over the M values of a channel:
    /// the bias's is S₁, the weight's S₂ * r, and the input's weight * r * (gradOutput - S₁/M - c * r² * S₂/M) for
    /// batch statistics, weight * r * gradOutput for running ones. Follows `torch.ops.aten.native_batch_norm_backward`.
    ///
    /// - Parameters:
    ///   - input: The forward's input.
    ///   - gradOutput: The gradient with respect to the forward's output.
    ///   - weight: The forward's weight; nil means 1.
    ///   - saved: What the forward returned; or, after inference, `SavedStatistics(running:epsilon:)`. It says what
    ///     else the forward did: with an activation, gradOutput stands for what came back through that, which is also
    ///     the residual's gradient; masked positions take no part.
    public static func backward<Scalar: BatchNormScalar>(
        _ input: Tensor<Scalar>, gradOutput: Tensor<Scalar>, weight: [Scalar.Parameter]? = nil,
        saved: SavedStatistics
    ) throws(BatchNormError) -> Gradients<Scalar> {
        guard gradOutput.shape == input.shape else {
            throw .shapeMismatch(actual: gradOutput.shape, expected: input.shape)
        }
        return try Gradients(shape: input.shape, hasResidual: saved.hasResidual) {
            (gradInput, gradWeight, gradBias, gradResidual) throws(BatchNormError) in
            try backward(
                input: input.span, gradOutput: gradOutput.span, shape: input.shape,
                weight: weight?.span, saved: saved, gradInput: gradInput, gradWeight: gradWeight,
                gradBias: gradBias, gradResidual: gradResidual)
        }
    }

    /// The gradients of a loss, from memory of yours into memory of yours. `input`, `gradOutput`, `gradInput` and
    /// `gradResidual` hold `shape.count` elements, `weight`, `gradWeight` and `gradBias` one per channel.
    ///
    /// Gradients are written, not added. One that is left out is not computed.
    public static func backward<Scalar: BatchNormScalar>(
        input: Span<Scalar>, gradOutput: Span<Scalar>, shape: Shape, weight: Span<Scalar.Parameter>? = nil,
        saved: SavedStatistics, gradInput: consuming MutableSpan<Scalar>? = nil,
        gradWeight: consuming MutableSpan<Scalar.Parameter>? = nil,
        gradBias: consuming MutableSpan<Scalar.Parameter>? = nil,
        gradResidual: consuming MutableSpan<Scalar>? = nil
    ) throws(BatchNormError) {
        defer { withExtendedLifetime(saved) {} }
        var job = Backward(input, gradOutput, shape, saved)
        job.take(weight, gradInput, gradWeight, gradBias, gradResidual)
        try job.run()
    }
}
