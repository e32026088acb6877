// The forward in training on raw memory: what the C interface, the layer and the public functions call. Like the other
// operations it validates everything, plans, takes a workspace and runs the kernel; a run that throws has written nothing.

import CBatchNormKernels

/// Forward in training: see bn_forward_training in batchnorm.h.
package struct ForwardTraining {
    package struct Outcome {
        package var statistics: Statistics
        package var nonfiniteChannels = 0
        /// Of the running statistics, where the batch could not mend them.
        package var nonfiniteRunningChannels = 0
        /// M, without those at masked positions.
        package var valuesPerChannel: Int
    }

    package var scalar: ScalarType
    package var shape: Shape
    package var options: TrainingOptions
    package var input: View
    package var output: MutableView
    package var weight = View.absent
    package var bias = View.absent
    package var runningMean = MutableView.absent
    package var runningVar = MutableView.absent
    package var numBatchesTracked: UnsafeMutablePointer<Int64>?
    /// Of each mean and then of each variance: see skipped_batches in batchnorm.h.
    package var skippedBatches = MutableView.absent
    package var savedMean = MutableView.absent
    package var savedInvstd = MutableView.absent
    /// What `savedMean` lacks of the mean: for a recomputation with the same bits, and float64 gradients.
    package var savedMeanRest = MutableView.absent
    /// The running statistics and their counter stay as they are.
    var keepsRunning = false
    package var epilogue = ForwardEpilogue()
    package var positions = Positions()
    /// In place of the input's own.
    package var moments: MomentsView?

    package init(
        scalar: ScalarType, shape: Shape, options: TrainingOptions, input: View, output: MutableView
    ) {
        self.scalar = scalar
        self.shape = shape
        self.options = options
        self.input = input
        self.output = output
    }

    private var hasRunning: Bool { !runningMean.isAbsent }
    private var updatesRunning: Bool { hasRunning && !keepsRunning }

    /// What it moves.
    var call: BatchNormCall { BatchNormCall(.forwardTraining, epilogue, positions) }

    /// Runs it. `NonfinitePolicy.error` is the caller's to apply, with `Outcome.require`, when it has taken the
    /// outcome.
    package func run() throws(BatchNormError) -> Outcome {
        var workspace = Workspace()
        return try run(workspace: &workspace)
    }

    /// Runs it with a workspace that may serve again.
    func run(workspace: inout Workspace) throws(BatchNormError) -> Outcome {
        try validate()
        return try runValidated(workspace: &workspace)
    }

    func runValidated(workspace: inout Workspace) throws(BatchNormError) -> Outcome {
        let mask = try positions.resolve(shape, memory: &workspace.mask)
        let takingPart = shape.countTakingPart(mask)
        let count = moments?.count ?? takingPart
        guard count > 0 else {
            guard takingPart == 0 else { throw .momentsCount(.moments, actual: 0, expected: 1) }
            output.fillMasked(positions.masked, from: input, scalar)
            epilogue.activationMask.clear()
            return Outcome(statistics: .batch, valuesPerChannel: 0)
        }
        if count == 1 {
            switch options.oneValue {
            case .error: throw moments == nil ? .oneValue(shape.sizes) : .oneValueOfMoments
            case .useRunning where !hasRunning:
                throw .oneValueWithoutRunningStatistics(shape.sizes)
            case .useRunning: return try runByRunningStatistics(workspace: &workspace)
            case .allow: break
            }
        }

        var job = self.job(count: count)
        job.positions = positions.kernel(mask)
        if let moments {
            try Kernels.normalize(call, shape, scalar, moments.arrays, &job, workspace: &workspace.kernels)
        } else {
            try Kernels.forwardTraining(call, shape.grid(scalar), &job, workspace: &workspace.kernels)
        }
        if updatesRunning, let numBatchesTracked { numBatchesTracked.pointee &+= 1 }
        return Outcome(
            statistics: .batch, nonfiniteChannels: Int(job.nonfinite_channels),
            nonfiniteRunningChannels: Int(job.nonfinite_running_channels), valuesPerChannel: count)
    }

    /// The call in the kernels' words, but for positions and workspace.
    private func job(count: Int) -> bnk_forward {
        let values = Double(count)
        let counter = numBatchesTracked?.pointee ?? 0
        var job = bnk_forward()
        job.input = input.address
        job.output = output.address
        job.weight = weight.address
        job.bias = bias.address
        job.epsilon = options.epsilon
        if updatesRunning {
            job.running_mean = runningMean.address
            job.running_var = runningVar.address
        }
        job.momentum =
            switch options.averaging {
            case .exponential: options.momentum
            case .cumulative: 1 / (Double(counter) + 1)
            }
        if updatesRunning, let skipped = skippedBatches.address {
            job.skipped = skipped.assumingMemoryBound(to: Int64.self)
            if options.averaging == .cumulative, SkippedBatches.any(skippedBatches.constant) {
                job.batches = counter &+ 1
            }
        }
        job.variance_scale =
            switch options.runningVariance {
            case _ where values == 1: 0
            case .unbiased: values / (values - 1)
            case .biased: 1
            }
        job.saved_mean = savedMean.address?.assumingMemoryBound(to: Double.self)
        job.saved_mean_rest = savedMeanRest.address?.assumingMemoryBound(to: Double.self)
        job.saved_invstd = savedInvstd.address?.assumingMemoryBound(to: Double.self)
        job.count = Int64(count)
        job.epilogue = epilogue.kernel
        return job
    }

    func validate() throws(BatchNormError) {
        try shape.requireAddressable(scalar)
        try requireEpsilon(options.epsilon)
        if updatesRunning, options.averaging == .exponential {
            try requireMomentum(options.momentum)
        }

        let size = scalar.size
        let parameterSize = scalar.parameter.size
        let channels = shape.channels
        var buffers = BufferCheck()
        try buffers.read(input, .input, count: shape.count, elementSize: size)
        try buffers.write(output, .output, count: shape.count, elementSize: size)
        try buffers.read(optional: weight, .weight, count: channels, elementSize: parameterSize)
        try buffers.read(optional: bias, .bias, count: channels, elementSize: parameterSize)
        guard runningMean.isAbsent == runningVar.isAbsent else {
            throw .missing(runningMean.isAbsent ? .runningMean : .runningVar)
        }
        try buffers.write(optional: runningMean, .runningMean, count: channels, elementSize: parameterSize)
        try buffers.write(optional: runningVar, .runningVar, count: channels, elementSize: parameterSize)
        try buffers.write(optional: savedMean, .savedMean, count: channels, elementSize: 8)
        try buffers.write(optional: savedInvstd, .savedInvstd, count: channels, elementSize: 8)
        try buffers.write(optional: savedMeanRest, .savedMeanRest, count: channels, elementSize: 8)
        if let numBatchesTracked {
            let counter = MutableView(numBatchesTracked, count: 1)
            try buffers.write(counter, .numBatchesTracked, count: 1, elementSize: 8)
        }
        try buffers.write(
            optional: skippedBatches, .skippedBatches, count: 2 &* channels, elementSize: 8)
        try epilogue.validate(shape, elementSize: size, &buffers)
        try positions.validate(shape, &buffers)
        if let moments { try moments.requireReadable(.moments, channels: channels, &buffers) }
        try buffers.requireSeparate()

        if updatesRunning {
            if let counter = numBatchesTracked?.pointee {
                guard 0 <= counter, counter < .max else {
                    throw .batchCounter(actual: Int(counter))
                }
            } else if options.averaging == .cumulative || !skippedBatches.isAbsent {
                throw .missing(.numBatchesTracked)
            }
            try SkippedBatches.require(skippedBatches.constant, of: numBatchesTracked?.pointee ?? 0)
        }
        if let moments { try moments.requireValid(.moments, least: positions.leastCount(shape)) }
    }

    private func runByRunningStatistics(workspace: inout Workspace) throws(BatchNormError) -> Outcome {
        if !savedMean.isAbsent || !savedInvstd.isAbsent {
            // The kernel writes both; what the caller does not want goes into the workspace.
            try workspace.kernels.reserve(shape.channels &* 8)
            Kernels.statisticsFromRunning(
                channels: shape.channels, scalar, mean: runningMean.address,
                variance: runningVar.address, epsilon: options.epsilon,
                savedMean: savedMean.address ?? workspace.kernels.address,
                savedInvstd: savedInvstd.address ?? workspace.kernels.address)
        }
        savedMeanRest.zero()
        var job = ForwardInference(
            scalar: scalar, shape: shape, input: input, output: output,
            source: .running(
                mean: runningMean.constant, variance: runningVar.constant, epsilon: options.epsilon))
        job.weight = weight
        job.bias = bias
        job.epilogue = epilogue
        job.positions = positions
        try job.runValidated(workspace: &workspace)
        return Outcome(statistics: .running, valuesPerChannel: 1)
    }
}

extension ForwardTraining.Outcome {
    /// Throws if there are non-finite channels and the policy makes them an error.
    package func require(_ policy: NonfinitePolicy, of channels: Int) throws(BatchNormError) {
        guard policy == .error, nonfiniteChannels > 0 || nonfiniteRunningChannels > 0 else { return }
        throw .nonfinite(
            channels: nonfiniteChannels, runningChannels: nonfiniteRunningChannels, of: channels)
    }
}
