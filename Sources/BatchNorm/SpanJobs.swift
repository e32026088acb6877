// What the public functions share: how spans and values become jobs, and what jobs leave becomes values. Who makes views of
// spans and arrays keeps these alive until the job is done.

/// Either forward, as far as the two take the same.
protocol Forward {
    var weight: View { get set }
    var bias: View { get set }
    var epilogue: ForwardEpilogue { get set }
    var positions: Positions { get set }
}

extension ForwardTraining: Forward {}
extension ForwardInference: Forward {}

extension Forward {
    /// What is done to the values, and which of them take part.
    mutating func take<Scalar: BatchNormScalar>(
        _ weight: Span<Scalar.Parameter>?, _ bias: Span<Scalar.Parameter>?, _ activation: Activation,
        _ residual: Span<Scalar>?, _ mask: PositionMask?
    ) {
        self.weight = View(weight)
        self.bias = View(bias)
        epilogue = ForwardEpilogue(activation, residual)
        positions = Positions(mask)
    }
}

extension ForwardTraining {
    /// The batch is taken into these.
    mutating func update<Scalar>(_ running: consuming MutableRunningStatistics<Scalar>?) {
        guard let running else { return }
        runningMean = running.mean
        runningVar = running.variance
        numBatchesTracked = running.numBatchesTracked.address?.assumingMemoryBound(to: Int64.self)
        skippedBatches = running.skippedBatches
    }

    /// `mask` is what the positions have views of.
    func runAndSave(_ mask: PositionMask? = nil) throws(BatchNormError) -> SavedStatistics {
        defer { withExtendedLifetime(mask) {} }
        var saved = try SavedStatistics(channels: shape.channels)
        var activationMask: ActivationMask?
        let outcome = try saved.withViews { (mean, invstd, rest) throws(BatchNormError) in
            var job = self
            job.savedMean = mean
            job.savedInvstd = invstd
            job.savedMeanRest = rest
            return try job.run(bits: &activationMask)
        }
        try outcome.require(options.nonfinite, of: shape.channels)
        saved.statistics = outcome.statistics
        saved.nonfiniteChannels = outcome.nonfiniteChannels
        saved.nonfiniteRunningChannels = outcome.nonfiniteRunningChannels
        saved.activationMask = activationMask
        saved.positionMask = mask
        saved.hasResidual = !epilogue.residual.isAbsent
        return saved
    }

    /// Runs it with a mask of the activation's, which is there afterwards if there is an activation.
    private func run(bits: inout ActivationMask?) throws(BatchNormError) -> Outcome {
        guard epilogue.activation != .none else { return try run() }
        // Before there is memory for so many values as the shape says.
        try validate()
        var own = try ActivationMask(epilogue.activation, count: shape.count)
        let outcome = try own.withView { (view) throws(BatchNormError) in
            var job = self
            job.epilogue.activationMask = view
            return try job.run()
        }
        bits = own
        return outcome
    }
}

extension Backward {
    /// The way back of the forward that saved this.
    init<Scalar: BatchNormScalar>(
        _ input: Span<Scalar>, _ gradOutput: Span<Scalar>, _ shape: Shape, _ saved: SavedStatistics
    ) {
        self.init(
            scalar: Scalar.scalarType, shape: shape, statistics: saved.statistics,
            source: .saved(saved), input: View(input), gradOutput: View(gradOutput))
        epilogue = BackwardEpilogue(saved)
        positions = Positions(saved.positionMask)
    }

    /// The forward's weight, and where the gradients go.
    mutating func take<Scalar: BatchNormScalar>(
        _ weight: Span<Scalar.Parameter>?, _ gradInput: consuming MutableSpan<Scalar>?,
        _ gradWeight: consuming MutableSpan<Scalar.Parameter>?,
        _ gradBias: consuming MutableSpan<Scalar.Parameter>?, _ gradResidual: consuming MutableSpan<Scalar>?
    ) {
        self.weight = View(weight)
        self.gradInput = MutableView(gradInput)
        self.gradWeight = MutableView(gradWeight)
        self.gradBias = MutableView(gradBias)
        epilogue.gradResidual = MutableView(gradResidual)
    }
}

extension Gradients {
    /// Gradients of this shape that `fill` writes; the residual's only if there was one.
    init(
        shape: Shape, hasResidual: Bool,
        _ fill: (
            consuming MutableSpan<Scalar>, consuming MutableSpan<Scalar.Parameter>,
            consuming MutableSpan<Scalar.Parameter>, consuming MutableSpan<Scalar>?
        ) throws(BatchNormError) -> Void
    ) throws(BatchNormError) {
        var input = try Tensor<Scalar>.zeros(shape)
        var weight = try [Scalar.Parameter](allocating: shape.channels, of: 0)
        var bias = try [Scalar.Parameter](allocating: shape.channels, of: 0)
        var residual = hasResidual ? try Tensor<Scalar>.zeros(shape) : nil
        try fill(input.mutableSpan, weight.mutableSpan, bias.mutableSpan, residual?.mutableSpan)
        self.init(input: input, weight: weight, bias: bias, residual: residual)
    }
}

extension GivenStatistics {
    static func saved(_ saved: SavedStatistics) -> GivenStatistics {
        .saved(mean: View(saved.mean.span), invstd: View(saved.invstd.span), rest: View(saved.meanRest.span))
    }
}

extension Positions {
    init(_ mask: PositionMask?) {
        self.init()
        guard let mask else { return }
        masked = mask.masked
        switch mask.content {
        case .positions(let takePart): self.mask = View(takePart.span)
        case .lengths(let lengths): self.lengths = View(lengths.span)
        }
    }
}

extension ForwardEpilogue {
    init<Scalar: BatchNormScalar>(
        _ activation: Activation, _ residual: Span<Scalar>?
    ) {
        self.init()
        self.activation = activation
        self.residual = View(residual)
    }
}

extension BackwardEpilogue {
    init(_ saved: SavedStatistics) {
        self.init()
        if let mask = saved.activationMask {
            activation = mask.activation
            activationMask = View(mask.bytes.span)
        }
    }
}

extension Tensor {
    /// Throws unless this is a residual for such an input.
    func requireResidual(of input: Tensor) throws(BatchNormError) {
        guard shape == input.shape else {
            throw .shapeMismatch(actual: shape, expected: input.shape)
        }
    }
}
