// What an operation on a shape would do on this machine now, in numbers and in words, without running it. Nothing is
// decided here: all of it follows from the plan that the operation itself would get (Planner.swift) and from the sizes
// of the caches.

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

/// What `operation` on tensors of this shape would do on this machine now: the numbers, and as `description` the words.
///
/// Nothing is run, and next to nothing allocated. `BatchNormSettings` count as they do for the operation itself.
///
///     print(try explain(.forwardTraining, shape: .nchw(32, 64, 56, 56)))
///
/// - Throws: `BatchNormError.sizeOverflow`, as the operation does. One value per channel is explained as
///   `OneValuePolicy.allow` would run it.
public func explain(
    _ operation: BatchNormOperation, shape: Shape, scalar: ScalarType = .float32
) throws(BatchNormError) -> BatchNormPlan {
    try BatchNormPlan(operation, shape: shape, scalar: scalar, machine: .current)
}

/// How an operation would be done; see `explain`. All sizes are in bytes.
///
/// The tensor is seen as rows x channels x inner values: N x C x S in `.nchw`, (N * S) x C x 1 in `.nhwc`. It is cut into
/// pieces, each of which one thread reduces; those at the ends of the tensor may be smaller. An empty batch has no piece.
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

    /// Whether neighbouring channels fill the vectors, each column with a sum of its own; if not, the inner values of one
    /// channel do.
    public private(set) var isByColumns = false
    /// Neighbouring channels that are taken together, a "run"; 1 by rows.
    public private(set) var runChannels = 0
    /// So many rows count as one longer row, where a single one is too short; else 1.
    public private(set) var foldedRows = 0
    /// Rows of a piece.
    public private(set) var pieceRows = 0
    /// Inner values of a row of a piece, of each of its channels.
    public private(set) var pieceValues = 0
    /// Pieces of the whole tensor.
    public private(set) var pieces = 0

    /// 1: each run of channels is reduced and then applied by one thread, or there is nothing to reduce (inference). 3: first
    /// all pieces are reduced, then merged, then all is applied. 0: the batch is empty.
    public private(set) var steps = 0
    /// Whether stores bypass the caches.
    public private(set) var hasNontemporalStores = false
    /// Memory that the call allocates; a layer keeps it for its next call.
    public private(set) var workspaceBytes = 0

    /// One tensor.
    public let tensorBytes: Int
    /// What the call reads of its tensors, from memory or from a cache that the caller has left them in. A second read counts
    /// only if what the first one brought cannot be expected to stay in a cache until then.
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

    /// What a task brings into the caches between the first and the second time that it needs it; 0 if there is no second time.
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
        isByColumns = plan.by_columns != 0
        runChannels = Int(plan.run_channels)
        pieceRows = Int(plan.piece_rows)
        foldedRows = pieceRows < Int(plan.rows_per_line) ? 1 : Int(plan.rows_per_line)
        pieceValues = Int(plan.piece_values)
        hasNontemporalStores = plan.nontemporal != 0
        let runs = Int(cut.runs)
        pieces = runs &* Int(cut.pieces)

        let isWhole = operation == .forwardInference || plan.whole_runs != 0
        steps = isWhole ? 1 : 3
        // A task is a run where one goes through reduction and application, else a piece.
        let isTaskRun = isWhole && operation != .forwardInference
        threads = min(Int(plan.threads), isTaskRun ? runs : pieces)
        workspaceBytes =
            switch operation {
            case .forwardTraining: Int(bnk_forward_workspace(&cut))
            case .forwardInference: 0
            case .backward, .backwardFrozen: Int(bnk_backward_workspace(&cut))
            }

        limitBytesRead = product(tensorBytes, operation.inputs)
        limitBytesWritten = tensorBytes
        bytesWritten = tensorBytes
        bytesRead = limitBytesRead
        guard operation.inputsReadTwice > 0 else { return }
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
    fileprivate var inputs: Int {
        switch self {
        case .forwardTraining, .forwardInference: 1
        case .backward, .backwardFrozen: 2
        }
    }

    /// Those that are needed again after the reduction. Constant statistics leave the input out of its own gradient.
    fileprivate var inputsReadTwice: Int {
        switch self {
        case .forwardInference: 0
        case .forwardTraining, .backwardFrozen: 1
        case .backward: 2
        }
    }

    fileprivate var name: StaticString {
        switch self {
        case .forwardTraining: "forward, training"
        case .forwardInference: "forward, inference"
        case .backward: "backward, batch statistics"
        case .backwardFrozen: "backward, frozen statistics"
        }
    }

    /// What moves as many bytes and computes next to nothing.
    fileprivate var limitName: StaticString { inputs == 1 ? "a copy" : "a triad" }
}

/// The product, or the largest number there is: of tensors whose bytes just fit in 63 bits there may be several.
private func product(_ a: Int, _ b: Int) -> Int {
    let (value, overflow) = a.multipliedReportingOverflow(by: b)
    return overflow ? .max : value
}

// MARK: - In words

extension BatchNormPlan: CustomStringConvertible {
    /// The plan in a few lines of plain English, for people who have never seen the sources. The wording may change from
    /// version to version; programs take the numbers.
    public var description: String {
        withText { String(decoding: $0, as: UTF8.self) }
    }

    /// Runs `body` with the lines, without a line end or NUL after the last. They lie on the stack: nothing is allocated.
    package func withText<Result, Failure>(
        _ body: (UnsafeMutableBufferPointer<UInt8>) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        // BN_EXPLAIN_TEXT_SIZE in batchnorm.h.
        var bytes = InlineArray<2048, UInt8>(repeating: 0)
        var span = bytes.mutableSpan
        return try span.withUnsafeMutableBufferPointer { (buffer) throws(Failure) in
            var text = TextWriter(buffer)
            write(to: &text)
            return try body(text.bytes)
        }
    }

    private func write(to text: inout TextWriter) {
        text.append(operation.name)
        text.append(": ")
        text.append(scalar.name)
        text.append(" ")
        text.append(shape)
        guard !shape.isEmpty else {
            text.append("\nan empty batch: there is nothing to do")
            return
        }
        text.append(", ")
        text.append(decimalBytes: tensorBytes)
        text.append(" a tensor\n")
        writeThreads(to: &text)
        writePieces(to: &text)
        writeSteps(to: &text)
        writeStores(to: &text)
        text.append("workspace: ")
        if workspaceBytes == 0 { text.append("none") } else { text.append(decimalBytes: workspaceBytes) }
        text.append("\nlimit: ")
        text.append(operation.limitName)
        text.append(", which")
        writeTraffic(limitBytesRead, limitBytesWritten, to: &text)
        text.append("\nthis plan")
        writeTraffic(bytesRead, bytesWritten, to: &text)
        text.append(", ")
        let ratio =
            (Double(bytesRead) + Double(bytesWritten))
            / (Double(limitBytesRead) + Double(limitBytesWritten))
        text.append(hundredths: Int(ratio * 100 + 0.5))
        text.append(" times the limit")
        if operation == .forwardTraining, shape.valuesPerChannel == 1 {
            text.append("\none value per channel: an error unless the call's one_value policy allows it")
        }
    }

    private func writeThreads(to text: inout TextWriter) {
        text.append(isa.name)
        text.append(", ")
        text.append(threads, "thread")
        if threads == 1, threadsAllowed > 1 {
            text.append(" of ")
            text.append(threadsAllowed)
            text.append(": so little work is done sooner without the others")
        } else if threads > 1 {
            text.append(", one parallel region")
        }
        text.append("\n")
    }

    private func writePieces(to text: inout TextWriter) {
        let grid = shape.grid(scalar)
        let inner = Int(grid.inner)
        text.append("seen as ")
        text.append(Int(grid.rows), "row")
        text.append(" of ")
        text.append(shape.channels, "channel")
        if inner > 1 {
            text.append(" of ")
            text.append(inner, "value")
        }
        text.append(", walked by ")
        if isByColumns {
            text.append("columns: ")
            text.append(runChannels, "neighbouring channel")
            if foldedRows > 1 {
                text.append(" of ")
                text.append(foldedRows, "row")
            }
            text.append(", ")
            text.append(runChannels &* inner &* foldedRows, "column")
            text.append(", fill the vectors\n")
        } else {
            text.append("rows: the values of one channel fill the vectors\n")
        }
        text.append(pieces, "piece")
        text.append(pieces == 1 ? " of " : " of up to ")
        text.append(pieceRows, "row")
        text.append(" x ")
        text.append(runChannels, "channel")
        if inner > 1 {
            text.append(" x ")
            text.append(pieceValues, "value")
        }
        text.append("\n")
    }

    private func writeSteps(to text: inout TextWriter) {
        guard operation.inputsReadTwice > 0 else {
            text.append("one step: the statistics are given, so each piece is applied at once\n")
            return
        }
        if steps == 1 {
            text.append("one step: ")
            if runChannels == shape.channels {
                text.append("the whole tensor")
            } else if runChannels == 1 {
                text.append("each channel")
            } else {
                text.append("each run of ")
                text.append(runChannels, "channel")
            }
            text.append(" is reduced and then applied by one thread")
            // reduction.c
            text.append(
                hasNontemporalStores && !isByColumns
                    ? "; while it is written, the next one is reduced\n" : "\n")
        } else {
            text.append("three steps: all pieces are reduced, their sums merged, then all is applied, ")
            text.append("last piece first\n")
        }
        text.append("in between, ")
        text.append(decimalBytes: heldBytes)
        switch held {
        case .l2:
            text.append(" wait in the L2 cache (")
            text.append(binaryBytes: l2Bytes)
            text.append("): memory is read once\n")
        case .l3:
            text.append(" wait in the L3 cache (")
            text.append(binaryBytes: l3Bytes)
            text.append("): memory is read once\n")
        case .memory:
            if steps == 1, threads > 1 {
                text.append(" a thread")
            }
            text.append(" are more than the L3 cache (")
            text.append(binaryBytes: l3Bytes)
            text.append(") holds: memory is read twice\n")
        }
    }

    private func writeStores(to text: inout TextWriter) {
        text.append("stores: ")
        text.append(
            hasNontemporalStores
                ? "non-temporal, past the caches: the tensors do not fit together in L3 ("
                : "ordinary: the tensors fit together in L3, where the next operation finds the output (")
        text.append(binaryBytes: l3Bytes)
        text.append(")\n")
    }

    private func writeTraffic(_ read: Int, _ written: Int, to text: inout TextWriter) {
        text.append(" reads ")
        text.append(decimalBytes: read)
        text.append(" and writes ")
        text.append(decimalBytes: written)
    }
}

extension TextWriter {
    /// "1 channel", "2 channels".
    fileprivate mutating func append(_ count: Int, _ noun: StaticString) {
        append(count)
        append(" ")
        append(noun)
        if count != 1 { append("s") }
    }

    /// As "1.50".
    fileprivate mutating func append(hundredths number: Int) {
        append(number / 100)
        append(".")
        append(UInt8(48 + number / 10 % 10))
        append(UInt8(48 + number % 10))
    }

    /// Tensors, in the powers of ten that memory's speed is told in: "401 KB", "25.7 MB".
    fileprivate mutating func append(decimalBytes bytes: Int) {
        append(bytes, base: 1000, units: ["B", "KB", "MB", "GB", "TB"])
    }

    /// Caches, in the powers of two that they come in: "512 KiB", "32 MiB".
    fileprivate mutating func append(binaryBytes bytes: Int) {
        append(bytes, base: 1024, units: ["B", "KiB", "MiB", "GiB", "TiB"])
    }

    /// With one decimal below 100, where that is not 0.
    private mutating func append(_ bytes: Int, base: Double, units: InlineArray<5, StaticString>) {
        var number = Double(bytes)
        var unit = 0
        while number >= base - 0.5, unit < 4 {
            number /= base
            unit &+= 1
        }
        let tenths = Int(number * 10 + 0.5)
        if tenths < 1000 {
            append(tenths / 10)
            if tenths % 10 != 0 {
                append(".")
                append(tenths % 10)
            }
        } else {
            append(Int(number + 0.5))
        }
        append(" ")
        append(units[unit])
    }
}
