// A layer whose element type is known at run time: what `BatchNormLayer` and the C interface's bn_layer both are.
// It owns parameters, running statistics and what backward needs, and leaves all arithmetic to the stateless operations.
// One thread at a time. Large memory comes from `Memory`, which may fail; the object itself has a small, fixed size.

package final class LayerCore {
    package let scalar: ScalarType
    package private(set) var options: LayerOptions
    package var isTraining = true

    /// Weight, bias, running mean and running variance, as far as there are any.
    private var parameters = Memory()
    /// Where there are running statistics: 2 * C counters, see skipped_batches in batchnorm.h.
    private var skipped = Memory()
    /// Mean, invstd and mean's rest of the last forward: 3 * C float64 values, from the first forward with values on.
    private var saved = Memory()
    /// Of the last forward, where it had an activation: one bit a value, whether that let pass.
    private var bits = Memory()
    /// Of the last forward, where positions were masked: one byte each.
    private var mask = Memory()
    private var workspace = Workspace()
    /// How many batches the running statistics have taken in.
    var batches: Int64 = 0

    private struct LastForward {
        var shape: Shape
        var outcome: ForwardTraining.Outcome
        var activation: Activation
        var hasResidual: Bool
        var isMasked: Bool
        var masked: MaskedOutput
    }
    private var lastForward: LastForward?

    package init(scalar: ScalarType, options: LayerOptions) throws(BatchNormError) {
        self.scalar = scalar
        self.options = options
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
            if !shape.isEmpty { try reserveSaved() }
            job.savedMean = savedMean
            job.savedInvstd = savedInvstd
            job.savedMeanRest = savedMeanRest
            try keepBits(of: &job.epilogue, job.positions, shape)
            return try job.runValidated(workspace: &workspace)
        }
        try remember(shape, outcome, epilogue, positions)
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
            epsilon: options.training.epsilon, savedMean: savedMean.address,
            savedInvstd: savedInvstd.address)
        savedMeanRest.zero()
        let outcome = ForwardTraining.Outcome(
            statistics: .running, valuesPerChannel: shape.valuesPerChannel)
        try remember(shape, outcome, epilogue, positions)
    }

    private func recompute(
        _ shape: Shape, input: View, output: MutableView, _ epilogue: ForwardEpilogue, _ positions: Positions
    ) throws(BatchNormError) {
        let last = try requireLastForward(shape)
        var job = ForwardInference(scalar: scalar, shape: shape, input: input, output: output, source: savedStatistics)
        job.epilogue = epilogue
        job.positions = positions
        try run(&job, repeating: last)
        try remember(shape, last.outcome, epilogue, positions)
    }

    /// Throws unless these are the last forward's. If they are not, the caller means another forward than the last one:
    /// a layer that is used twice, say. Its statistics are gone.
    private func requireSame(
        _ epilogue: ForwardEpilogue, _ positions: Positions, as last: LastForward
    ) throws(BatchNormError) {
        let slope = epilogue.activation.negativeSlope
        guard slope == last.activation.negativeSlope else {
            throw .recomputeMismatch(
                .activation, actual: .real(slope), expected: .real(last.activation.negativeSlope))
        }
        guard epilogue.residual.isAbsent != last.hasResidual else {
            throw .recomputeMismatch(
                .residual, actual: .integer(epilogue.residual.count),
                expected: .integer(last.hasResidual ? last.shape.count : 0))
        }
        guard last.isMasked || !positions.isAbsent, !last.shape.isEmpty else { return }
        let now = try positions.resolve(last.shape, memory: &workspace.mask)
        let before = last.isMasked ? mask.address?.assumingMemoryBound(to: UInt8.self) : nil
        var isMasked = false
        for position in 0..<last.shape.valuesPerChannel {
            let takesPart = now.map { $0[position] != 0 } ?? true
            guard takesPart == (before.map { $0[position] != 0 } ?? true) else {
                throw .recomputeMask(position: position, takesPart: takesPart)
            }
            isMasked = isMasked || !takesPart
        }
        guard !isMasked || positions.masked == last.masked else {
            throw .recomputeMismatch(
                .masked, actual: .integer(Int(positions.masked.rawValue)),
                expected: .integer(Int(last.masked.rawValue)))
        }
    }

    private func run(
        _ job: inout ForwardInference, savesRunning: Bool = false, repeating last: LastForward? = nil
    ) throws(BatchNormError) {
        job.weight = weight.constant
        job.bias = bias.constant
        try job.validate()
        if let last { try requireSame(job.epilogue, job.positions, as: last) }
        if savesRunning { try reserveSaved() }
        try keepBits(of: &job.epilogue, job.positions, job.shape)
        try job.runValidated(workspace: &workspace)
    }

    /// Backward of the last forward, with the statistics which that one used.
    package func backward(
        _ scalar: ScalarType, _ shape: Shape, input: View, gradOutput: View, gradInput: MutableView,
        gradWeight: MutableView, gradBias: MutableView, gradResidual: MutableView = .absent
    ) throws(BatchNormError) {
        try requireMatch(scalar, shape)
        let last = try requireLastForward(shape)
        var job = Backward(
            scalar: scalar, shape: shape, statistics: last.outcome.statistics,
            source: savedStatistics, input: input, gradOutput: gradOutput)
        job.weight = weight.constant
        job.gradInput = gradInput
        job.gradWeight = gradWeight
        job.gradBias = gradBias
        job.epilogue.gradResidual = gradResidual
        job.epilogue.activation = last.activation
        if last.activation != .none { job.epilogue.activationMask = bits(of: shape).constant }
        if last.isMasked { job.positions.mask = View(mask.address, count: shape.valuesPerChannel) }
        job.positions.masked = last.masked
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

    // MARK: What the last forward saved

    /// False until a forward had values.
    private var hasSaved: Bool { saved.address != nil }

    private func reserveSaved() throws(BatchNormError) {
        guard !hasSaved else { return }
        try saved.reserve(3 &* channels &* 8)
        saved.address?.initializeMemory(as: Double.self, repeating: 0, count: 3 &* channels)
    }

    /// What the last forward normalized by.
    private var savedStatistics: GivenStatistics {
        guard hasSaved else { return .nothing }
        return .saved(mean: savedMean.constant, invstd: savedInvstd.constant, rest: savedMeanRest.constant)
    }

    private var savedMean: MutableView { savedArray(0) }
    private var savedInvstd: MutableView { savedArray(1) }
    private var savedMeanRest: MutableView { savedArray(2) }

    private func savedArray(_ index: Int) -> MutableView {
        guard let address = saved.address else { return .absent }
        return MutableView(address + index &* channels &* 8, count: channels)
    }

    private func bits(of shape: Shape) -> MutableView {
        MutableView(bits.address, count: Activation.maskBytes(shape.count))
    }

    /// Room for all that a forward with valid arguments leaves behind, and where its activation's bits go. The
    /// last forward's stay until it runs.
    private func keepBits(
        of epilogue: inout ForwardEpilogue, _ positions: Positions, _ shape: Shape
    ) throws(BatchNormError) {
        epilogue.activationMask = .absent
        // At least a byte, so that those of an empty batch are there as well.
        if epilogue.activation != .none {
            try bits.grow(Activation.maskBytes(shape.count) &+ 1)
            epilogue.activationMask = bits(of: shape)
        }
        if !positions.isAbsent { try mask.grow(shape.valuesPerChannel &+ 1) }
    }

    /// What backward needs of a forward that has run.
    private func remember(
        _ shape: Shape, _ outcome: ForwardTraining.Outcome, _ epilogue: ForwardEpilogue, _ positions: Positions
    ) throws(BatchNormError) {
        try positions.store(shape, in: &mask)
        lastForward = LastForward(
            shape: shape, outcome: outcome, activation: epilogue.activation,
            hasResidual: !epilogue.residual.isAbsent, isMasked: !positions.isAbsent,
            masked: positions.masked)
    }

    private func requireLastForward(_ shape: Shape) throws(BatchNormError) -> LastForward {
        guard let lastForward else { throw .noForward }
        guard shape == lastForward.shape else {
            throw .shapeMismatch(actual: shape, expected: lastForward.shape)
        }
        return lastForward
    }

    /// Which statistics the last forward used, and how many channels of what were not finite.
    package func outcome() throws(BatchNormError) -> ForwardTraining.Outcome {
        guard let lastForward else { throw .noForward }
        return lastForward.outcome
    }

    /// Whether the last forward added a residual.
    var hadResidual: Bool { lastForward?.hasResidual ?? false }

    /// Copies out the mean that the last forward normalized with.
    package func getSavedMean(into out: MutableView) throws(BatchNormError) {
        try getSaved(savedMean, into: out)
    }

    /// Copies out what that mean lacks.
    package func getSavedMeanRest(into out: MutableView) throws(BatchNormError) {
        try getSaved(savedMeanRest, into: out)
    }

    /// Copies out the inverse standard deviation that the last forward normalized with.
    package func getSavedInvstd(into out: MutableView) throws(BatchNormError) {
        try getSaved(savedInvstd, into: out)
    }

    private func getSaved(_ view: MutableView, into out: MutableView) throws(BatchNormError) {
        _ = try outcome()
        try copy(view.constant, .float64, to: out)
        if !hasSaved { out.zero() }
    }
}
