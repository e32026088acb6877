// Section EXPLAIN of batchnorm.h: how an operation would be done.

import BatchNorm
import CBatchNorm

@_cdecl("bn_explain") @implementation
public func bn_explain(
    _ problem: UnsafePointer<bn_problem>?, _ args: UnsafePointer<bn_explain_args>?,
    _ info: UnsafeMutablePointer<bn_plan_info>?
) -> bn_status {
    perform { () throws(BatchNormError) in
        let plan = try BatchNormPlan(problem, args)
        try fill(info, .info, with: bn_plan_info(plan))
    }
}

@_cdecl("bn_explain_text") @implementation
public func bn_explain_text(
    _ problem: UnsafePointer<bn_problem>?, _ args: UnsafePointer<bn_explain_args>?,
    _ out: UnsafeMutablePointer<CChar>?, _ size: Int64
) -> bn_status {
    perform { () throws(BatchNormError) in
        let plan = try BatchNormPlan(problem, args)
        let out = try require(out, .out)
        guard size >= 0 else { throw .negativeCount(.size, actual: Int(size)) }
        try plan.withText { (text) throws(BatchNormError) in
            guard text.count < size else {
                throw .bufferTooSmall(actual: Int(size), expected: text.count &+ 1)
            }
            for index in 0..<text.count { out[index] = CChar(bitPattern: text[index]) }
            out[text.count] = 0
        }
    }
}

extension BatchNormPlan {
    fileprivate init(
        _ problem: UnsafePointer<bn_problem>?, _ args: UnsafePointer<bn_explain_args>?
    ) throws(BatchNormError) {
        let problem = try Problem(problem)
        let call = try BatchNormCall(read(args))
        self = try BatchNormalization.explain(call, shape: problem.shape, scalar: problem.scalar)
    }
}

extension BatchNormCall {
    fileprivate init(_ args: bn_explain_args) throws(BatchNormError) {
        try self.init(option(args.operation, .operation))
        try requireReserved(args.reserved)
        activation = try Activation(args.activation)
        hasResidual = try flag(args.residual, .residual)
        hasActivationMask = try flag(args.activation_mask, .activationMask)
        let (byMask, byLengths) = (try flag(args.mask, .mask), try flag(args.lengths, .lengths))
        guard !(byMask && byLengths) else { throw .exclusive(.mask, .lengths) }
        mask = byMask ? .positions : byLengths ? .lengths : nil
        if try !flag(args.grad_input, .gradInput) { gradients.remove(.input) }
        if try !flag(args.grad_weight, .gradWeight) { gradients.remove(.weight) }
        if try !flag(args.grad_bias, .gradBias) { gradients.remove(.bias) }
    }
}

extension bn_plan_info {
    fileprivate init(_ plan: BatchNormPlan) {
        self.init()
        isa = plan.isa.rawValue
        threads = Int32(clamping: plan.threads)
        by_columns = plan.isByColumns ? 1 : 0
        steps = Int32(plan.steps)
        nontemporal = plan.hasNontemporalStores ? 1 : 0
        run_channels = Int64(plan.runChannels)
        rows_per_line = Int64(plan.rowsPerLine)
        piece_rows = Int64(plan.pieceRows)
        piece_values = Int64(plan.pieceValues)
        pieces = Int64(plan.pieces)
        workspace_bytes = Int64(plan.workspaceBytes)
        tensor_bytes = Int64(plan.tensorBytes)
        bytes_read = Int64(plan.bytesRead)
        bytes_written = Int64(plan.bytesWritten)
        limit_bytes_read = Int64(plan.limitBytesRead)
        limit_bytes_written = Int64(plan.limitBytesWritten)
        l2_bytes = Int64(plan.l2Bytes)
        l3_bytes = Int64(plan.l3Bytes)
    }
}
