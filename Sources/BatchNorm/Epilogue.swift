// What an operation does to values after batch normalization, in the same sweep over memory, and the way back.

import CBatchNormKernels

/// What is done to values in a forward: output = activation(batch normalization + residual).
package struct ForwardEpilogue {
    package var activation = Activation.none
    package var residual = View.absent
    /// One bit a value: whether the output is not ≤ 0.
    package var activationMask = MutableView.absent

    package init() {}

    func validate(
        _ shape: Shape, elementSize: Int, _ buffers: inout BufferCheck
    ) throws(BatchNormError) {
        try activation.validate(elementSize: elementSize)
        try buffers.read(
            optional: residual, .residual, count: shape.count, elementSize: elementSize)
        try buffers.write(
            optional: activationMask, .activationMask, count: Activation.maskBytes(shape.count),
            elementSize: 1)
    }

    /// In the kernels' words.
    var kernel: bnk_epilogue {
        var epilogue = bnk_epilogue()
        epilogue.activation = activation.kernel
        epilogue.residual = residual.address
        epilogue.written_activation_mask = activationMask.address?.assumingMemoryBound(to: UInt8.self)
        return epilogue
    }
}

/// The way back through `ForwardEpilogue`.
package struct BackwardEpilogue {
    package var activation = Activation.none
    /// What the forward wrote; or
    package var activationMask = View.absent
    /// the forward's output.
    package var output = View.absent
    package var gradResidual = MutableView.absent

    package init() {}

    func validate(
        _ shape: Shape, elementSize: Int, _ buffers: inout BufferCheck
    ) throws(BatchNormError) {
        try activation.validate(elementSize: elementSize)
        if activation != .none {
            // Of an empty batch both have no bytes, and may be absent.
            if activationMask.isAbsent, output.isAbsent, !shape.isEmpty {
                throw .missingBoth(.activationMask, .output)
            }
            try buffers.read(
                optional: activationMask, .activationMask,
                count: Activation.maskBytes(shape.count), elementSize: 1)
            try buffers.read(
                optional: output, .output, count: shape.count, elementSize: elementSize)
        }
        try buffers.write(
            optional: gradResidual, .gradResidual, count: shape.count, elementSize: elementSize)
    }

    /// In the kernels' words.
    var kernel: bnk_epilogue {
        var epilogue = bnk_epilogue()
        epilogue.activation = activation.kernel
        epilogue.activation_mask = activationMask.address?.assumingMemoryBound(to: UInt8.self)
        epilogue.output = output.address
        epilogue.grad_residual = gradResidual.address
        return epilogue
    }
}
