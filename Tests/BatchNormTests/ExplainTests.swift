// What is explained is what would be done: the plan's numbers for a given machine, and the words around them.

import CBatchNormKernels
import Testing

@testable import BatchNorm

@Suite struct ExplainTests {
    static let machine = Machine(isa: .avx2, threads: 2, l2: 512 << 10, l3: 32 << 20)

    /// Calls, and how many tensors each moves.
    static let calls: [(BatchNormCall, tensors: Int)] = [
        (.forwardTraining(), 2), (.forwardInference(), 2), (.backward(), 3), (.backwardFrozen(), 3),
        (.forwardTraining(activation: .relu, residual: true), 3),
        (.forwardInference(activation: .leakyReLU(negativeSlope: 0.1), mask: .positions), 2),
        (.backward(activation: .relu, residual: true, mask: .positions), 4),
        (outputGated(.backwardFrozen(activation: .relu)), 4),
        (outputGated(.backward(activation: .leakyReLU(negativeSlope: 1))), 3),
        (.backward(gradients: [.weight, .bias]), 2), (.backward(gradients: .input), 3),
        (.backwardFrozen(gradients: .input), 2), (.backwardFrozen(residual: true, gradients: .input), 3),
        (.backwardFrozen(residual: true, gradients: []), 2),
    ]

    /// A backward that knows from the forward's output where the activation let values pass.
    static func outputGated(_ call: BatchNormCall) -> BatchNormCall {
        var call = call
        call.hasActivationMask = false
        return call
    }

    static func plan(
        _ call: BatchNormCall, _ shape: Shape, _ scalar: ScalarType = .float32, _ machine: Machine = machine
    ) throws -> BatchNormPlan {
        try BatchNormPlan(call, shape: shape, scalar: scalar, machine: machine)
    }

    /// The words around a plan's numbers, which follow the planner: what is decided is its tests' business.
    @Test func tellsAForwardInWords() throws {
        let plan = try Self.plan(.forwardTraining(), .nchw(32, 64, 56, 56))
        #expect(plan.steps == 1 && plan.hasNontemporalStores)
        #expect(
            plan.description == """
                forward, training: float32 (32, 64, 56, 56) NCHW, 25.7 MB a tensor
                avx2, 2 threads, one parallel region
                seen as 32 rows of 64 channels of 3136 values, walked by rows: the values of one channel fill the vectors
                \(plan.pieces) pieces of up to \(plan.pieceRows) rows x 1 channel x \(plan.pieceValues) values
                one step: each channel is reduced and then applied by one thread; while it is written, the next one is reduced
                in between, 401 KB wait in the L2 cache (512 KiB): memory is read once
                stores: non-temporal, past the caches: the tensors do not fit together in L3 (32 MiB of it)
                workspace: none
                limit: a copy, which reads 25.7 MB and writes 25.7 MB
                this plan reads 25.7 MB and writes 25.7 MB, 1.00 times the limit
                """)
    }

    @Test func tellsABackwardInWords() throws {
        let shape = try Shape.nhwc(300, 100, 100, 3)
        let plan = try Self.plan(.backward(), shape, .float64)
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
                in between, 144 MB are more than fits in L3 (32 MiB of it): memory is read twice
                stores: non-temporal, past the caches: the tensors do not fit together in L3 (32 MiB of it)
                workspace: \(Double((plan.workspaceBytes + 50) / 100) / 10) KB
                limit: a triad, which reads 144 MB and writes 72 MB
                this plan reads 288 MB and writes 72 MB, 1.67 times the limit
                """)
    }

    @Test func tellsASmallInferenceInWords() throws {
        let plan = try Self.plan(.forwardInference(), .nc(128, 32))
        #expect(
            plan.description == """
                forward, inference: float32 (128, 32), 16.4 KB a tensor
                avx2, 1 thread of 2: so little work is done sooner without the others
                seen as 128 rows of 32 channels, walked by columns: 32 neighbouring channels of \(plan.rowsPerLine) rows, \
                \(32 * plan.rowsPerLine) columns, fill the vectors
                1 piece of 128 rows x 32 channels
                one step: the statistics are given, so each piece is applied at once
                stores: ordinary: the tensors fit together in L3, where the next operation finds the output (32 MiB of it)
                workspace: none
                limit: a copy, which reads 16.4 KB and writes 16.4 KB
                this plan reads 16.4 KB and writes 16.4 KB, 1.00 times the limit
                """)
    }

    @Test func tellsAnEmptyBatchInWords() throws {
        let plan = try Self.plan(.backward(), .nhwc(0, 4, 4, 3))
        #expect(
            plan.description == """
                backward, batch statistics: float32 (0, 3, 4, 4) NHWC
                an empty batch: there is nothing to do
                """)
    }

    @Test func tellsAFusedForwardOfHalvesInWords() throws {
        let call = BatchNormCall.forwardTraining(
            activation: .leakyReLU(negativeSlope: 0.1), residual: true, mask: .lengths)
        let plan = try Self.plan(call, .nlc(40, 30, 64), .bfloat16)
        #expect(plan.steps == 3 && !plan.hasNontemporalStores)
        #expect(
            plan.description == """
                forward, training: bfloat16 (40, 64, 30) NHWC, 154 KB a tensor, computed in float32 and rounded once
                fused: leaky ReLU(batch normalization + residual) with slope 0.1, and one bit a value for backward; \
                163 KB more to move
                masked: 1.2 KB of workspace, one byte a position, made of the lengths; what follows is told as if all took part
                avx2, 2 threads, one parallel region
                seen as 1200 rows of 64 channels, walked by columns: 64 neighbouring channels of \(plan.rowsPerLine) rows, \
                \(64 * plan.rowsPerLine) columns, fill the vectors
                \(plan.pieces) pieces of up to \(plan.pieceRows) rows x 64 channels
                three steps: all pieces are reduced, their sums merged, then all is applied, last piece first
                in between, 155 KB wait in L3 (32 MiB of it): memory is read once
                stores: ordinary: the tensors fit together in L3, where the next operation finds the output (32 MiB of it)
                workspace: \(Double((plan.workspaceBytes + 50) / 100) / 10) KB
                limit: a triad, with masks, which reads 308 KB and writes 163 KB
                this plan reads 308 KB and writes 163 KB, 1.00 times the limit
                """)
    }

    @Test func tellsAFusedBackwardInWords() throws {
        let call = BatchNormCall.backwardFrozen(activation: .relu, residual: true, mask: .positions, gradients: .input)
        let plan = try Self.plan(call, .nchw(32, 64, 56, 56))
        #expect(plan.steps == 1 && plan.hasNontemporalStores)
        #expect(
            plan.description == """
                backward, frozen statistics: float32 (32, 64, 56, 56) NCHW, 25.7 MB a tensor
                fused: back through ReLU, by one bit a value, and the residual's gradient; 26.5 MB more to move
                masked: 100 KB, one byte a position; what follows is told as if all took part
                gradients: grad_input, grad_residual, no others
                avx2, 2 threads, one parallel region
                seen as 32 rows of 64 channels of 3136 values, walked by rows: the values of one channel fill the vectors
                \(plan.pieces) pieces of up to \(plan.pieceRows) rows x 1 channel x \(plan.pieceValues) values
                one step: the statistics are given, so each piece is applied at once
                stores: non-temporal, past the caches: the tensors do not fit together in L3 (32 MiB of it)
                workspace: none
                limit: one sweep over 3 tensors, with masks, which reads 26.6 MB and writes 51.4 MB
                this plan reads 26.6 MB and writes 51.4 MB, 1.00 times the limit
                """)
    }

    @Test func tellsABackwardOfWhichNothingIsWanted() throws {
        let plan = try Self.plan(.backward(gradients: []), .nc(4, 3))
        #expect(plan.steps == 0 && plan.bytesRead == 0 && plan.threads == 1)
        #expect(
            plan.description == """
                backward, batch statistics: float32 (4, 3)
                no gradient is wanted: there is nothing to do
                """)
    }

    /// The same as what an operation gets from the planner, and what the kernels ask for.
    @Test func isThePlanOfTheOperation() throws {
        for shape in shapes + [try .nchw(32, 64, 56, 56), try .nhwc(32, 14, 14, 1000)] where !shape.isEmpty {
            for scalar in [ScalarType.float32, .float64, .bfloat16] {
                for machine in PlannerTests.machines {
                    let grid = shape.grid(scalar)
                    for (call, tensors) in Self.calls {
                        let plan = Planner.plan(grid, tensors: tensors, machine: machine)
                        var cut = bnk_cut_grid(grid, plan)
                        let explained = try Self.plan(call, shape, scalar, machine)
                        #expect(explained.isa == machine.isa)
                        #expect(explained.threads <= Int(plan.threads))
                        #expect(explained.isByColumns == (plan.by_columns != 0))
                        if call.operation == .forwardInference, bnk_inference_schedule(&cut).whole_rows != 0 {
                            #expect(explained.runChannels == shape.channels)
                            #expect(explained.pieceRows &* explained.pieces >= Int(grid.rows))
                        } else {
                            #expect(explained.runChannels == Int(plan.run_channels))
                            #expect(explained.pieceRows == Int(plan.piece_rows))
                        }
                        #expect(explained.pieceValues == Int(plan.piece_values))
                        let isStreamed = call.isForward || call.gradients.contains(.input)
                        #expect(explained.hasNontemporalStores == (plan.nontemporal != 0 && isStreamed))
                        let workspace =
                            switch call.operation {
                            case .forwardTraining: bnk_forward_workspace(&cut)
                            case .forwardInference: 0 as Int64
                            case .backward, .backwardFrozen: bnk_backward_workspace(&cut)
                            }
                        #expect(explained.workspaceBytes == Int(workspace))
                        let isSplit = call.operation != .forwardInference && plan.whole_runs == 0
                        #expect(explained.steps == (isSplit ? (call.reduces ? 2 : 1) + (call.applies ? 1 : 0) : 1))
                    }
                }
            }
        }
    }

    /// What an operation with these arguments takes itself for is what was asked about.
    @Test func isTheCallOfTheOperation() throws {
        let there = View(UnsafeRawPointer(bitPattern: 64), count: 1)
        let written = MutableView(UnsafeMutableRawPointer(bitPattern: 64), count: 1)
        let shape = try Shape.nc(1, 1)
        let lengths: [BatchNormCall] = [
            .forwardTraining(residual: true, mask: .lengths), .backward(activation: .relu, mask: .lengths),
            .forwardInference(activation: .relu, residual: true), .backward(gradients: .weight),
            .backwardFrozen(gradients: .bias),
        ]
        for call in Self.calls.map(\.0) + lengths {
            var positions = Positions()
            if call.mask == .positions { positions.mask = there }
            if call.mask == .lengths { positions.lengths = there }
            var epilogue = ForwardEpilogue()
            epilogue.activation = call.activation
            if call.hasResidual { epilogue.residual = there }
            if call.hasActivationMask { epilogue.activationMask = written }
            switch call.operation {
            case .forwardTraining:
                var job = ForwardTraining(
                    scalar: .float32, shape: shape, options: TrainingOptions(), input: there, output: written)
                (job.epilogue, job.positions) = (epilogue, positions)
                #expect(job.call == call)
            case .forwardInference:
                var job = ForwardInference(
                    scalar: .float32, shape: shape, input: there, output: written, source: .nothing)
                (job.epilogue, job.positions) = (epilogue, positions)
                #expect(job.call == call)
            case .backward, .backwardFrozen:
                var job = Backward(
                    scalar: .float32, shape: shape, statistics: call.operation == .backward ? .batch : .running,
                    source: .nothing, input: there, gradOutput: there)
                job.positions = positions
                job.epilogue.activation = call.activation
                if call.hasResidual { job.epilogue.gradResidual = written }
                if call.hasActivationMask { job.epilogue.activationMask = there } else { job.epilogue.output = there }
                if call.gradients.contains(.input) { job.gradInput = written }
                if call.gradients.contains(.weight) { job.gradWeight = written }
                if call.gradients.contains(.bias) { job.gradBias = written }
                #expect(job.call == call)
            }
        }
    }

    /// The second read comes from memory exactly where the caches cannot hold what the first one brought.
    @Test func cachesDecideWhatIsReadTwice() throws {
        let shape = try Shape.nchw(32, 64, 56, 56)
        let positions = 32 * 56 * 56
        for (l2, l3) in [(64 << 10, 128 << 10), (1 << 20, 2 << 20), (1 << 20, 1 << 30)] {
            let machine = Machine(isa: .avx2, threads: 1, l2: l2, l3: l3)
            // What is read at first, and what of it once more.
            let cases: [(BatchNormCall, reads: Int, again: Int, masks: Int)] = [
                (.forwardTraining(residual: true), 1, 1, 0), (.forwardTraining(mask: .positions), 1, 1, positions),
                (.backward(), 2, 2, 0), (.backwardFrozen(), 2, 1, 0),
                (Self.outputGated(.backward(activation: .relu)), 3, 3, 0),
                (.backwardFrozen(activation: .relu, mask: .positions), 2, 1, positions + positions * 64 / 8),
            ]
            for (call, reads, again, masks) in cases {
                let plan = try Self.plan(call, shape, .float32, machine)
                #expect(plan.steps == 1)
                let bits = call.hasActivationMask && !call.isForward ? positions * 64 / 8 : 0
                let held = (reads * plan.tensorBytes + bits) / 64 + (masks - bits)
                let all = reads + (call.isForward && call.hasResidual ? 1 : 0)
                let once = all * plan.tensorBytes + masks
                #expect(plan.limitBytesRead == once)
                #expect(
                    plan.bytesRead == once + (held <= max(l2, l3) ? 0 : again * plan.tensorBytes + masks))
            }
        }
    }

    @Test func numbersStayReadable() throws {
        func size(_ values: Int) throws -> String {
            let machine = Machine(isa: .generic, threads: 1, l2: 999 << 10, l3: (1 << 20) - 400)
            let text = try Self.plan(.forwardInference(), .nc(values, 1), .float32, machine).description
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
        let plan = try BatchNormalization.explain(.backward(), shape: shape, scalar: .float64)
        let machine = Machine.current
        #expect(plan.call == .backward() && plan.shape == shape && plan.scalar == .float64)
        #expect(plan.tensorBytes == 32 * 56 * 56 * 64 * 8)
        #expect(plan.l2Bytes == machine.l2 && plan.l3Bytes == machine.l3)
    }

    @Test func refusesWhatTheOperationRefuses() throws {
        let shape = try Shape.nc(Int.max / 4, 1)
        #expect(throws: BatchNormError.sizeOverflow(shape.sizes, elementSize: 8)) {
            try BatchNormalization.explain(.forwardInference(), shape: shape, scalar: .float64)
        }
        #expect(throws: BatchNormError.negativeSlope(actual: 1e300)) {
            try BatchNormalization.explain(
                .forwardInference(activation: .leakyReLU(negativeSlope: 1e300)), shape: .nc(2, 3))
        }
        #expect(throws: BatchNormError.lengthsRank(actual: 4)) {
            try BatchNormalization.explain(.backward(mask: .lengths), shape: .nchw(2, 3, 4, 5))
        }
    }
}
