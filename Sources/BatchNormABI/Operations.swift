// Section OPERATIONS of batchnorm.h: the stateless functions.

import BatchNorm
import CBatchNorm

@_cdecl("bn_forward_training") @implementation
public func bn_forward_training(
    _ problem: UnsafePointer<bn_problem>?, _ args: UnsafeMutablePointer<bn_forward_training_args>?
) -> bn_status {
    perform { () throws(BatchNormError) in
        let problem = try Problem(problem)
        var given = try read(UnsafePointer(args))
        let job = try ForwardTraining(problem, given)
        let outcome = try job.run()
        given.take(outcome)
        write(given, to: args)
        try outcome.require(job.options.nonfinite, of: problem.shape.channels)
    }
}

@_cdecl("bn_forward_inference") @implementation
public func bn_forward_inference(
    _ problem: UnsafePointer<bn_problem>?, _ args: UnsafePointer<bn_forward_inference_args>?
) -> bn_status {
    perform { () throws(BatchNormError) in
        let problem = try Problem(problem)
        let given = try read(args)
        try ForwardInference(problem, given).run()
    }
}

@_cdecl("bn_backward") @implementation
public func bn_backward(
    _ problem: UnsafePointer<bn_problem>?, _ args: UnsafePointer<bn_backward_args>?
) -> bn_status {
    perform { () throws(BatchNormError) in
        let problem = try Problem(problem)
        let given = try read(args)
        try Backward(problem, given).run()
    }
}

extension bn_forward_training_args {
    /// What a forward tells about itself.
    mutating func take(_ outcome: ForwardTraining.Outcome) {
        nonfinite_channels = Int64(outcome.nonfiniteChannels)
        nonfinite_running_channels = Int64(outcome.nonfiniteRunningChannels)
        values_per_channel = Int64(outcome.valuesPerChannel)
        statistics_used = outcome.statistics.rawValue
    }
}

extension ForwardTraining {
    init(
        _ problem: Problem, _ args: bn_forward_training_args
    ) throws(BatchNormError) {
        try requireReserved(args.reserved)
        try requireReserved(args.reserved_end)
        let options = TrainingOptions(
            epsilon: args.epsilon, momentum: args.momentum,
            averaging: try option(args.averaging, .averaging),
            runningVariance: try option(args.running_variance, .runningVariance),
            oneValue: try option(args.one_value, .oneValue),
            nonfinite: try option(args.nonfinite, .nonfinite))
        self.init(
            scalar: problem.scalar, shape: problem.shape, options: options,
            input: View(args.input),
            output: MutableView(args.output))
        weight = View(args.weight)
        bias = View(args.bias)
        runningMean = MutableView(args.running_mean)
        runningVar = MutableView(args.running_var)
        numBatchesTracked = args.num_batches_tracked
        skippedBatches = MutableView(args.skipped_batches)
        savedMean = MutableView(args.saved.mean)
        savedInvstd = MutableView(args.saved.invstd)
        savedMeanRest = MutableView(args.saved.mean_rest)
        epilogue.activation = try Activation(args.activation)
        epilogue.residual = View(args.residual)
        epilogue.activationMask = MutableView(args.activation_mask)
        positions = try Positions(args.positions)
    }
}

extension ForwardInference {
    init(
        _ problem: Problem, _ args: bn_forward_inference_args
    ) throws(BatchNormError) {
        try requireReserved(args.reserved)
        self.init(
            scalar: problem.scalar, shape: problem.shape, input: View(args.input), output: MutableView(args.output),
            source: .running(
                mean: View(args.running_mean), variance: View(args.running_var), epsilon: args.epsilon))
        weight = View(args.weight)
        bias = View(args.bias)
        epilogue.activation = try Activation(args.activation)
        epilogue.residual = View(args.residual)
        epilogue.activationMask = MutableView(args.activation_mask)
        positions = try Positions(args.positions)
    }
}

extension Backward {
    init(_ problem: Problem, _ args: bn_backward_args) throws(BatchNormError) {
        let statistics: Statistics = try option(args.statistics, .statistics)
        let source: GivenStatistics =
            switch statistics {
            case .batch: .saved(args.saved)
            case .running:
                .running(
                    mean: View(args.running_mean), variance: View(args.running_var), epsilon: args.epsilon)
            }
        self.init(
            scalar: problem.scalar, shape: problem.shape, statistics: statistics, source: source,
            input: View(args.input), gradOutput: View(args.grad_output))
        weight = View(args.weight)
        gradInput = MutableView(args.grad_input)
        gradWeight = MutableView(args.grad_weight)
        gradBias = MutableView(args.grad_bias)
        epilogue.activation = try Activation(args.activation)
        epilogue.activationMask = View(args.activation_mask)
        epilogue.output = View(args.output)
        epilogue.gradResidual = MutableView(args.grad_residual)
        positions = try Positions(args.positions)
    }
}
