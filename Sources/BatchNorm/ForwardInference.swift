// The forward by given statistics on raw memory: see ForwardTraining.swift.

import CBatchNormKernels

/// Forward in inference: see bn_forward_inference in batchnorm.h.
package struct ForwardInference {
    package var scalar: ScalarType
    package var shape: Shape
    package var input: View
    package var output: MutableView
    package var weight = View.absent
    package var bias = View.absent
    package var epilogue = ForwardEpilogue()
    package var positions = Positions()
    package var source: GivenStatistics

    package init(
        scalar: ScalarType, shape: Shape, input: View, output: MutableView, source: GivenStatistics
    ) {
        self.scalar = scalar
        self.shape = shape
        self.input = input
        self.output = output
        self.source = source
    }

    /// What it moves.
    var call: BatchNormCall { BatchNormCall(.forwardInference, epilogue, positions) }

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
        job.statistics = source.kernel
        job.epilogue = epilogue.kernel
        job.positions = positions.kernel(mask)
        Kernels.forwardInference(call, shape.grid(scalar), &job)
    }

    func validate() throws(BatchNormError) {
        try shape.requireAddressable(scalar)
        try source.requireEpsilon()
        let size = scalar.size
        let parameterSize = scalar.parameter.size
        let channels = shape.channels
        var buffers = BufferCheck()
        try buffers.read(input, .input, count: shape.count, elementSize: size)
        try buffers.write(output, .output, count: shape.count, elementSize: size)
        try buffers.read(optional: weight, .weight, count: channels, elementSize: parameterSize)
        try buffers.read(optional: bias, .bias, count: channels, elementSize: parameterSize)
        try source.requireReadable(channels: channels, scalar, &buffers)
        try epilogue.validate(shape, elementSize: size, &buffers)
        try positions.validate(shape, &buffers)
        try buffers.requireSeparate()
    }
}
