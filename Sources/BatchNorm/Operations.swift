// The stateless operations on raw memory: the C interface, the layer and the public functions all call these. The order
// is always the same: validate everything, plan, take a workspace, run the kernel, then count. A run that throws has
// written nothing.

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
            case .useRunning: return try runByRunningStatistics(mask, workspace: &workspace)
            case .allow: break
            }
        }

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
        job.positions = positions.kernel(mask)
        if let moments {
            try Kernels.normalize(
                shape, scalar, moments.arrays, &job, extraTensors: epilogue.tensors,
                workspace: &workspace.kernels)
        } else {
            try Kernels.forwardTraining(
                shape.grid(scalar), &job, extraTensors: epilogue.tensors,
                workspace: &workspace.kernels)
        }
        if updatesRunning { numBatchesTracked?.pointee = counter &+ 1 }
        return Outcome(
            statistics: .batch, nonfiniteChannels: Int(job.nonfinite_channels),
            nonfiniteRunningChannels: Int(job.nonfinite_running_channels), valuesPerChannel: count)
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

    private func runByRunningStatistics(
        _ mask: UnsafePointer<UInt8>?, workspace: inout Workspace
    ) throws(BatchNormError) -> Outcome {
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
        guard !shape.isEmpty else {
            return Outcome(statistics: .running, valuesPerChannel: 1)
        }
        var job = bnk_inference()
        job.input = input.address
        job.output = output.address
        job.weight = weight.address
        job.bias = bias.address
        job.statistics.epsilon = options.epsilon
        job.statistics.running_mean = UnsafeRawPointer(runningMean.address)
        job.statistics.running_var = UnsafeRawPointer(runningVar.address)
        job.epilogue = epilogue.kernel
        job.positions = positions.kernel(mask)
        Kernels.forwardInference(shape.grid(scalar), &job, extraTensors: epilogue.tensors)
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

/// Forward in inference: see bn_forward_inference in batchnorm.h.
package struct ForwardInference {
    package var scalar: ScalarType
    package var shape: Shape
    package var epsilon: Double
    package var input: View
    package var output: MutableView
    package var weight = View.absent
    package var bias = View.absent
    package var runningMean: View
    package var runningVar: View
    package var epilogue = ForwardEpilogue()
    package var positions = Positions()
    /// Mean and invstd in float64, in place of the running statistics and epsilon.
    package var saved: (mean: View, invstd: View)?
    /// What the saved mean lacks.
    package var savedMeanRest = View.absent
    /// False of an empty batch, where a layer has had no other.
    var needsStatistics = true

    package init(
        scalar: ScalarType, shape: Shape, epsilon: Double, input: View, output: MutableView,
        runningMean: View = .absent, runningVar: View = .absent
    ) {
        self.scalar = scalar
        self.shape = shape
        self.epsilon = epsilon
        self.input = input
        self.output = output
        self.runningMean = runningMean
        self.runningVar = runningVar
    }

    package func run() throws(BatchNormError) {
        var workspace = Workspace()
        try run(workspace: &workspace)
    }

    /// Runs it with a workspace that may serve again.
    func run(workspace: inout Workspace) throws(BatchNormError) {
        try validate()
        try runValidated(workspace: &workspace)
    }

    func runValidated(workspace: inout Workspace) throws(BatchNormError) {
        let mask = try positions.resolve(shape, memory: &workspace.mask)
        guard !shape.isEmpty else { return }

        var job = bnk_inference()
        job.input = input.address
        job.output = output.address
        job.weight = weight.address
        job.bias = bias.address
        job.statistics.epsilon = epsilon
        job.statistics.mean = saved?.mean.address?.assumingMemoryBound(to: Double.self)
        job.statistics.mean_rest = savedMeanRest.address?.assumingMemoryBound(to: Double.self)
        job.statistics.invstd = saved?.invstd.address?.assumingMemoryBound(to: Double.self)
        job.statistics.running_mean = runningMean.address
        job.statistics.running_var = runningVar.address
        job.epilogue = epilogue.kernel
        job.positions = positions.kernel(mask)
        Kernels.forwardInference(shape.grid(scalar), &job, extraTensors: epilogue.tensors)
    }

    func validate() throws(BatchNormError) {
        try shape.requireAddressable(scalar)
        if saved == nil { try requireEpsilon(epsilon) }
        let size = scalar.size
        let parameterSize = scalar.parameter.size
        let channels = shape.channels
        var buffers = BufferCheck()
        try buffers.read(input, .input, count: shape.count, elementSize: size)
        try buffers.write(output, .output, count: shape.count, elementSize: size)
        try buffers.read(optional: weight, .weight, count: channels, elementSize: parameterSize)
        try buffers.read(optional: bias, .bias, count: channels, elementSize: parameterSize)
        switch saved {
        case _ where !needsStatistics: break
        case let saved?:
            try buffers.read(saved.mean, .savedMean, count: channels, elementSize: 8)
            try buffers.read(saved.invstd, .savedInvstd, count: channels, elementSize: 8)
            try buffers.read(optional: savedMeanRest, .savedMeanRest, count: channels, elementSize: 8)
        case nil:
            try buffers.read(runningMean, .runningMean, count: channels, elementSize: parameterSize)
            try buffers.read(runningVar, .runningVar, count: channels, elementSize: parameterSize)
        }
        try epilogue.validate(shape, elementSize: size, &buffers)
        try positions.validate(shape, &buffers)
        try buffers.requireSeparate()
    }
}

/// Backward: see bn_backward in batchnorm.h.
package struct Backward {
    /// Where mean and invstd of the forward come from.
    package enum Source {
        /// float64 values that the forward saved.
        case saved(mean: View, invstd: View)
        /// Running statistics, of the parameter type.
        case running(mean: View, variance: View, epsilon: Double)
        /// An empty batch's, where a layer has had no other.
        case nothing
    }

    package var scalar: ScalarType
    package var shape: Shape
    package var statistics: Statistics
    package var source: Source
    /// What a saved mean lacks; float64 gradients lose digits without it where the mean is large beside the deviation.
    package var savedMeanRest = View.absent
    package var input: View
    package var gradOutput: View
    package var weight = View.absent
    package var gradInput = MutableView.absent
    package var gradWeight = MutableView.absent
    package var gradBias = MutableView.absent
    package var epilogue = BackwardEpilogue()
    package var positions = Positions()
    /// Of the whole batch, in place of the tensors' own.
    package var sums: GradientSumsView?

    package init(
        scalar: ScalarType, shape: Shape, statistics: Statistics, source: Source, input: View,
        gradOutput: View
    ) {
        self.scalar = scalar
        self.shape = shape
        self.statistics = statistics
        self.source = source
        self.input = input
        self.gradOutput = gradOutput
    }

    package func run() throws(BatchNormError) {
        var workspace = Workspace()
        try run(workspace: &workspace)
    }

    /// Runs it with a workspace that may serve again.
    func run(workspace: inout Workspace) throws(BatchNormError) {
        try validate()
        let mask = try positions.resolve(shape, memory: &workspace.mask)
        let takingPart = shape.countTakingPart(mask)
        let count = sums?.count ?? takingPart
        guard count > 0 else {
            guard takingPart == 0 else { throw .momentsCount(.sums, actual: 0, expected: 1) }
            gradInput.fillMasked(positions.masked, from: gradOutput, scalar)
            epilogue.gradResidual.fillMasked(.zero, from: gradOutput, scalar)
            gradWeight.fillMasked(.zero, from: gradOutput, scalar.parameter)
            gradBias.fillMasked(.zero, from: gradOutput, scalar.parameter)
            return
        }

        var job = self.job
        job.count = Int64(count)
        job.epilogue = epilogue.kernel
        job.positions = positions.kernel(mask)
        if let sums {
            try Kernels.backwardApply(
                shape, scalar, sums.arrays, &job, extraTensors: epilogue.tensors,
                workspace: &workspace.kernels)
        } else {
            try Kernels.backward(
                shape.grid(scalar), &job, extraTensors: epilogue.tensors,
                workspace: &workspace.kernels)
        }
    }

    /// The call in the kernels' words, but for the workspace.
    var job: bnk_backward {
        var job = bnk_backward()
        job.input = input.address
        job.grad_output = gradOutput.address
        job.grad_input = gradInput.address
        job.grad_weight = gradWeight.address
        job.grad_bias = gradBias.address
        job.weight = weight.address
        switch source {
        case .saved(let mean, let invstd):
            job.statistics.mean = mean.address?.assumingMemoryBound(to: Double.self)
            job.statistics.mean_rest = savedMeanRest.address?.assumingMemoryBound(to: Double.self)
            job.statistics.invstd = invstd.address?.assumingMemoryBound(to: Double.self)
        case .running(let mean, let variance, let epsilon):
            job.statistics.running_mean = mean.address
            job.statistics.running_var = variance.address
            job.statistics.epsilon = epsilon
        case .nothing: break
        }
        job.frozen = statistics == .running ? 1 : 0
        return job
    }

    private func validate() throws(BatchNormError) {
        try shape.requireAddressable(scalar)
        let size = scalar.size
        let parameterSize = scalar.parameter.size
        let channels = shape.channels
        var buffers = BufferCheck()
        try buffers.read(input, .input, count: shape.count, elementSize: size)
        try buffers.read(gradOutput, .gradOutput, count: shape.count, elementSize: size)
        try buffers.write(optional: gradInput, .gradInput, count: shape.count, elementSize: size)
        try buffers.write(optional: gradWeight, .gradWeight, count: channels, elementSize: parameterSize)
        try buffers.write(optional: gradBias, .gradBias, count: channels, elementSize: parameterSize)
        try buffers.read(optional: weight, .weight, count: channels, elementSize: parameterSize)
        switch source {
        case .saved(let mean, let invstd):
            try buffers.read(mean, .savedMean, count: channels, elementSize: 8)
            try buffers.read(invstd, .savedInvstd, count: channels, elementSize: 8)
            try buffers.read(optional: savedMeanRest, .savedMeanRest, count: channels, elementSize: 8)
        case .running(let mean, let variance, let epsilon):
            try requireEpsilon(epsilon)
            try buffers.read(mean, .runningMean, count: channels, elementSize: parameterSize)
            try buffers.read(variance, .runningVar, count: channels, elementSize: parameterSize)
        case .nothing: break
        }
        try epilogue.validate(shape, elementSize: size, &buffers)
        try positions.validate(shape, &buffers)
        if let sums { try sums.requireReadable(channels: channels, &buffers) }
        try buffers.requireSeparate()
        if let sums { try sums.requireValid(least: positions.leastCount(shape)) }
    }
}
