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
            input: View(args.input, count: Int(args.input_count)),
            output: MutableView(args.output, count: Int(args.output_count)))
        weight = View(args.weight, count: Int(args.weight_count))
        bias = View(args.bias, count: Int(args.bias_count))
        runningMean = MutableView(args.running_mean, count: Int(args.running_mean_count))
        runningVar = MutableView(args.running_var, count: Int(args.running_var_count))
        numBatchesTracked = args.num_batches_tracked
        skippedBatches = MutableView(args.skipped_batches, count: Int(args.skipped_batches_count))
        savedMean = MutableView(args.saved_mean, count: Int(args.saved_mean_count))
        savedInvstd = MutableView(args.saved_invstd, count: Int(args.saved_invstd_count))
        savedMeanRest = MutableView(args.saved_mean_rest, count: Int(args.saved_mean_rest_count))
        extras.activation = try activation(args.activation, args.negative_slope)
        extras.residual = View(args.residual, count: Int(args.residual_count))
        extras.activationMask = MutableView(
            args.activation_mask, count: Int(args.activation_mask_count))
        extras.positions = try Positions(
            args.mask, args.mask_count, args.lengths, args.lengths_count, args.masked)
    }
}

extension ForwardInference {
    init(
        _ problem: Problem, _ args: bn_forward_inference_args
    ) throws(BatchNormError) {
        try requireReserved(args.reserved)
        self.init(
            scalar: problem.scalar, shape: problem.shape, epsilon: args.epsilon,
            input: View(args.input, count: Int(args.input_count)),
            output: MutableView(args.output, count: Int(args.output_count)),
            runningMean: View(args.running_mean, count: Int(args.running_mean_count)),
            runningVar: View(args.running_var, count: Int(args.running_var_count)))
        weight = View(args.weight, count: Int(args.weight_count))
        bias = View(args.bias, count: Int(args.bias_count))
        extras.activation = try activation(args.activation, args.negative_slope)
        extras.residual = View(args.residual, count: Int(args.residual_count))
        extras.activationMask = MutableView(
            args.activation_mask, count: Int(args.activation_mask_count))
        extras.positions = try Positions(
            args.mask, args.mask_count, args.lengths, args.lengths_count, args.masked)
    }
}

extension Backward {
    init(_ problem: Problem, _ args: bn_backward_args) throws(BatchNormError) {
        let statistics: Statistics = try option(args.statistics, .statistics)
        let source: Source =
            switch statistics {
            case .batch:
                .saved(
                    mean: View(args.saved_mean, count: Int(args.saved_mean_count)),
                    invstd: View(args.saved_invstd, count: Int(args.saved_invstd_count)))
            case .running:
                .running(
                    mean: View(args.running_mean, count: Int(args.running_mean_count)),
                    variance: View(args.running_var, count: Int(args.running_var_count)),
                    epsilon: args.epsilon)
            }
        self.init(
            scalar: problem.scalar, shape: problem.shape, statistics: statistics, source: source,
            input: View(args.input, count: Int(args.input_count)),
            gradOutput: View(args.grad_output, count: Int(args.grad_output_count)))
        if statistics == .batch {
            savedMeanRest = View(args.saved_mean_rest, count: Int(args.saved_mean_rest_count))
        }
        weight = View(args.weight, count: Int(args.weight_count))
        gradInput = MutableView(args.grad_input, count: Int(args.grad_input_count))
        gradWeight = MutableView(args.grad_weight, count: Int(args.grad_weight_count))
        gradBias = MutableView(args.grad_bias, count: Int(args.grad_bias_count))
        extras.activation = try activation(args.activation, args.negative_slope)
        extras.activationMask = View(args.activation_mask, count: Int(args.activation_mask_count))
        extras.output = View(args.output, count: Int(args.output_count))
        extras.gradResidual = MutableView(args.grad_residual, count: Int(args.grad_residual_count))
        extras.positions = try Positions(
            args.mask, args.mask_count, args.lengths, args.lengths_count, args.masked)
    }
}
