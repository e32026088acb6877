// Properties of every plan: the pieces cover the tensor, the shape alone decides the order of the sums.

import CBatchNormKernels
import Testing

@testable import BatchNorm

@Suite struct PlannerTests {
    static let machines = [
        Machine(isa: .generic, threads: 1, l2: 256 << 10, l3: 4 << 20),
        Machine(isa: .avx2, threads: 2, l2: 512 << 10, l3: 32 << 20),
        Machine(isa: .avx512, threads: 64, l2: 2 << 20, l3: 512 << 20),
    ]

    static let grids: [bnk_grid] = {
        let sizes: [Int64] = [1, 2, 3, 15, 16, 17, 35, 63, 64, 100, 1000, 1025, 4096]
        var grids: [bnk_grid] = []
        for rows in sizes {
            for channels in sizes {
                for inner in sizes + [100_352] where rows * channels * inner < 1 << 32 {
                    for isDouble: Int32 in [0, 1] {
                        grids.append(
                            bnk_grid(
                                rows: rows, channels: channels, inner: inner, is_double: isDouble, half: 0))
                    }
                }
            }
        }
        return grids
    }()

    @Test func keepsWhatTheKernelsRelyOn() {
        for grid in Self.grids {
            for machine in Self.machines {
                let plan = Planner.plan(grid, tensors: 2, machine: machine)
                let isSound =
                    1...grid.channels ~= plan.run_channels && 1...grid.rows ~= plan.piece_rows
                    && 1...grid.inner ~= plan.piece_values && plan.rows_per_line >= 1
                    && 1...Int32(machine.threads) ~= plan.threads
                    && plan.isa == machine.isa.rawValue
                let followsItsForm =
                    plan.by_columns == 0
                    ? plan.run_channels == 1 && plan.rows_per_line == 1
                    : plan.piece_values == grid.inner
                        && plan.run_channels * grid.inner * plan.rows_per_line <= Int64(BNK_MAX_COLUMNS)
                        && (plan.rows_per_line == 1 || (grid.inner == 1 && plan.run_channels == grid.channels))
                        && (plan.piece_rows % plan.rows_per_line == 0 || plan.piece_rows == grid.rows)
                #expect(isSound && followsItsForm, "\(grid) \(machine) \(plan)")
            }
        }
    }

    @Test func theMachineDoesNotDecideTheOrderOfTheSums() {
        for grid in Self.grids {
            let plans = Self.machines.map {
                Planner.plan(grid, tensors: 2, machine: $0)
            }
            for plan in plans {
                #expect(
                    plan.by_columns == plans[0].by_columns && plan.rows_per_line == plans[0].rows_per_line
                        && plan.run_channels == plans[0].run_channels && plan.piece_rows == plans[0].piece_rows
                        && plan.piece_values == plans[0].piece_values)
            }
        }
    }

    @Test func smallProblemsStayOnOneThreadAndInCache() {
        let grid = bnk_grid(rows: 8, channels: 16, inner: 16, is_double: 0, half: 0)
        let plan = Planner.plan(grid, tensors: 2, machine: Self.machines[2])
        #expect(plan.threads == 1)
        #expect(plan.nontemporal == 0)
    }

    @Test func oneChannelOfOneImageCanUseAllCores() {
        let grid = bnk_grid(rows: 1, channels: 1, inner: 1 << 22, is_double: 0, half: 0)
        let plan = Planner.plan(grid, tensors: 2, machine: Self.machines[2])
        #expect((grid.inner + plan.piece_values - 1) / plan.piece_values >= 64)
        #expect(plan.threads == 64)
    }
}
