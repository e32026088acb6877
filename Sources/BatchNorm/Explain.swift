// What a call on a shape would do on this machine now, in numbers, without running it; ExplainText.swift says it in
// words. Nothing is decided here: all of it follows from what the call moves (Call.swift), from the plan that the operation
// itself would get (Planner.swift), and from the sizes of the caches.

import CBatchNormKernels

extension BatchNormalization {
    /// What `call` on tensors of this shape would do on this machine now: the numbers, and as `description` the words.
    ///
    /// Nothing is run, and next to nothing allocated. `BatchNormSettings` count as they do for the operation itself.
    ///
    ///     let shape = try Shape.nchw(32, 64, 56, 56)
    ///     print(try BatchNormalization.explain(.forwardTraining(activation: .relu, residual: true), shape: shape))
    ///
    /// - Throws: `BatchNormError.sizeOverflow`, `.negativeSlope` or `.lengthsRank`, as the operation does. One value per
    ///   channel is explained as `OneValuePolicy.allow` would run it, and a mask as if all positions took part.
    public static func explain(
        _ call: BatchNormCall, shape: Shape, scalar: ScalarType = .float32
    ) throws(BatchNormError) -> BatchNormPlan {
        try BatchNormPlan(call, shape: shape, scalar: scalar, machine: .current)
    }
}

/// How a call would be done; see `explain`. All sizes are in bytes.
///
/// The tensor is seen as rows x channels x inner values: N x C x S in `.nchw`, (N * S) x C x 1 in `.nhwc`. It is cut
/// into pieces, each of which one thread reduces; those at the ends of the tensor may be smaller. An empty batch has no
/// piece, and neither has a backward of which nothing is wanted.
public struct BatchNormPlan: Equatable, Sendable {
    /// What would be done.
    public let call: BatchNormCall
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
    /// first all pieces are reduced, then merged, then all is applied. 2: the same, but for the first, where a backward
    /// needs no sums, or for the last, where nothing is applied. 0: there is nothing to do.
    public private(set) var steps = 0
    /// Whether stores bypass the caches.
    public private(set) var hasNontemporalStores = false
    /// Memory that the call allocates, for sums and for a mask made of lengths; a layer keeps it for its next call.
    public private(set) var workspaceBytes = 0

    /// One tensor.
    public let tensorBytes: Int
    /// What the call reads of its tensors and masks, from memory or from a cache that the caller has left them in. A second
    /// read counts only if what the first one brought cannot be expected to stay in a cache until then.
    public private(set) var bytesRead = 0
    /// What the call writes.
    public private(set) var bytesWritten = 0
    /// What any implementation must read: each tensor and mask that the results depend on, once.
    public private(set) var limitBytesRead = 0
    /// What any implementation must write: each result once.
    public private(set) var limitBytesWritten = 0

    /// One core's second-level cache, as the plan assumes it.
    public let l2Bytes: Int
    /// What the plan counts on of the last-level cache: of more than 64 MiB at most 8 MiB for each of the machine's cores,
    /// for they are a whole socket's, and a virtual machine is shown them all.
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
        _ call: BatchNormCall, shape: Shape, scalar: ScalarType, machine: Machine
    ) throws(BatchNormError) {
        try shape.requireAddressable(scalar)
        try call.validate(shape, scalar)
        self.call = call
        self.shape = shape
        self.scalar = scalar
        isa = machine.isa
        threadsAllowed = machine.threads
        tensorBytes = shape.count &* scalar.size
        l2Bytes = machine.l2
        l3Bytes = machine.l3
        guard !shape.isEmpty else { return }
        if call.mask == .lengths { workspaceBytes = shape.valuesPerChannel }
        guard hasWork else { return }

        let grid = shape.grid(scalar)
        var cut = Kernels.cut(call, grid, machine)
        let plan = cut.plan
        rows = Int(grid.rows)
        innerValues = Int(grid.inner)
        isByColumns = plan.by_columns != 0
        runChannels = Int(plan.run_channels)
        pieceRows = Int(plan.piece_rows)
        rowsPerLine = pieceRows < Int(plan.rows_per_line) ? 1 : Int(plan.rows_per_line)
        pieceValues = Int(plan.piece_values)
        pieces = Int(cut.runs &* cut.pieces)
        workspaceBytes &+= Kernels.workspaceBytes(call, &cut)

        let schedule =
            call.operation == .forwardInference ? bnk_inference_schedule(&cut) : bnk_reduction_schedule(&cut)
        if schedule.whole_rows != 0 {
            runChannels = shape.channels
            pieces = Int(schedule.tasks)
            pieceRows = rows / pieces &+ (rows % pieces == 0 ? 0 : 1)
        }
        steps = Int(schedule.steps)
        if steps == 3 { steps = 1 + (call.reduces ? 1 : 0) + (call.applies ? 1 : 0) }
        threads = Int(min(Int64(plan.threads), schedule.tasks))

        let written = call.written
        // The residual's gradient alone goes the ordinary way.
        hasNontemporalStores = plan.nontemporal != 0 && !written.isDisjoint(with: [.output, .gradInput])
        limitBytesRead = call.needed.bytes(shape, scalar)
        limitBytesWritten = written.bytes(shape, scalar)
        bytesWritten = limitBytesWritten
        bytesRead = call.readToReduce.union(call.readToApply).bytes(shape, scalar)
        let readTwice = call.readToReduce.intersection(call.readToApply)
        guard !readTwice.isEmpty else { return }

        let mask = call.mask == nil ? 0 : shape.valuesPerChannel
        let values = call.readToReduce.subtracting([.mask, .lengths]).bytes(shape, scalar)
        // A task is a run where one goes through reduction and application.
        let isTaskRun = steps == 1
        heldBytes = sum(isTaskRun ? values / shape.channels &* runChannels : values, mask)
        // Where a thread applies what others have reduced, it finds none of it in its own cache.
        if heldBytes <= l2Bytes, isTaskRun || threads == 1 {
            held = .l2
        } else if heldBytes <= l3Bytes / (isTaskRun ? threads : 1) {
            held = .l3
        } else {
            bytesRead = sum(bytesRead, readTwice.bytes(shape, scalar))
        }
    }

    /// Whether any value has to be looked at.
    var hasWork: Bool { !shape.isEmpty && (call.reduces || call.applies) }
}
