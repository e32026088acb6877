// Section MOMENTS of batchnorm.h: the operations in two parts.

import BatchNorm
import CBatchNorm

@_cdecl("bn_moments_compute") @implementation
public func bn_moments_compute(
    _ problem: UnsafePointer<bn_problem>?, _ input: UnsafeRawPointer?, _ input_count: Int64,
    _ positions: UnsafePointer<bn_positions>?, _ moments: UnsafeMutablePointer<bn_moments>?
) -> bn_status {
    perform { () throws(BatchNormError) in
        let problem = try Problem(problem)
        let view = try MomentsView(UnsafePointer(moments), .moments)
        let count = try computeMoments(
            problem.scalar, problem.shape, View(input, count: Int(input_count)),
            Positions(positions?.pointee ?? bn_positions()),
            into: view)
        moments?.pointee.count = Int64(count)
    }
}

@_cdecl("bn_moments_merge") @implementation
public func bn_moments_merge(
    _ moments: UnsafeMutablePointer<bn_moments>?, _ other: UnsafePointer<bn_moments>?
) -> bn_status {
    perform { () throws(BatchNormError) in
        let view = try MomentsView(UnsafePointer(moments), .moments)
        let count = try mergeMoments(MomentsView(other, .other), into: view)
        moments?.pointee.count = Int64(count)
    }
}

@_cdecl("bn_moments_statistics") @implementation
public func bn_moments_statistics(
    _ moments: UnsafePointer<bn_moments>?, _ epsilon: Double, _ kind: bn_variance,
    _ variance: UnsafeMutablePointer<Double>?, _ variance_count: Int64,
    _ invstd: UnsafeMutablePointer<Double>?, _ invstd_count: Int64
) -> bn_status {
    perform { () throws(BatchNormError) in
        try momentsStatistics(
            MomentsView(moments, .moments), epsilon: epsilon, option(kind, .kind),
            variance: MutableView(variance, count: Int(variance_count)),
            invstd: MutableView(invstd, count: Int(invstd_count)))
    }
}

@_cdecl("bn_normalize") @implementation
public func bn_normalize(
    _ problem: UnsafePointer<bn_problem>?, _ moments: UnsafePointer<bn_moments>?,
    _ args: UnsafeMutablePointer<bn_forward_training_args>?
) -> bn_status {
    perform { () throws(BatchNormError) in
        let problem = try Problem(problem)
        var given = try read(UnsafePointer(args))
        var job = try ForwardTraining(problem, given)
        job.moments = try MomentsView(moments, .moments)
        let outcome = try job.run()
        given.take(outcome)
        write(given, to: args)
        try outcome.require(job.options.nonfinite, of: problem.shape.channels)
    }
}

@_cdecl("bn_normalize_saved") @implementation
public func bn_normalize_saved(
    _ problem: UnsafePointer<bn_problem>?, _ saved: UnsafePointer<bn_saved>?,
    _ args: UnsafePointer<bn_forward_inference_args>?
) -> bn_status {
    perform { () throws(BatchNormError) in
        let problem = try Problem(problem)
        let saved = try require(saved, .saved).pointee
        var job = try ForwardInference(problem, read(args))
        job.source = .saved(saved)
        try job.run()
    }
}

@_cdecl("bn_backward_reduce") @implementation
public func bn_backward_reduce(
    _ problem: UnsafePointer<bn_problem>?, _ args: UnsafePointer<bn_backward_args>?,
    _ sums: UnsafeMutablePointer<bn_gradient_sums>?
) -> bn_status {
    perform { () throws(BatchNormError) in
        let problem = try Problem(problem)
        let given = try read(args)
        let view = try GradientSumsView(UnsafePointer(sums))
        let count = try Backward(problem, given).reduce(into: view)
        sums?.pointee.count = Int64(count)
    }
}

@_cdecl("bn_backward_apply") @implementation
public func bn_backward_apply(
    _ problem: UnsafePointer<bn_problem>?, _ sums: UnsafePointer<bn_gradient_sums>?,
    _ args: UnsafePointer<bn_backward_args>?
) -> bn_status {
    perform { () throws(BatchNormError) in
        let problem = try Problem(problem)
        let given = try read(args)
        var job = try Backward(problem, given)
        job.sums = try GradientSumsView(sums)
        try job.run()
    }
}

extension MomentsView {
    fileprivate init(
        _ pointer: UnsafePointer<bn_moments>?, _ argument: BatchNormError.Argument
    ) throws(BatchNormError) {
        let moments = try read(pointer, argument)
        try requireReserved(moments.reserved)
        let channels = Int(moments.channels)
        self.init(
            count: Int(moments.count), mean: MutableView(moments.mean, count: channels),
            meanRest: MutableView(moments.mean_rest, count: channels),
            m2: MutableView(moments.m2, count: channels))
    }
}

extension GradientSumsView {
    fileprivate init(_ pointer: UnsafePointer<bn_gradient_sums>?) throws(BatchNormError) {
        let sums = try read(pointer, .sums)
        try requireReserved(sums.reserved)
        let channels = Int(sums.channels)
        self.init(
            count: Int(sums.count), dy: MutableView(sums.sum_dy, count: channels),
            dyXmu: MutableView(sums.sum_dy_xmu, count: channels))
    }
}
