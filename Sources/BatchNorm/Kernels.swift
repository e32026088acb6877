// How operations reach the C kernels: jobs in, a plan and a workspace out. Everything has been validated before it gets
// here. (Settings, the machine and statistics without tensors call C by themselves.)

import CBatchNormKernels

extension Shape {
    /// The dense grid [rows][channels][inner] as which the kernels see every layout and rank. Not for empty shapes,
    /// whose spatial product may overflow.
    func grid(_ scalar: ScalarType) -> bnk_grid {
        let spatial = sizes[2] &* sizes[3] &* sizes[4]
        let isDouble: Int32 = scalar == .float64 ? 1 : 0
        let half =
            switch scalar {
            case .float32, .float64: Int32(BNK_HALF_NONE)
            case .bfloat16: Int32(BNK_HALF_BFLOAT16)
            case .float16: Int32(BNK_HALF_FLOAT16)
            }
        return switch layout {
        case .nchw:
            bnk_grid(
                rows: Int64(batch), channels: Int64(channels), inner: Int64(spatial),
                is_double: isDouble, half: half)
        case .nhwc:
            bnk_grid(
                rows: Int64(batch &* spatial), channels: Int64(channels), inner: 1,
                is_double: isDouble, half: half)
        }
    }
}

/// What the C side can do.
package enum Kernels {
    static func forwardTraining(
        _ call: BatchNormCall, _ grid: bnk_grid, _ job: inout bnk_forward, workspace: inout Memory
    ) throws(BatchNormError) {
        var cut = cut(call, grid)
        try workspace.reserve(workspaceBytes(call, &cut))
        job.workspace = workspace.address
        bnk_forward_training(&cut, &job)
    }

    static func forwardInference(_ call: BatchNormCall, _ grid: bnk_grid, _ job: inout bnk_inference) {
        var cut = cut(call, grid)
        bnk_forward_inference(&cut, &job)
    }

    static func backward(
        _ call: BatchNormCall, _ grid: bnk_grid, _ job: inout bnk_backward, workspace: inout Memory
    ) throws(BatchNormError) {
        var cut = cut(call, grid)
        try workspace.reserve(workspaceBytes(call, &cut))
        job.workspace = workspace.address
        bnk_backward_run(&cut, &job)
    }

    static func moments(
        _ grid: bnk_grid, _ input: View, _ positions: bnk_positions,
        _ moments: inout bnk_moment_arrays
    ) throws(BatchNormError) {
        var cut = partCut(BatchNormCall(.forwardTraining), grid)
        var workspace = Memory()
        try workspace.reserve(Int(bnk_moments_workspace(&cut)))
        bnk_moments_run(&cut, input.address, positions, &moments, workspace.address)
    }

    /// The forward from given moments, whose statistics are written also if the tensor is empty.
    static func normalize(
        _ call: BatchNormCall, _ shape: Shape, _ scalar: ScalarType, _ moments: bnk_moment_arrays,
        _ job: inout bnk_forward, workspace: inout Memory
    ) throws(BatchNormError) {
        var moments = moments
        guard !shape.isEmpty else {
            var grid = channelGrid(shape.channels, scalar)
            return bnk_normalize_nothing(&grid, &moments, &job)
        }
        var cut = partCut(call, shape.grid(scalar))
        try workspace.reserve(Int(bnk_normalize_workspace(&cut)))
        job.workspace = workspace.address
        bnk_normalize(&cut, &moments, &job)
    }

    static func backwardReduce(
        _ grid: bnk_grid, _ job: inout bnk_backward, _ sums: inout bnk_gradient_sums
    ) throws(BatchNormError) {
        var cut = partCut(BatchNormCall(.backward), grid)
        var workspace = Memory()
        try workspace.reserve(Int(bnk_backward_reduce_workspace(&cut)))
        job.workspace = workspace.address
        bnk_backward_reduce(&cut, &job, &sums)
    }

    /// Backward from given sums, whose parameters' gradients are written also if the tensor is empty.
    static func backwardApply(
        _ call: BatchNormCall, _ shape: Shape, _ scalar: ScalarType, _ sums: bnk_gradient_sums,
        _ job: inout bnk_backward, workspace: inout Memory
    ) throws(BatchNormError) {
        var sums = sums
        guard !shape.isEmpty else {
            var grid = channelGrid(shape.channels, scalar)
            return bnk_backward_apply_nothing(&grid, &sums, &job)
        }
        var cut = partCut(call, shape.grid(scalar))
        try workspace.reserve(Int(bnk_backward_apply_workspace(&cut)))
        job.workspace = workspace.address
        bnk_backward_apply(&cut, &sums, &job)
    }

    /// How a call is done on this machine now.
    private static func cut(_ call: BatchNormCall, _ grid: bnk_grid) -> bnk_cut {
        cut(call, grid, Planner.isSerial(grid) ? .currentForOneThread : .current)
    }

    /// The same on a machine: as it runs, and as it is explained.
    static func cut(_ call: BatchNormCall, _ grid: bnk_grid, _ machine: Machine) -> bnk_cut {
        bnk_cut_grid(grid, Planner.plan(grid, tensors: call.tensors, machine: machine))
    }

    /// What a whole operation needs besides.
    static func workspaceBytes(_ call: BatchNormCall, _ cut: inout bnk_cut) -> Int {
        switch call.operation {
        case .forwardTraining: Int(bnk_forward_workspace(&cut))
        case .forwardInference: 0
        case .backward, .backwardFrozen: Int(bnk_backward_workspace(&cut))
        }
    }

    /// The whole operation's pieces, so that its two parts give the same bits; a part takes no run through both.
    private static func partCut(_ call: BatchNormCall, _ grid: bnk_grid) -> bnk_cut {
        var cut = cut(call, grid)
        cut.plan.whole_runs = 0
        return cut
    }

    /// A grid that says only how many channels there are.
    private static func channelGrid(_ channels: Int, _ scalar: ScalarType) -> bnk_grid {
        bnk_grid(
            rows: 1, channels: Int64(channels), inner: 1, is_double: scalar == .float64 ? 1 : 0,
            half: Int32(BNK_HALF_NONE))
    }

    /// Mean and invstd in float64, as the inference forward uses them.
    static func statisticsFromRunning(
        channels: Int, _ scalar: ScalarType, mean: UnsafeRawPointer?, variance: UnsafeRawPointer?,
        epsilon: Double, savedMean: UnsafeMutableRawPointer?, savedInvstd: UnsafeMutableRawPointer?
    ) {
        var grid = channelGrid(channels, scalar)
        bnk_statistics_from_running(
            &grid, mean, variance, epsilon, savedMean?.assumingMemoryBound(to: Double.self),
            savedInvstd?.assumingMemoryBound(to: Double.self))
    }

    /// How many bytes are not 0.
    static func countTakingPart(_ mask: UnsafePointer<UInt8>, _ count: Int) -> Int {
        Int(bnk_count_taking_part(mask, Int64(count)))
    }

    /// 64-byte aligned, not cleared; nil if there is none.
    static func allocate(_ bytes: Int) -> UnsafeMutableRawPointer? { bnk_allocate(Int64(bytes)) }

    static func free(_ memory: UnsafeMutableRawPointer?) { bnk_free(memory) }

    /// The caller's pool of threads in C's words; nil: none.
    package static func setThreadPool(
        _ run: (
            @convention(c) (
                UnsafeMutableRawPointer?, Int32,
                (@convention(c) (UnsafeMutableRawPointer?, Int32) -> Void)?, UnsafeMutableRawPointer?
            ) -> Void
        )?, _ pool: UnsafeMutableRawPointer?
    ) {
        bnk_set_pool(run, pool, nil)
    }

    /// A file's name or "pool", zero-terminated; it lives as long as the process.
    package static var threadRuntime: UnsafePointer<CChar>? { bnk_thread_runtime() }

    /// This thread's own text, zero-terminated and at first empty.
    package static var threadText: UnsafeMutableBufferPointer<UInt8> {
        let text = UnsafeMutableRawPointer(bnk_thread_text())
        return UnsafeMutableBufferPointer(
            start: text?.assumingMemoryBound(to: UInt8.self), count: Int(BNK_TEXT_SIZE))
    }
}
