// The public, stateless functions: on tensors, which allocate their results, and on spans, which allocate nothing that
// grows with the batch. All of them end in Operations.swift.

/// The gradients of a loss with respect to a batch normalization's input and parameters.
public struct Gradients<Scalar: BatchNormScalar>: Equatable, Sendable {
    /// Of the input's shape.
    public var input: Tensor<Scalar>
    /// One per channel.
    public var weight: [Scalar]
    /// One per channel.
    public var bias: [Scalar]
}

// MARK: - Forward in training

/// Normalizes a batch by its own statistics and takes it into running statistics.
///
///     y = (x - mean) / √(variance + ε) * weight + bias
///
/// Follows `torch.nn.functional.batch_norm(training=True)`. An empty batch changes no statistics.
///
/// - Parameters:
///   - input: The batch.
///   - weight: One factor per channel; nil means 1.
///   - bias: One summand per channel; nil means 0.
///   - running: Takes in the batch as `options` say, unless the call throws.
///   - options: Epsilon and how the running statistics take in a batch.
/// - Returns: The output, of the input's shape, and what `backward` needs.
/// - Throws: `BatchNormError`; only `.nonfinite` comes after the running statistics have been updated.
public func forwardTraining<Scalar: BatchNormScalar>(
    _ input: Tensor<Scalar>, weight: [Scalar]? = nil, bias: [Scalar]? = nil,
    running: inout RunningStatistics<Scalar>, options: TrainingOptions = TrainingOptions()
) throws(BatchNormError) -> (output: Tensor<Scalar>, saved: SavedStatistics) {
    var output = try Tensor<Scalar>(repeating: 0, shape: input.shape)
    let saved = try output.withMutableSpan { (output) throws(BatchNormError) in
        try forwardTraining(
            input: input.elements.span, shape: input.shape, output: &output, weight: weight?.span,
            bias: bias?.span, running: &running, options: options)
    }
    return (output, saved)
}

/// As the function with `running`, for batches that enter no running statistics.
public func forwardTraining<Scalar: BatchNormScalar>(
    _ input: Tensor<Scalar>, weight: [Scalar]? = nil, bias: [Scalar]? = nil,
    options: TrainingOptions = TrainingOptions()
) throws(BatchNormError) -> (output: Tensor<Scalar>, saved: SavedStatistics) {
    var output = try Tensor<Scalar>(repeating: 0, shape: input.shape)
    let saved = try output.withMutableSpan { (output) throws(BatchNormError) in
        try forwardTraining(
            input: input.elements.span, shape: input.shape, output: &output, weight: weight?.span,
            bias: bias?.span, options: options)
    }
    return (output, saved)
}

/// Normalizes a batch by its own statistics, from memory of yours into memory of yours, and takes it into running
/// statistics. `input` and `output` hold `shape.count` elements, `weight` and `bias` one per channel.
///
/// - Returns: What `backward` needs, together with the input.
/// - Throws: `BatchNormError`; only `.nonfinite` comes after output and statistics have been written.
public func forwardTraining<Scalar: BatchNormScalar>(
    input: Span<Scalar>, shape: Shape, output: inout MutableSpan<Scalar>,
    weight: Span<Scalar>? = nil, bias: Span<Scalar>? = nil,
    running: inout RunningStatistics<Scalar>, options: TrainingOptions = TrainingOptions()
) throws(BatchNormError) -> SavedStatistics {
    var job = ForwardTraining(
        scalar: Scalar.scalarType, shape: shape, options: options, input: View(input),
        output: MutableView(&output))
    job.weight = View(weight)
    job.bias = View(bias)
    return try job.run(&running)
}

/// As the function with `running`, for batches that enter no running statistics.
public func forwardTraining<Scalar: BatchNormScalar>(
    input: Span<Scalar>, shape: Shape, output: inout MutableSpan<Scalar>,
    weight: Span<Scalar>? = nil, bias: Span<Scalar>? = nil,
    options: TrainingOptions = TrainingOptions()
) throws(BatchNormError) -> SavedStatistics {
    var job = ForwardTraining(
        scalar: Scalar.scalarType, shape: shape, options: options, input: View(input),
        output: MutableView(&output))
    job.weight = View(weight)
    job.bias = View(bias)
    return try job.runAndSave()
}

/// Normalizes a batch by its own statistics in place, and takes it into running statistics. The input is lost; keep a
/// copy if there will be a backward.
///
/// - Throws: `BatchNormError`; only `.nonfinite` comes after elements and statistics have been written.
public func forwardTraining<Scalar: BatchNormScalar>(
    inPlace elements: inout MutableSpan<Scalar>, shape: Shape,
    weight: Span<Scalar>? = nil, bias: Span<Scalar>? = nil,
    running: inout RunningStatistics<Scalar>, options: TrainingOptions = TrainingOptions()
) throws(BatchNormError) -> SavedStatistics {
    let view = MutableView(&elements)
    var job = ForwardTraining(
        scalar: Scalar.scalarType, shape: shape, options: options, input: view.constant,
        output: view)
    job.weight = View(weight)
    job.bias = View(bias)
    return try job.run(&running)
}

extension ForwardTraining {
    func run<Scalar>(
        _ running: inout RunningStatistics<Scalar>
    ) throws(BatchNormError) -> SavedStatistics {
        try running.withViews { (mean, variance, counter) throws(BatchNormError) in
            var job = self
            job.runningMean = mean
            job.runningVar = variance
            job.numBatchesTracked = counter
            return try job.runAndSave()
        }
    }

    func runAndSave() throws(BatchNormError) -> SavedStatistics {
        var saved = SavedStatistics(channels: shape.channels)
        let outcome = try saved.withViews { (mean, invstd) throws(BatchNormError) in
            var job = self
            job.savedMean = mean
            job.savedInvstd = invstd
            return try job.run()
        }
        try outcome.require(options.nonfinite, of: shape.channels)
        saved.statistics = outcome.statistics
        saved.nonfiniteChannels = outcome.nonfiniteChannels
        return saved
    }
}

// MARK: - Forward in inference

/// Normalizes a batch by running statistics: `y = (x - mean) / √(variance + ε) * weight + bias`.
///
/// Follows `torch.nn.functional.batch_norm(training=False)`.
///
/// - Parameters:
///   - input: The batch.
///   - weight: One factor per channel; nil means 1.
///   - bias: One summand per channel; nil means 0.
///   - running: Collected in training.
///   - epsilon: Added to the variance; finite and at least 0.
/// - Returns: The output, of the input's shape.
public func forwardInference<Scalar: BatchNormScalar>(
    _ input: Tensor<Scalar>, weight: [Scalar]? = nil, bias: [Scalar]? = nil,
    running: RunningStatistics<Scalar>, epsilon: Double = 1e-5
) throws(BatchNormError) -> Tensor<Scalar> {
    var output = try Tensor<Scalar>(repeating: 0, shape: input.shape)
    try output.withMutableSpan { (output) throws(BatchNormError) in
        try forwardInference(
            input: input.elements.span, shape: input.shape, output: &output, weight: weight?.span,
            bias: bias?.span, runningMean: running.mean.span, runningVar: running.variance.span,
            epsilon: epsilon)
    }
    return output
}

/// Normalizes a batch by running statistics, from memory of yours into memory of yours. `input` and `output` hold
/// `shape.count` elements, all others one per channel. Nothing is allocated.
public func forwardInference<Scalar: BatchNormScalar>(
    input: Span<Scalar>, shape: Shape, output: inout MutableSpan<Scalar>,
    weight: Span<Scalar>? = nil, bias: Span<Scalar>? = nil, runningMean: Span<Scalar>,
    runningVar: Span<Scalar>, epsilon: Double = 1e-5
) throws(BatchNormError) {
    var job = ForwardInference(
        scalar: Scalar.scalarType, shape: shape, epsilon: epsilon, input: View(input),
        output: MutableView(&output), runningMean: View(runningMean), runningVar: View(runningVar))
    job.weight = View(weight)
    job.bias = View(bias)
    try job.run()
}

/// Normalizes a batch by running statistics in place.
public func forwardInference<Scalar: BatchNormScalar>(
    inPlace elements: inout MutableSpan<Scalar>, shape: Shape,
    weight: Span<Scalar>? = nil, bias: Span<Scalar>? = nil, runningMean: Span<Scalar>,
    runningVar: Span<Scalar>, epsilon: Double = 1e-5
) throws(BatchNormError) {
    let view = MutableView(&elements)
    var job = ForwardInference(
        scalar: Scalar.scalarType, shape: shape, epsilon: epsilon, input: view.constant,
        output: view, runningMean: View(runningMean), runningVar: View(runningVar))
    job.weight = View(weight)
    job.bias = View(bias)
    try job.run()
}

// MARK: - Backward

/// The gradients of a loss with respect to input, weight and bias.
///
/// With c = input - mean, r = invstd, S₁ = Σ gradOutput, S₂ = Σ gradOutput * c over the M values of a channel:
/// the bias's is S₁, the weight's S₂ * r, and the input's weight * r * (gradOutput - S₁/M - c * r² * S₂/M) for batch
/// statistics, weight * r * gradOutput for running ones. Follows `torch.ops.aten.native_batch_norm_backward`.
///
/// - Parameters:
///   - input: The forward's input.
///   - gradOutput: The gradient with respect to the forward's output.
///   - weight: The forward's weight; nil means 1.
///   - saved: What the forward returned; or, after inference, `SavedStatistics(running:epsilon:)`.
public func backward<Scalar: BatchNormScalar>(
    _ input: Tensor<Scalar>, gradOutput: Tensor<Scalar>, weight: [Scalar]? = nil,
    saved: SavedStatistics
) throws(BatchNormError) -> Gradients<Scalar> {
    guard gradOutput.shape == input.shape else {
        throw .shapeMismatch(actual: gradOutput.shape, expected: input.shape)
    }
    return try Gradients(shape: input.shape) {
        (gradInput, gradWeight, gradBias) throws(BatchNormError) in
        try backward(
            input: input.elements.span, gradOutput: gradOutput.elements.span, shape: input.shape,
            weight: weight?.span, saved: saved, gradInput: &gradInput, gradWeight: &gradWeight,
            gradBias: &gradBias)
    }
}

/// The gradients of a loss, from memory of yours into memory of yours. `input`, `gradOutput` and `gradInput` hold
/// `shape.count` elements, `weight`, `gradWeight` and `gradBias` one per channel.
///
/// Gradients are written, not added. Pass an empty span (`MutableSpan()`) to skip one: what nobody wants is not
/// computed.
public func backward<Scalar: BatchNormScalar>(
    input: Span<Scalar>, gradOutput: Span<Scalar>, shape: Shape, weight: Span<Scalar>? = nil,
    saved: SavedStatistics, gradInput: inout MutableSpan<Scalar>,
    gradWeight: inout MutableSpan<Scalar>, gradBias: inout MutableSpan<Scalar>
) throws(BatchNormError) {
    // The parameter outlives the call, and with it the arrays.
    let source = Backward.Source.saved(
        mean: View(saved.mean.span), invstd: View(saved.invstd.span))
    var job = Backward(
        scalar: Scalar.scalarType, shape: shape, statistics: saved.statistics, source: source,
        input: View(input), gradOutput: View(gradOutput))
    job.weight = View(weight)
    job.gradInput = MutableView(unlessEmpty: &gradInput)
    job.gradWeight = MutableView(unlessEmpty: &gradWeight)
    job.gradBias = MutableView(unlessEmpty: &gradBias)
    try job.run()
}

extension Gradients {
    /// Gradients of this shape that `fill` writes.
    init(
        shape: Shape,
        _ fill: (
            inout MutableSpan<Scalar>, inout MutableSpan<Scalar>, inout MutableSpan<Scalar>
        ) throws(BatchNormError) -> Void
    ) throws(BatchNormError) {
        var input = try Tensor<Scalar>(repeating: 0, shape: shape)
        var weight = [Scalar](repeating: 0, count: shape.channels)
        var bias = [Scalar](repeating: 0, count: shape.channels)
        try input.withMutableSpan { (gradInput) throws(BatchNormError) in
            var gradWeight = weight.mutableSpan
            var gradBias = bias.mutableSpan
            try fill(&gradInput, &gradWeight, &gradBias)
        }
        self.input = input
        self.weight = weight
        self.bias = bias
    }
}
