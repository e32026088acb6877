// What is explained is what would be done: the plan's numbers for a given machine, and the words around them.

import CBatchNormKernels
import Testing

@testable import BatchNorm

@Suite struct ExplainTests {
    static let machine = Machine(isa: .avx2, threads: 2, l2: 512 << 10, l3: 32 << 20)
    static let operations: [BatchNormOperation] = [
        .forwardTraining, .forwardInference, .backward, .backwardFrozen,
    ]

    static func plan(
        _ operation: BatchNormOperation, _ shape: Shape, _ scalar: ScalarType = .float32,
        _ machine: Machine = machine
    ) throws -> BatchNormPlan {
        try BatchNormPlan(operation, shape: shape, scalar: scalar, machine: machine)
    }

    /// The words around a plan's numbers, which follow the planner: what is decided is its tests' business.
    @Test func tellsAForwardInWords() throws {
        let plan = try Self.plan(.forwardTraining, .nchw(32, 64, 56, 56))
        #expect(plan.steps == 1 && plan.hasNontemporalStores)
        #expect(
            plan.description == """
                forward, training: float32 (32, 64, 56, 56) NCHW, 25.7 MB a tensor
                avx2, 2 threads, one parallel region
                seen as 32 rows of 64 channels of 3136 values, walked by rows: the values of one channel fill the vectors
                \(plan.pieces) pieces of up to \(plan.pieceRows) rows x 1 channel x \(plan.pieceValues) values
                one step: each channel is reduced and then applied by one thread; while it is written, the next one is reduced
                in between, 401 KB wait in the L2 cache (512 KiB): memory is read once
                stores: non-temporal, past the caches: the tensors do not fit together in L3 (32 MiB)
                workspace: none
                limit: a copy, which reads 25.7 MB and writes 25.7 MB
                this plan reads 25.7 MB and writes 25.7 MB, 1.00 times the limit
                """)
    }

    @Test func tellsABackwardInWords() throws {
        let shape = try Shape.nhwc(300, 100, 100, 3)
        let plan = try Self.plan(.backward, shape, .float64)
        #expect(plan.steps == 3 && plan.hasNontemporalStores)
        let columns = 3 * plan.rowsPerLine
        #expect(
            plan.description == """
                backward, batch statistics: float64 (300, 3, 100, 100) NHWC, 72 MB a tensor
                avx2, 2 threads, one parallel region
                seen as 3000000 rows of 3 channels, walked by columns: 3 neighbouring channels of \(plan.rowsPerLine) rows, \
                \(columns) columns, fill the vectors
                \(plan.pieces) pieces of up to \(plan.pieceRows) rows x 3 channels
                three steps: all pieces are reduced, their sums merged, then all is applied, last piece first
                in between, 144 MB are more than the L3 cache (32 MiB) holds: memory is read twice
                stores: non-temporal, past the caches: the tensors do not fit together in L3 (32 MiB)
                workspace: \(Double((plan.workspaceBytes + 50) / 100) / 10) KB
                limit: a triad, which reads 144 MB and writes 72 MB
                this plan reads 288 MB and writes 72 MB, 1.67 times the limit
                """)
    }

    @Test func tellsASmallInferenceInWords() throws {
        let plan = try Self.plan(.forwardInference, .nc(128, 32))
        #expect(
            plan.description == """
                forward, inference: float32 (128, 32), 16.4 KB a tensor
                avx2, 1 thread of 2: so little work is done sooner without the others
                seen as 128 rows of 32 channels, walked by columns: 32 neighbouring channels of \(plan.rowsPerLine) rows, \
                \(32 * plan.rowsPerLine) columns, fill the vectors
                1 piece of 128 rows x 32 channels
                one step: the statistics are given, so each piece is applied at once
                stores: ordinary: the tensors fit together in L3, where the next operation finds the output (32 MiB)
                workspace: none
                limit: a copy, which reads 16.4 KB and writes 16.4 KB
                this plan reads 16.4 KB and writes 16.4 KB, 1.00 times the limit
                """)
    }

    @Test func tellsAnEmptyBatchInWords() throws {
        let plan = try Self.plan(.backward, .nhwc(0, 4, 4, 3))
        #expect(
            plan.description == """
                backward, batch statistics: float32 (0, 3, 4, 4) NHWC
                an empty batch: there is nothing to do
                """)
    }

    /// The same as what an operation gets from the planner, and what the kernels ask for.
    @Test func isThePlanOfTheOperation() throws {
        for shape in shapes + [try .nchw(32, 64, 56, 56), try .nhwc(32, 14, 14, 1000)] {
            for scalar in [ScalarType.float32, .float64] {
                for machine in PlannerTests.machines {
                    let grid = shape.grid(scalar)
                    for operation in Self.operations {
                        let plan = Planner.plan(operation, grid: grid, machine: machine)
                        var cut = bnk_cut_grid(grid, plan)
                        let explained = try Self.plan(operation, shape, scalar, machine)
                        #expect(explained.isa == machine.isa)
                        #expect(explained.threads <= Int(plan.threads))
                        #expect(explained.isByColumns == (plan.by_columns != 0))
                        #expect(explained.runChannels == Int(plan.run_channels))
                        #expect(explained.pieceRows == Int(plan.piece_rows))
                        #expect(explained.pieceValues == Int(plan.piece_values))
                        #expect(explained.hasNontemporalStores == (plan.nontemporal != 0))
                        let workspace =
                            switch operation {
                            case .forwardTraining: bnk_forward_workspace(&cut)
                            case .forwardInference: 0 as Int64
                            case .backward, .backwardFrozen: bnk_backward_workspace(&cut)
                            }
                        #expect(explained.workspaceBytes == Int(workspace))
                        let isSplit = operation != .forwardInference && plan.whole_runs == 0
                        #expect(explained.steps == (isSplit ? 3 : 1))
                    }
                }
            }
        }
    }

    /// The second read comes from memory exactly where the caches cannot hold what the first one brought.
    @Test func cachesDecideWhatIsReadTwice() throws {
        let shape = try Shape.nchw(32, 64, 56, 56)
        for (l2, l3) in [(64 << 10, 128 << 10), (1 << 20, 2 << 20), (1 << 20, 1 << 30)] {
            let machine = Machine(isa: .avx2, threads: 1, l2: l2, l3: l3)
            for operation in Self.operations where operation != .forwardInference {
                let plan = try Self.plan(operation, shape, .float32, machine)
                let inputs = operation == .forwardTraining ? 1 : 2
                #expect(plan.limitBytesRead == inputs * plan.tensorBytes)
                let held =
                    plan.steps == 1
                    ? inputs * plan.tensorBytes / 64 * plan.runChannels : inputs * plan.tensorBytes
                let again = operation == .backward ? 2 : 1
                #expect(
                    plan.bytesRead
                        == (held <= max(l2, l3) ? inputs : inputs + again) * plan.tensorBytes)
            }
        }
    }

    @Test func numbersStayReadable() throws {
        func size(_ values: Int) throws -> String {
            let machine = Machine(isa: .generic, threads: 1, l2: 999 << 10, l3: (1 << 20) - 400)
            let text = try Self.plan(.forwardInference, .nc(values, 1), .float32, machine).description
            return String(text.split(separator: "\n")[0].split(separator: ", ").last ?? "")
        }
        #expect(try size(1) == "4 B a tensor")
        #expect(try size(249) == "996 B a tensor")
        #expect(try size(250) == "1 KB a tensor")
        #expect(try size(24_999) == "100 KB a tensor")
        #expect(try size(24_975) == "99.9 KB a tensor")
        #expect(try size(249_850) == "999 KB a tensor")
        #expect(try size(249_900) == "1 MB a tensor")
        #expect(try size(Int.max / 4) == "9223372 TB a tensor")
    }

    /// That threads and instruction set are the settings' is tested from C: other tests here change them meanwhile.
    @Test func isOfThisMachine() throws {
        let shape = try Shape.nhwc(32, 56, 56, 64)
        let plan = try BatchNormalization.explain(.backward, shape: shape, scalar: .float64)
        let machine = Machine.current
        #expect(plan.operation == .backward && plan.shape == shape && plan.scalar == .float64)
        #expect(plan.tensorBytes == 32 * 56 * 56 * 64 * 8)
        #expect(plan.l2Bytes == machine.l2 && plan.l3Bytes == machine.l3)
    }

    @Test func refusesWhatTheOperationRefuses() throws {
        let shape = try Shape.nc(Int.max / 4, 1)
        #expect(throws: BatchNormError.sizeOverflow(shape.sizes, elementSize: 8)) {
            try BatchNormalization.explain(.forwardInference, shape: shape, scalar: .float64)
        }
    }
}
