// Section FOLDING of batchnorm.h.

import BatchNorm
import CBatchNorm

@_cdecl("bn_fold") @implementation
public func bn_fold(
    _ shape: UnsafePointer<bn_weight_shape>?, _ args: UnsafeMutablePointer<bn_fold_args>?
) -> bn_status {
    perform { () throws(BatchNormError) in
        let (scalar, shape) = try weightShape(shape)
        var given = try foldArguments(args)
        var fold = Fold(
            scalar: scalar, shape: shape, epsilon: given.epsilon,
            runningMean: View(given.running_mean),
            runningVar: View(given.running_var))
        fold.weight = View(given.weight)
        fold.bias = View(given.bias)
        given.take(try fold.run(given))
        write(given, to: args)
    }
}

@_cdecl("bn_layer_fold") @implementation
public func bn_layer_fold(
    _ layer: OpaquePointer?, _ shape: UnsafePointer<bn_weight_shape>?,
    _ args: UnsafeMutablePointer<bn_fold_args>?
) -> bn_status {
    perform { () throws(BatchNormError) in
        let layer = try LayerCore.from(layer)
        let (scalar, shape) = try weightShape(shape)
        var given = try foldArguments(args)
        given.take(try layer.fold(scalar, shape).run(given))
        write(given, to: args)
    }
}

private func weightShape(
    _ pointer: UnsafePointer<bn_weight_shape>?
) throws(BatchNormError) -> (ScalarType, WeightShape) {
    let given = try read(pointer, .shape)
    return (
        try option(given.dtype, .dtype),
        try WeightShape(
            groups: Int(given.groups), outer: Int(given.outer), channels: Int(given.channels),
            inner: Int(given.inner))
    )
}

private func foldArguments(
    _ pointer: UnsafeMutablePointer<bn_fold_args>?
) throws(BatchNormError) -> bn_fold_args {
    let given = try read(UnsafePointer(pointer))
    try requireReserved(given.reserved)
    return given
}

extension Fold {
    /// Runs it on the convolution's or linear layer's numbers.
    fileprivate func run(_ given: bn_fold_args) throws(BatchNormError) -> FoldingErrors {
        var job = self
        job.convWeight = View(given.conv_weight)
        job.convBias = View(given.conv_bias)
        job.foldedWeight = MutableView(given.folded_weight)
        job.foldedBias = MutableView(given.folded_bias)
        return try job.run()
    }
}

extension bn_fold_args {
    fileprivate mutating func take(_ errors: FoldingErrors) {
        weight_error = errors.weight
        bias_error = errors.bias
    }
}
