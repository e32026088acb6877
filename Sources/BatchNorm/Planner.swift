// Decides how a call's work is cut: a pure function of shape and machine, testable without a kernel.
// What decides the order of the sums, and so the bits of the result, must depend on the shape alone: `partition` sees no
// machine.

import CBatchNormKernels

enum Planner {
    /// `tensors`: how many of the grid's size are moved, those that are read and those that are written.
    static func plan(_ grid: bnk_grid, tensors: Int, machine: Machine) -> bnk_plan {
        var plan = partition(grid)
        plan.isa = machine.isa.rawValue
        plan.threads = isSerial(grid) ? 1 : Int32(clamping: machine.threads)
        plan.nontemporal = isNontemporal(tensors, tensorBytes: bytes(grid), machine: machine) ? 1 : 0
        plan.whole_runs = takesWholeRuns(plan, grid, machine: machine) ? 1 : 0
        return plan
    }

    /// Whether one thread does it, whatever the machine.
    static func isSerial(_ grid: bnk_grid) -> Bool { bytes(grid) < serialBytes }

    // MARK: - By shape alone

    /// From this length on, a channel's inner values fill vectors well enough by themselves.
    static let shortestRow = 256
    /// A run of columns should be long enough to stream from memory, and short enough for its sums to stay in L1.
    static let columnsWanted = 512
    /// So many pieces keep the cores of a large machine busy. Each costs a merge per channel,
    static func piecesWanted(channels: Int) -> Int { channels <= 64 ? 64 : 32 }
    /// and none should be smaller than this many values.
    static let smallestPiece = 32768
    /// Fewer values of a channel than these are summed in float64, which takes longer.
    static let fewestInChains = Int(BNK_MANY_MOMENTS)

    static func partition(_ grid: bnk_grid) -> bnk_plan {
        let rows = Int(grid.rows), channels = Int(grid.channels), inner = Int(grid.inner)
        var plan = bnk_plan()
        plan.rows_per_line = 1
        plan.run_channels = 1
        plan.piece_values = grid.inner

        if inner >= shortestRow {
            let wanted = pieces(channels: channels, runs: channels, valuesPerRun: rows &* inner)
            if wanted <= rows {
                // Four rows are walked at once, so that groups of four lose nothing.
                plan.piece_rows = Int64(min(rows, roundUp(ceilDiv(rows, wanted), to: 4)))
            } else {
                plan.piece_rows = 1
                plan.piece_values = Int64(min(inner, roundUp(ceilDiv(inner, ceilDiv(wanted, rows)), to: 16)))
            }
            return plan
        }

        plan.by_columns = 1
        if inner > 1 || channels >= columnsWanted {
            // Whole vectors: a run is a multiple of 16 columns wherever the shape allows it.
            let step = 16 / commonDivisor(inner)
            let aligned = roundUp(max(1, columnsWanted / inner), to: step)
            let run = aligned &* inner <= maxColumns ? aligned : maxColumns / inner
            plan.run_channels = Int64(min(channels, run))
        } else {
            let step = 16 / commonDivisor(channels)
            plan.run_channels = grid.channels
            plan.rows_per_line = Int64(min(roundUp(ceilDiv(columnsWanted, channels), to: step), maxColumns / channels))
        }
        let run = Int(plan.run_channels), fold = Int(plan.rows_per_line)
        let wanted = pieces(
            channels: channels, runs: ceilDiv(channels, run), valuesPerRun: rows &* run &* inner)
        plan.piece_rows = Int64(
            grid.is_double != 0
                ? rowsOfPiece(rows, wanted, step: 4 * fold)
                : rowsForChains(rows, inner, wanted, step: 4 * fold))
        return plan
    }

    private static func rowsOfPiece(_ rows: Int, _ pieces: Int, step: Int) -> Int {
        min(rows, roundUp(ceilDiv(rows, pieces), to: step))
    }

    /// Fewer pieces where they would else have almost enough values of a channel for chains, or the last one would.
    private static func rowsForChains(_ rows: Int, _ inner: Int, _ wanted: Int, step: Int) -> Int {
        var pieces = wanted
        var own = rowsOfPiece(rows, pieces, step: step)
        guard own &* inner >= fewestInChains / 2 else { return own }
        while pieces > 1, (rows &- (ceilDiv(rows, own) &- 1) &* own) &* inner < fewestInChains {
            pieces &-= 1
            own = rowsOfPiece(rows, pieces, step: step)
        }
        return own
    }

    private static let maxColumns = Int(BNK_MAX_COLUMNS)

    /// Into how many pieces each run is cut.
    private static func pieces(channels: Int, runs: Int, valuesPerRun: Int) -> Int {
        max(1, min(ceilDiv(piecesWanted(channels: channels), runs), valuesPerRun / smallestPiece))
    }

    // MARK: - By machine

    /// Below this many bytes of input a parallel region costs more than it gains.
    static let serialBytes = 128 << 10

    /// Outputs are written past the caches where the last one cannot hold them beside the inputs: what stays in it is
    /// read from there by the next operation.
    private static func isNontemporal(_ tensors: Int, tensorBytes: Int, machine: Machine) -> Bool {
        tensorBytes > machine.l3 / 8 &* 7 / max(1, tensors)
    }

    /// Whether a task takes a run through reduction and application. It saves reading the input from memory twice
    /// if the run's values stay in cache in between, but needs enough runs for all threads.
    private static func takesWholeRuns(
        _ plan: bnk_plan, _ grid: bnk_grid, machine: Machine
    ) -> Bool {
        let runs = ceilDiv(Int(grid.channels), Int(plan.run_channels))
        let threads = Int(plan.threads)
        let balanced = threads == 1 || runs >= 4 &* threads || runs % threads == 0
        if plan.by_columns != 0 && grid.inner == 1 {
            let runBytes = Int(grid.rows) &* Int(plan.run_channels) &* elementSize(grid)
            return balanced && runBytes <= machine.l2 / 2
        }
        return balanced
    }

    // MARK: - Arithmetic

    private static func elementSize(_ grid: bnk_grid) -> Int {
        grid.half != 0 ? 2 : grid.is_double != 0 ? 8 : 4
    }

    /// Of one tensor.
    private static func bytes(_ grid: bnk_grid) -> Int {
        Int(grid.rows) &* Int(grid.channels) &* Int(grid.inner) &* elementSize(grid)
    }

    private static func ceilDiv(_ a: Int, _ b: Int) -> Int { a / b &+ (a % b == 0 ? 0 : 1) }

    private static func roundUp(_ value: Int, to step: Int) -> Int { ceilDiv(value, step) &* step }

    /// The greatest one with 16, a power of two.
    private static func commonDivisor(_ number: Int) -> Int { 1 << min(4, number.trailingZeroBitCount) }
}
