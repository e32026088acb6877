// What an operation on a shape would do on this machine now, in numbers, without running it; ExplainText.swift says it in
// words. Nothing is decided here: all of it follows from the plan that the operation itself would get (Planner.swift) and
// from the sizes of the caches.

import CBatchNormKernels

/// The operations that can be explained. Raw values are those of the C header: pinned.
public enum BatchNormOperation: Int32, Sendable {
    /// Forward with the batch's statistics.
    case forwardTraining = 1
    /// Forward with running statistics.
    case forwardInference = 2
    /// Backward of a training forward, with all three gradients.
    case backward = 3
    /// Backward through running statistics, which are constants, with all three gradients.
    case backwardFrozen = 4
}

extension BatchNormalization {
    /// What `operation` on tensors of this shape would do on this machine now: the numbers, and as `description` the
    /// words.
    ///
    /// Nothing is run, and next to nothing allocated. `BatchNormSettings` count as they do for the operation itself.
    ///
    ///     print(try BatchNormalization.explain(.forwardTraining, shape: .nchw(32, 64, 56, 56)))
    ///
    /// - Throws: `BatchNormError.sizeOverflow`, as the operation does. One value per channel is explained as
    ///   `OneValuePolicy.allow` would run it.
    public static func explain(
        _ operation: BatchNormOperation, shape: Shape, scalar: ScalarType = .float32
    ) throws(BatchNormError) -> BatchNormPlan {
        try BatchNormPlan(operation, shape: shape, scalar: scalar, machine: .current)
    }
}

/// How an operation would be done; see `explain`. All sizes are in bytes.
///
/// The tensor is seen as rows x channels x inner values: N x C x S in `.nchw`, (N * S) x C x 1 in `.nhwc`. It is cut
/// into pieces, each of which one thread reduces; those at the ends of the tensor may be smaller. An empty batch has no
/// piece.
public struct BatchNormPlan: Equatable, Sendable {
    /// What would be done.
    public let operation: BatchNormOperation
    /// On tensors of this shape,
    public let shape: Shape
    /// with elements of this type.
    public let scalar: ScalarType

    /// The instruction set.
    public let isa: ISA
    /// The threads of the call; 1 means that there is no parallel region.
    public private(set) var threads = 1
    /// The threads that the call might have had (`BatchNormSettings.threads`).
    public let threadsAllowed: Int

    /// Whether neighbouring channels fill the vectors, each column with a sum of its own; if not, the inner values of
    /// one channel do.
    public private(set) var isByColumns = false
    /// Neighbouring channels that are taken together, a "run"; 1 by rows.
    public private(set) var runChannels = 0
    /// So many rows count as one longer row, where a single one is too short; else 1.
    public private(set) var rowsPerLine = 0
    /// Rows of a piece.
    public private(set) var pieceRows = 0
    /// Inner values of a row of a piece, of each of its channels.
    public private(set) var pieceValues = 0
    /// Pieces of the whole tensor.
    public private(set) var pieces = 0

    /// 1: each run of channels is reduced and then applied by one thread, or there is nothing to reduce (inference). 3:
    /// first all pieces are reduced, then merged, then all is applied. 0: the batch is empty.
    public private(set) var steps = 0
    /// Whether stores bypass the caches.
    public private(set) var hasNontemporalStores = false
    /// Memory that the call allocates; a layer keeps it for its next call.
    public private(set) var workspaceBytes = 0

    /// One tensor.
    public let tensorBytes: Int
    /// What the call reads of its tensors, from memory or from a cache that the caller has left them in. A second read
    /// counts only if what the first one brought cannot be expected to stay in a cache until then.
    public private(set) var bytesRead = 0
    /// What the call writes.
    public private(set) var bytesWritten = 0
    /// What any implementation must read: each input tensor once.
    public private(set) var limitBytesRead = 0
    /// What any implementation must write: the output tensor once.
    public private(set) var limitBytesWritten = 0

    /// One core's second-level cache, as the plan assumes it.
    public let l2Bytes: Int
    /// The last-level cache, as the plan assumes it.
    public let l3Bytes: Int

    /// Rows of the whole tensor, and inner values of a row of each channel.
    private(set) var rows = 0
    private(set) var innerValues = 0
    /// What a task brings into the caches between the first and the second time that it needs it; 0 if there is no
    /// second time.
    private(set) var heldBytes = 0
    /// Where the second read finds it.
    private(set) var held = Place.memory

    enum Place: Equatable, Sendable { case l2, l3, memory }
}

extension BatchNormPlan {
    init(
        _ operation: BatchNormOperation, shape: Shape, scalar: ScalarType, machine: Machine
    ) throws(BatchNormError) {
        try shape.requireAddressable(scalar)
        self.operation = operation
        self.shape = shape
        self.scalar = scalar
        isa = machine.isa
        threadsAllowed = machine.threads
        tensorBytes = shape.count &* scalar.size
        l2Bytes = machine.l2
        l3Bytes = machine.l3
        guard !shape.isEmpty else { return }

        let grid = shape.grid(scalar)
        let plan = Planner.plan(operation, grid: grid, machine: machine)
        var cut = bnk_cut_grid(grid, plan)
        rows = Int(grid.rows)
        innerValues = Int(grid.inner)
        isByColumns = plan.by_columns != 0
        runChannels = Int(plan.run_channels)
        pieceRows = Int(plan.piece_rows)
        rowsPerLine = pieceRows < Int(plan.rows_per_line) ? 1 : Int(plan.rows_per_line)
        pieceValues = Int(plan.piece_values)
        hasNontemporalStores = plan.nontemporal != 0
        pieces = Int(cut.runs &* cut.pieces)

        let schedule: bnk_schedule
        switch operation {
        case .forwardTraining:
            schedule = bnk_reduction_schedule(&cut)
            workspaceBytes = Int(bnk_forward_workspace(&cut))
        case .forwardInference:
            schedule = bnk_inference_schedule(&cut)
        case .backward, .backwardFrozen:
            schedule = bnk_reduction_schedule(&cut)
            workspaceBytes = Int(bnk_backward_workspace(&cut))
        }
        steps = Int(schedule.steps)
        threads = Int(min(Int64(plan.threads), schedule.tasks))

        limitBytesRead = product(tensorBytes, operation.inputs)
        limitBytesWritten = tensorBytes
        bytesWritten = tensorBytes
        bytesRead = limitBytesRead
        guard operation.inputsReadTwice > 0 else { return }
        // A task is a run where one goes through reduction and application.
        let isTaskRun = steps == 1
        let heldTensor = isTaskRun ? tensorBytes / shape.channels &* runChannels : tensorBytes
        heldBytes = product(heldTensor, operation.inputs)
        // Where a thread applies what others have reduced, it finds none of it in its own cache.
        if heldBytes <= l2Bytes, isTaskRun || threads == 1 {
            held = .l2
        } else if product(heldBytes, isTaskRun ? threads : 1) <= l3Bytes {
            held = .l3
        } else {
            bytesRead = product(tensorBytes, operation.inputs &+ operation.inputsReadTwice)
        }
    }
}

extension BatchNormOperation {
    /// Tensors that are read.
    var inputs: Int {
        switch self {
        case .forwardTraining, .forwardInference: 1
        case .backward, .backwardFrozen: 2
        }
    }

    /// Those that are needed again after the reduction. Constant statistics leave the input out of its own gradient.
    var inputsReadTwice: Int {
        switch self {
        case .forwardInference: 0
        case .forwardTraining, .backwardFrozen: 1
        case .backward: 2
        }
    }
}

/// The product, or the largest number there is: of tensors whose bytes just fit in 63 bits there may be several.
private func product(_ a: Int, _ b: Int) -> Int {
    let (value, overflow) = a.multipliedReportingOverflow(by: b)
    return overflow ? .max : value
}
