// A layer whose element type is known at run time: what `BatchNormLayer` and the C interface's bn_layer both are.
// It owns parameters and running statistics, and leaves what backward needs to LastForward, all arithmetic to the
// stateless operations.
// One thread at a time. Large memory comes from `Memory`, which may fail; the object itself has a small, fixed size.

package final class LayerCore {
    package let scalar: ScalarType
    package private(set) var options: LayerOptions
    package var isTraining = true

    /// Weight, bias, running mean and running variance, as far as there are any.
    private var parameters = Memory()
    /// Where there are running statistics: 2 * C counters, see skipped_batches in batchnorm.h.
    private var skipped = Memory()
    private var last: LastForward
    private var workspace = Workspace()
    /// How many batches the running statistics have taken in.
    var batches: Int64 = 0

    package init(scalar: ScalarType, options: LayerOptions) throws(BatchNormError) {
        self.scalar = scalar
        self.options = options
        self.last = LastForward(channels: options.numFeatures)
        guard options.numFeatures > 0 else {
            throw options.numFeatures == 0
                ? .noChannels : .negativeCount(.numFeatures, actual: options.numFeatures)
        }
        try requireEpsilon(options.training.epsilon)
        if options.training.averaging == .exponential {
            try requireMomentum(options.training.momentum)
        }
        // As of a tensor (4, C) of float64: all arrays together must be addressable.
        let arrays = try Shape(sizes: Sizes(4, options.numFeatures, rank: 2), layout: .nchw)
        try arrays.requireAddressable(.float64)
        try parameters.reserve(options.arrayCount &* arrayBytes)
        if options.trackRunningStats { try skipped.reserve(2 &* channels &* 8) }
        fill(weight, with: 1)
        fill(bias, with: 0)
        fill(runningMean, with: 0)
        fill(runningVar, with: 1)
        skippedBatches.zero()
    }

    // MARK: Options that may change

    /// From the next forward on; backward and recomputation go by what the last one used.
    package func setEpsilon(_ epsilon: Double) throws(BatchNormError) {
        try requireEpsilon(epsilon)
        options.training.epsilon = epsilon
    }

    /// The momentum counts where the averaging is exponential.
    package func setMomentum(
        _ momentum: Double, _ averaging: Averaging
    ) throws(BatchNormError) {
        if averaging == .exponential { try requireMomentum(momentum) }
        options.training.momentum = momentum
        options.training.averaging = averaging
    }

    private var channels: Int { options.numFeatures }
    private var arrayBytes: Int { channels &* scalar.parameter.size }

    // MARK: Parameters and statistics

    /// The layer's own arrays, C elements each; absent where the options say so.
    package var weight: MutableView { options.hasWeight ? array(0) : .absent }
    package var bias: MutableView { options.hasBias ? array(options.hasWeight ? 1 : 0) : .absent }
    package var runningMean: MutableView {
        options.trackRunningStats ? array(options.arrayCount &- 2) : .absent
    }
    package var runningVar: MutableView {
        options.trackRunningStats ? array(options.arrayCount &- 1) : .absent
    }

    package var skippedBatches: MutableView {
        options.trackRunningStats ? MutableView(skipped.address, count: 2 &* channels) : .absent
    }

    private func array(_ index: Int) -> MutableView {
        MutableView(parameters.address?.advanced(by: index &* arrayBytes), count: channels)
    }

    private func fill(_ view: MutableView, with value: Double) {
        guard let address = view.address else { return }
        switch scalar {
        case .float32, .bfloat16, .float16:
            address.initializeMemory(as: Float.self, repeating: Float(value), count: view.count)
        case .float64:
            address.initializeMemory(as: Double.self, repeating: value, count: view.count)
        }
    }

    /// The array of that name; throws if the layer has none.
    package func parameter(
        _ argument: BatchNormError.Argument
    ) throws(BatchNormError) -> MutableView {
        let view: MutableView =
            switch argument {
            case .weight: weight
            case .bias: bias
            case .runningMean: runningMean
            case .runningVar: runningVar
            default: .absent
            }
        guard !view.isAbsent else {
            switch argument {
            case .runningMean, .runningVar: throw .noRunningStatistics
            default: throw .noParameter(argument)
            }
        }
        return view
    }

    /// Copies an array out of the layer.
    package func get(
        _ argument: BatchNormError.Argument, into out: MutableView
    ) throws(BatchNormError) {
        try copy(try parameter(argument).constant, scalar.parameter, to: out)
    }

    /// Copies an array into the layer.
    package func set(
        _ argument: BatchNormError.Argument, to values: View
    ) throws(BatchNormError) {
        let target = try parameter(argument)
        try requireBuffer(
            values.address, count: values.count, is: channels, elementSize: scalar.parameter.size, .values)
        guard let to = target.address, let from = values.address else { return }
        to.copyMemory(from: from, byteCount: arrayBytes)
    }

    private func copy(
        _ source: View, _ scalar: ScalarType, to out: MutableView
    ) throws(BatchNormError) {
        try requireBuffer(
            out.address, count: out.count, is: channels, elementSize: scalar.size, .out)
        guard let to = out.address, let from = source.address else { return }
        to.copyMemory(from: from, byteCount: channels &* scalar.size)
    }

    /// How many batches the running statistics have taken in.
    package func numBatchesTracked() throws(BatchNormError) -> Int64 {
        guard options.trackRunningStats else { throw .noRunningStatistics }
        return batches
    }

    /// None of these batches counts as skipped.
    package func setNumBatchesTracked(_ count: Int64) throws(BatchNormError) {
        guard options.trackRunningStats else { throw .noRunningStatistics }
        guard count >= 0 else { throw .batchCounter(actual: Int(count)) }
        batches = count
        skippedBatches.zero()
    }

    /// Copies out how many batches each running mean, and then each running variance, has not taken in.
    package func getSkippedBatches(into out: MutableView) throws(BatchNormError) {
        try requireSkippedBatches(out.constant)
        guard let to = out.address, let from = skippedBatches.address else { return }
        to.copyMemory(from: from, byteCount: 2 &* channels &* 8)
    }

    package func setSkippedBatches(to counters: View) throws(BatchNormError) {
        try requireSkippedBatches(counters)
        try SkippedBatches.require(counters, of: batches)
        guard let to = skippedBatches.address, let from = counters.address else { return }
        to.copyMemory(from: from, byteCount: 2 &* channels &* 8)
    }

    private func requireSkippedBatches(_ counters: View) throws(BatchNormError) {
        guard options.trackRunningStats else { throw .noRunningStatistics }
        try requireBuffer(
            counters.address, count: counters.count, is: 2 &* channels, elementSize: 8, .skippedBatches)
    }

    /// Mean 0, variance 1, all counters 0.
    package func resetRunningStats() throws(BatchNormError) {
        guard options.trackRunningStats else { throw .noRunningStatistics }
        fill(runningMean, with: 0)
        fill(runningVar, with: 1)
        batches = 0
        skippedBatches.zero()
    }

    // MARK: Forward and backward

    /// Forward in the layer's mode, or as `pass` says. The activation's mask is the layer's own.
    package func forward(
        _ scalar: ScalarType, _ shape: Shape, pass: ForwardPass = .normal, input: View,
        output: MutableView, epilogue: ForwardEpilogue = ForwardEpilogue(),
        positions: Positions = Positions()
    ) throws(BatchNormError) {
        try requireMatch(scalar, shape)
        switch pass {
        case .recompute:
            try recompute(shape, input: input, output: output, epilogue, positions)
        case _ where isTraining || !options.trackRunningStats:
            try forwardByBatch(
                shape, keepsRunning: pass == .keepRunning, input: input, output: output, epilogue, positions)
        default:
            try forwardByRunning(shape, input: input, output: output, epilogue, positions)
        }
    }

    private func forwardByBatch(
        _ shape: Shape, keepsRunning: Bool, input: View, output: MutableView,
        _ epilogue: ForwardEpilogue, _ positions: Positions
    ) throws(BatchNormError) {
        var job = ForwardTraining(
            scalar: scalar, shape: shape, options: options.training, input: input, output: output)
        job.weight = weight.constant
        job.bias = bias.constant
        job.runningMean = runningMean
        job.runningVar = runningVar
        job.skippedBatches = skippedBatches
        job.keepsRunning = keepsRunning
        job.epilogue = epilogue
        job.positions = positions
        let outcome = try withUnsafeMutablePointer(to: &batches) {
            (counter) throws(BatchNormError) in
            job.numBatchesTracked = counter
            try job.validate()
            // Only now is it known that the caller has values of so many channels.
            if !shape.isEmpty { try last.reserveStatistics() }
            job.savedMean = last.mean
            job.savedInvstd = last.invstd
            job.savedMeanRest = last.meanRest
            try last.makeRoom(for: &job.epilogue, job.positions, shape)
            return try job.runValidated(workspace: &workspace)
        }
        try last.remember(shape, outcome, epilogue, positions)
        try outcome.require(options.training.nonfinite, of: channels)
    }

    private func forwardByRunning(
        _ shape: Shape, input: View, output: MutableView, _ epilogue: ForwardEpilogue, _ positions: Positions
    ) throws(BatchNormError) {
        var job = ForwardInference(
            scalar: scalar, shape: shape, input: input, output: output,
            source: .running(
                mean: runningMean.constant, variance: runningVar.constant, epsilon: options.training.epsilon))
        job.epilogue = epilogue
        job.positions = positions
        try run(&job, savesRunning: true)
        // Remembered as numbers, so that backward stays right when the running statistics move on.
        Kernels.statisticsFromRunning(
            channels: channels, scalar, mean: runningMean.address, variance: runningVar.address,
            epsilon: options.training.epsilon, savedMean: last.mean.address, savedInvstd: last.invstd.address)
        last.meanRest.zero()
        let outcome = ForwardTraining.Outcome(
            statistics: .running, valuesPerChannel: shape.valuesPerChannel)
        try last.remember(shape, outcome, epilogue, positions)
    }

    private func recompute(
        _ shape: Shape, input: View, output: MutableView, _ epilogue: ForwardEpilogue, _ positions: Positions
    ) throws(BatchNormError) {
        let outcome = try last.call(of: shape).outcome
        var job = ForwardInference(scalar: scalar, shape: shape, input: input, output: output, source: last.statistics)
        job.epilogue = epilogue
        job.positions = positions
        try run(&job, isRepetition: true)
        try last.remember(shape, outcome, epilogue, positions)
    }

    private func run(
        _ job: inout ForwardInference, savesRunning: Bool = false, isRepetition: Bool = false
    ) throws(BatchNormError) {
        job.weight = weight.constant
        job.bias = bias.constant
        try job.validate()
        if isRepetition { try last.requireSame(job.epilogue, job.positions, job.shape, memory: &workspace.mask) }
        if savesRunning { try last.reserveStatistics() }
        try last.makeRoom(for: &job.epilogue, job.positions, job.shape)
        try job.runValidated(workspace: &workspace)
    }

    /// Backward of the last forward, with the statistics which that one used.
    package func backward(
        _ scalar: ScalarType, _ shape: Shape, input: View, gradOutput: View, gradInput: MutableView,
        gradWeight: MutableView, gradBias: MutableView, gradResidual: MutableView = .absent
    ) throws(BatchNormError) {
        try requireMatch(scalar, shape)
        let call = try last.call(of: shape)
        var job = Backward(
            scalar: scalar, shape: shape, statistics: call.outcome.statistics,
            source: last.statistics, input: input, gradOutput: gradOutput)
        job.weight = weight.constant
        job.gradInput = gradInput
        job.gradWeight = gradWeight
        job.gradBias = gradBias
        job.epilogue = last.epilogue(of: call)
        job.epilogue.gradResidual = gradResidual
        job.positions = last.positions(of: call)
        try job.run(workspace: &workspace)
    }

    private func requireMatch(
        _ scalar: ScalarType, _ shape: Shape
    ) throws(BatchNormError) {
        guard scalar == self.scalar else {
            throw .scalarTypeMismatch(actual: scalar, expected: self.scalar)
        }
        guard shape.channels == channels else {
            throw .channelsMismatch(actual: shape.channels, expected: channels)
        }
    }

    // MARK: The last forward

    /// Which statistics the last forward used, and how many channels of what were not finite.
    package func outcome() throws(BatchNormError) -> ForwardTraining.Outcome {
        try last.call().outcome
    }

    /// Whether the last forward added a residual.
    var hadResidual: Bool { (try? last.call())?.hasResidual ?? false }

    /// Copies out the mean that the last forward normalized with (`.savedMean`), what it lacks (`.savedMeanRest`) or the
    /// inverse standard deviation (`.savedInvstd`).
    package func getSaved(
        _ argument: BatchNormError.Argument, into out: MutableView
    ) throws(BatchNormError) {
        _ = try outcome()
        let view: MutableView =
            switch argument {
            case .savedMean: last.mean
            case .savedMeanRest: last.meanRest
            default: last.invstd
            }
        try copy(view.constant, .float64, to: out)
        if view.isAbsent { out.zero() }
    }
}
