// Section LAYER of batchnorm.h: the layer. A bn_layer is a LayerCore that the library holds one reference to.

import BatchNorm
import CBatchNorm

extension LayerCore {
    /// The layer behind a handle.
    static func from(_ handle: OpaquePointer?) throws(BatchNormError) -> LayerCore {
        let handle = try require(handle, .layer)
        return Unmanaged<LayerCore>.fromOpaque(UnsafeRawPointer(handle)).takeUnretainedValue()
    }

    /// A handle that owns the layer, for bn_layer_destroy to free.
    consuming func intoHandle() -> OpaquePointer {
        OpaquePointer(Unmanaged.passRetained(self).toOpaque())
    }
}

// MARK: - Life

@_cdecl("bn_layer_create") @implementation
public func bn_layer_create(
    _ options: UnsafePointer<bn_layer_options>?, _ layer: UnsafeMutablePointer<OpaquePointer?>?
) -> bn_status {
    perform { () throws(BatchNormError) in
        let given = try read(options, .options)
        let target = try require(layer, .layer)
        let scalar: ScalarType = try option(given.dtype, .dtype)
        target.pointee = try LayerCore(scalar: scalar, options: LayerOptions(given)).intoHandle()
    }
}

@_cdecl("bn_layer_destroy") @implementation
public func bn_layer_destroy(_ layer: OpaquePointer?) {
    guard let layer else { return }
    Unmanaged<LayerCore>.fromOpaque(UnsafeRawPointer(layer)).release()
}

// MARK: - Options and mode

extension LayerOptions {
    fileprivate init(_ given: bn_layer_options) throws(BatchNormError) {
        try requireReserved(given.reserved)
        let training = TrainingOptions(
            epsilon: given.epsilon, momentum: given.momentum,
            averaging: try option(given.averaging, .averaging),
            runningVariance: try option(given.running_variance, .runningVariance),
            oneValue: try option(given.one_value, .oneValue),
            nonfinite: try option(given.nonfinite, .nonfinite))
        self.init(
            numFeatures: Int(given.num_features), training: training,
            hasWeight: try flag(given.has_weight, .hasWeight),
            hasBias: try flag(given.has_bias, .hasBias),
            trackRunningStats: try flag(given.track_running_stats, .trackRunningStats))
    }
}

extension bn_layer_options {
    fileprivate init(_ layer: LayerCore) {
        let training = layer.options.training
        self.init(
            struct_size: 0, dtype: layer.scalar.rawValue, num_features: Int64(layer.options.numFeatures),
            epsilon: training.epsilon,
            momentum: training.momentum, averaging: training.averaging.rawValue,
            running_variance: training.runningVariance.rawValue,
            one_value: training.oneValue.rawValue, nonfinite: training.nonfinite.rawValue,
            has_weight: layer.options.hasWeight ? 1 : 0, has_bias: layer.options.hasBias ? 1 : 0,
            track_running_stats: layer.options.trackRunningStats ? 1 : 0, reserved: 0)
    }
}

@_cdecl("bn_layer_get_options") @implementation
public func bn_layer_get_options(
    _ layer: OpaquePointer?, _ options: UnsafeMutablePointer<bn_layer_options>?
) -> bn_status {
    perform { () throws(BatchNormError) in
        let layer = try LayerCore.from(layer)
        try fill(options, .options, with: bn_layer_options(layer))
    }
}

@_cdecl("bn_layer_set_epsilon") @implementation
public func bn_layer_set_epsilon(_ layer: OpaquePointer?, _ epsilon: Double) -> bn_status {
    perform { () throws(BatchNormError) in
        try LayerCore.from(layer).setEpsilon(epsilon)
    }
}

@_cdecl("bn_layer_set_momentum") @implementation
public func bn_layer_set_momentum(
    _ layer: OpaquePointer?, _ momentum: Double, _ averaging: bn_averaging
) -> bn_status {
    perform { () throws(BatchNormError) in
        try LayerCore.from(layer).setMomentum(momentum, try option(averaging, .averaging))
    }
}

@_cdecl("bn_layer_set_training") @implementation
public func bn_layer_set_training(_ layer: OpaquePointer?, _ training: Int32) -> bn_status {
    perform { () throws(BatchNormError) in
        let layer = try LayerCore.from(layer)
        layer.isTraining = try flag(training, .training)
    }
}

@_cdecl("bn_layer_get_training") @implementation
public func bn_layer_get_training(
    _ layer: OpaquePointer?, _ training: UnsafeMutablePointer<Int32>?
) -> bn_status {
    perform { () throws(BatchNormError) in
        let layer = try LayerCore.from(layer)
        try require(training, .training).pointee = layer.isTraining ? 1 : 0
    }
}

// MARK: - Forward and backward

@_cdecl("bn_layer_forward") @implementation
public func bn_layer_forward(
    _ layer: OpaquePointer?, _ problem: UnsafePointer<bn_problem>?,
    _ input: UnsafeRawPointer?, _ inputCount: Int64,
    _ output: UnsafeMutableRawPointer?, _ outputCount: Int64
) -> bn_status {
    perform { () throws(BatchNormError) in
        let layer = try LayerCore.from(layer)
        let problem = try Problem(problem)
        try layer.forward(
            problem.scalar, problem.shape, input: View(input, count: Int(inputCount)),
            output: MutableView(output, count: Int(outputCount)))
    }
}

@_cdecl("bn_layer_backward") @implementation
public func bn_layer_backward(
    _ layer: OpaquePointer?, _ problem: UnsafePointer<bn_problem>?,
    _ input: UnsafeRawPointer?, _ inputCount: Int64,
    _ gradOutput: UnsafeRawPointer?, _ gradOutputCount: Int64,
    _ gradInput: UnsafeMutableRawPointer?, _ gradInputCount: Int64,
    _ gradWeight: UnsafeMutableRawPointer?, _ gradWeightCount: Int64,
    _ gradBias: UnsafeMutableRawPointer?, _ gradBiasCount: Int64
) -> bn_status {
    perform { () throws(BatchNormError) in
        let layer = try LayerCore.from(layer)
        let problem = try Problem(problem)
        try layer.backward(
            problem.scalar, problem.shape, input: View(input, count: Int(inputCount)),
            gradOutput: View(gradOutput, count: Int(gradOutputCount)),
            gradInput: MutableView(gradInput, count: Int(gradInputCount)),
            gradWeight: MutableView(gradWeight, count: Int(gradWeightCount)),
            gradBias: MutableView(gradBias, count: Int(gradBiasCount)))
    }
}

@_cdecl("bn_layer_forward_with") @implementation
public func bn_layer_forward_with(
    _ layer: OpaquePointer?, _ problem: UnsafePointer<bn_problem>?,
    _ args: UnsafePointer<bn_layer_forward_args>?
) -> bn_status {
    perform { () throws(BatchNormError) in
        let layer = try LayerCore.from(layer)
        let problem = try Problem(problem)
        let given = try read(args)
        try layer.forward(
            problem.scalar, problem.shape, pass: option(given.pass, .pass),
            input: View(given.input),
            output: MutableView(given.output),
            epilogue: ForwardEpilogue(given), positions: try Positions(given.positions))
    }
}

@_cdecl("bn_layer_backward_with") @implementation
public func bn_layer_backward_with(
    _ layer: OpaquePointer?, _ problem: UnsafePointer<bn_problem>?,
    _ args: UnsafePointer<bn_layer_backward_args>?
) -> bn_status {
    perform { () throws(BatchNormError) in
        let layer = try LayerCore.from(layer)
        let problem = try Problem(problem)
        let given = try read(args)
        try requireReserved(given.reserved)
        try layer.backward(
            problem.scalar, problem.shape, input: View(given.input),
            gradOutput: View(given.grad_output),
            gradInput: MutableView(given.grad_input),
            gradWeight: MutableView(given.grad_weight),
            gradBias: MutableView(given.grad_bias),
            gradResidual: MutableView(given.grad_residual))
    }
}

extension ForwardEpilogue {
    fileprivate init(_ args: bn_layer_forward_args) throws(BatchNormError) {
        self.init()
        activation = try Activation(args.activation)
        residual = View(args.residual)
    }
}

// MARK: - Parameters and running statistics

@_cdecl("bn_layer_get_weight") @implementation
public func bn_layer_get_weight(
    _ layer: OpaquePointer?, _ out: UnsafeMutableRawPointer?, _ count: Int64
) -> bn_status {
    perform { () throws(BatchNormError) in
        try LayerCore.from(layer).get(.weight, into: MutableView(out, count: Int(count)))
    }
}

@_cdecl("bn_layer_set_weight") @implementation
public func bn_layer_set_weight(
    _ layer: OpaquePointer?, _ values: UnsafeRawPointer?, _ count: Int64
) -> bn_status {
    perform { () throws(BatchNormError) in
        try LayerCore.from(layer).set(.weight, to: View(values, count: Int(count)))
    }
}

@_cdecl("bn_layer_get_bias") @implementation
public func bn_layer_get_bias(
    _ layer: OpaquePointer?, _ out: UnsafeMutableRawPointer?, _ count: Int64
) -> bn_status {
    perform { () throws(BatchNormError) in
        try LayerCore.from(layer).get(.bias, into: MutableView(out, count: Int(count)))
    }
}

@_cdecl("bn_layer_set_bias") @implementation
public func bn_layer_set_bias(
    _ layer: OpaquePointer?, _ values: UnsafeRawPointer?, _ count: Int64
) -> bn_status {
    perform { () throws(BatchNormError) in
        try LayerCore.from(layer).set(.bias, to: View(values, count: Int(count)))
    }
}

@_cdecl("bn_layer_get_running_mean") @implementation
public func bn_layer_get_running_mean(
    _ layer: OpaquePointer?, _ out: UnsafeMutableRawPointer?, _ count: Int64
) -> bn_status {
    perform { () throws(BatchNormError) in
        try LayerCore.from(layer).get(.runningMean, into: MutableView(out, count: Int(count)))
    }
}

@_cdecl("bn_layer_set_running_mean") @implementation
public func bn_layer_set_running_mean(
    _ layer: OpaquePointer?, _ values: UnsafeRawPointer?, _ count: Int64
) -> bn_status {
    perform { () throws(BatchNormError) in
        try LayerCore.from(layer).set(.runningMean, to: View(values, count: Int(count)))
    }
}

@_cdecl("bn_layer_get_running_var") @implementation
public func bn_layer_get_running_var(
    _ layer: OpaquePointer?, _ out: UnsafeMutableRawPointer?, _ count: Int64
) -> bn_status {
    perform { () throws(BatchNormError) in
        try LayerCore.from(layer).get(.runningVar, into: MutableView(out, count: Int(count)))
    }
}

@_cdecl("bn_layer_set_running_var") @implementation
public func bn_layer_set_running_var(
    _ layer: OpaquePointer?, _ values: UnsafeRawPointer?, _ count: Int64
) -> bn_status {
    perform { () throws(BatchNormError) in
        try LayerCore.from(layer).set(.runningVar, to: View(values, count: Int(count)))
    }
}

@_cdecl("bn_layer_get_num_batches_tracked") @implementation
public func bn_layer_get_num_batches_tracked(
    _ layer: OpaquePointer?, _ count: UnsafeMutablePointer<Int64>?
) -> bn_status {
    perform { () throws(BatchNormError) in
        let batches = try LayerCore.from(layer).numBatchesTracked()
        try require(count, .count).pointee = batches
    }
}

@_cdecl("bn_layer_set_num_batches_tracked") @implementation
public func bn_layer_set_num_batches_tracked(_ layer: OpaquePointer?, _ count: Int64) -> bn_status {
    perform { () throws(BatchNormError) in
        try LayerCore.from(layer).setNumBatchesTracked(count)
    }
}

@_cdecl("bn_layer_get_skipped_batches") @implementation
public func bn_layer_get_skipped_batches(
    _ layer: OpaquePointer?, _ skipped: UnsafeMutablePointer<Int64>?, _ count: Int64
) -> bn_status {
    perform { () throws(BatchNormError) in
        try LayerCore.from(layer).getSkippedBatches(into: MutableView(skipped, count: Int(count)))
    }
}

@_cdecl("bn_layer_set_skipped_batches") @implementation
public func bn_layer_set_skipped_batches(
    _ layer: OpaquePointer?, _ skipped: UnsafePointer<Int64>?, _ count: Int64
) -> bn_status {
    perform { () throws(BatchNormError) in
        try LayerCore.from(layer).setSkippedBatches(to: View(skipped, count: Int(count)))
    }
}

@_cdecl("bn_layer_weight_data") @implementation
public func bn_layer_weight_data(_ layer: OpaquePointer?) -> UnsafeMutableRawPointer? {
    (try? LayerCore.from(layer))?.weight.address
}

@_cdecl("bn_layer_bias_data") @implementation
public func bn_layer_bias_data(_ layer: OpaquePointer?) -> UnsafeMutableRawPointer? {
    (try? LayerCore.from(layer))?.bias.address
}

// MARK: - The last forward

@_cdecl("bn_layer_get_saved_mean") @implementation
public func bn_layer_get_saved_mean(
    _ layer: OpaquePointer?, _ out: UnsafeMutablePointer<Double>?, _ count: Int64
) -> bn_status {
    perform { () throws(BatchNormError) in
        try LayerCore.from(layer).getSaved(.savedMean, into: MutableView(out, count: Int(count)))
    }
}

@_cdecl("bn_layer_get_saved_invstd") @implementation
public func bn_layer_get_saved_invstd(
    _ layer: OpaquePointer?, _ out: UnsafeMutablePointer<Double>?, _ count: Int64
) -> bn_status {
    perform { () throws(BatchNormError) in
        try LayerCore.from(layer).getSaved(.savedInvstd, into: MutableView(out, count: Int(count)))
    }
}

@_cdecl("bn_layer_get_saved_mean_rest") @implementation
public func bn_layer_get_saved_mean_rest(
    _ layer: OpaquePointer?, _ out: UnsafeMutablePointer<Double>?, _ count: Int64
) -> bn_status {
    perform { () throws(BatchNormError) in
        try LayerCore.from(layer).getSaved(.savedMeanRest, into: MutableView(out, count: Int(count)))
    }
}

@_cdecl("bn_layer_get_statistics_used") @implementation
public func bn_layer_get_statistics_used(
    _ layer: OpaquePointer?, _ statistics: UnsafeMutablePointer<bn_statistics>?
) -> bn_status {
    perform { () throws(BatchNormError) in
        let outcome = try LayerCore.from(layer).outcome()
        try require(statistics, .statistics).pointee = outcome.statistics.rawValue
    }
}

@_cdecl("bn_layer_get_nonfinite_channels") @implementation
public func bn_layer_get_nonfinite_channels(
    _ layer: OpaquePointer?, _ channels: UnsafeMutablePointer<Int64>?
) -> bn_status {
    perform { () throws(BatchNormError) in
        let outcome = try LayerCore.from(layer).outcome()
        try require(channels, .channels).pointee = Int64(outcome.nonfiniteChannels)
    }
}

@_cdecl("bn_layer_get_nonfinite_running_channels") @implementation
public func bn_layer_get_nonfinite_running_channels(
    _ layer: OpaquePointer?, _ channels: UnsafeMutablePointer<Int64>?
) -> bn_status {
    perform { () throws(BatchNormError) in
        let outcome = try LayerCore.from(layer).outcome()
        try require(channels, .channels).pointee = Int64(outcome.nonfiniteRunningChannels)
    }
}

@_cdecl("bn_layer_reset_running_stats") @implementation
public func bn_layer_reset_running_stats(_ layer: OpaquePointer?) -> bn_status {
    perform { () throws(BatchNormError) in
        try LayerCore.from(layer).resetRunningStats()
    }
}
