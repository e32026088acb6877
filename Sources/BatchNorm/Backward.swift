// Backward on raw memory: see ForwardTraining.swift.

import CBatchNormKernels

/// Backward: see bn_backward in batchnorm.h.
package struct Backward {
    package var scalar: ScalarType
    package var shape: Shape
    package var statistics: Statistics
    /// Those that the forward used.
    package var source: GivenStatistics
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
        scalar: ScalarType, shape: Shape, statistics: Statistics, source: GivenStatistics, input: View,
        gradOutput: View
    ) {
        self.scalar = scalar
        self.shape = shape
        self.statistics = statistics
        self.source = source
        self.input = input
        self.gradOutput = gradOutput
    }

    /// What it moves.
    var call: BatchNormCall { BatchNormCall(self) }

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

        let call = self.call
        guard call.reduces || call.applies else { return }
        var job = self.job
        job.count = Int64(count)
        job.epilogue = epilogue.kernel
        job.positions = positions.kernel(mask)
        if let sums {
            try Kernels.backwardApply(call, shape, scalar, sums.arrays, &job, workspace: &workspace.kernels)
        } else {
            try Kernels.backward(call, shape.grid(scalar), &job, workspace: &workspace.kernels)
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
        job.statistics = source.kernel
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
        try source.requireEpsilon()
        try source.requireReadable(channels: channels, scalar, &buffers)
        try epilogue.validate(shape, elementSize: size, &buffers)
        try positions.validate(shape, &buffers)
        if let sums { try sums.requireReadable(channels: channels, &buffers) }
        try buffers.requireSeparate()
        if let sums { try sums.requireValid(least: positions.leastCount(shape)) }
    }
}

extension Backward {
    /// The reduce part: see bn_backward_reduce in batchnorm.h; returns the count. Gradients and weight are not looked
    /// at.
    package func reduce(into sums: GradientSumsView) throws(BatchNormError) -> Int {
        var epilogue = epilogue
        epilogue.gradResidual = .absent
        try shape.requireAddressable(scalar)
        let size = scalar.size
        var buffers = BufferCheck()
        try buffers.read(input, .input, count: shape.count, elementSize: size)
        try buffers.read(gradOutput, .gradOutput, count: shape.count, elementSize: size)
        try source.requireReadable(channels: shape.channels, scalar, &buffers, meanOnly: true)
        try sums.requireWritable(channels: shape.channels, &buffers)
        try epilogue.validate(shape, elementSize: size, &buffers)
        try positions.validate(shape, &buffers)
        try buffers.requireSeparate()
        var memory = Memory()
        let mask = try positions.resolve(shape, memory: &memory)
        let count = shape.countTakingPart(mask)
        guard count > 0 else {
            sums.dy.zero()
            sums.dyXmu.zero()
            return 0
        }
        var job = self.job
        var arrays = sums.arrays
        job.epilogue = epilogue.kernel
        job.positions = positions.kernel(mask)
        try Kernels.backwardReduce(shape.grid(scalar), &job, &arrays)
        return count
    }
}
