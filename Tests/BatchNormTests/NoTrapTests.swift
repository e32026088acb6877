// What a caller's numbers, and closures that reach back, can cause is an error: nothing of it ends the process.

import Testing

@testable import BatchNorm

@Suite struct NoTrapTests {
    /// More channels than any machine has memory for, and yet addressable.
    private let many = 1 << 50

    private func refused(
        _ bytes: Int, sourceLocation: SourceLocation = #_sourceLocation, _ body: () throws -> Void
    ) {
        #expect(
            throws: BatchNormError.outOfMemory(bytes: bytes), sourceLocation: sourceLocation, performing: body)
    }

    @Test func valuesBeyondMemory() throws {
        refused(many * 4) { _ = try Tensor<Float>(repeating: 0, shape: .nc(1, many)) }
        refused(many * 8) { _ = try Tensor<Double>(repeating: 0, shape: .nchw(1, 2, many / 2, 1)) }
        refused(many * 2) { _ = try Tensor<BFloat16>(repeating: 0, shape: .nc(many, 1)) }
        refused(many * 4) { _ = try RunningStatistics<Float>(channels: many) }
        refused(many * 8) { _ = try RunningStatistics<Double>(channels: many) }
        refused(many * 8) { _ = try Moments(channels: many) }
        refused(many * 8) { _ = try StatisticsAccumulator(channels: many) }
    }

    @Test(arguments: [Int.min, -5, -1, 0, .max, .max / 8 + 1, .max / 8])
    func numbersOfChannels(_ channels: Int) {
        let expected: BatchNormError =
            switch channels {
            case 0: .noChannels
            case ..<0: .negativeCount(.channels, actual: channels)
            case (.max / 8 + 1)...: .sizeOverflow(Sizes(0, channels, rank: 2), elementSize: 8)
            default: .outOfMemory(bytes: channels * 8)
            }
        #expect(throws: expected) { try RunningStatistics<Double>(channels: channels) }
        #expect(throws: expected) { try Moments(channels: channels) }
        #expect(throws: expected) { try StatisticsAccumulator(channels: channels) }
    }

    /// No values, and as many channels as a shape may have.
    @Test func emptyBatchesOfManyChannels() throws {
        let nothing = try Tensor<Float>([], shape: .nc(0, many))
        let saved = SavedStatistics(mean: [0], invstd: [1])
        var running = try RunningStatistics<Float>(channels: 1)
        refused(many * 8) { _ = try BatchNormalization.forwardTraining(nothing) }
        refused(many * 8) {
            _ = try BatchNormalization.forwardTraining(nothing, activation: .relu, running: running.mutableView)
        }
        refused(many * 8) { _ = try Moments(of: nothing) }
        refused(many * 4) { _ = try BatchNormalization.backward(nothing, gradOutput: nothing, saved: saved) }
        refused(many * 8) { _ = try BatchNormalization.backwardReduce(nothing, gradOutput: nothing, saved: saved) }
        let sums = GradientSums(count: 0, dy: [], dyXmu: [])
        refused(many * 4) {
            _ = try BatchNormalization.backwardApply(nothing, gradOutput: nothing, sums: sums, saved: saved)
        }
        #expect(throws: BatchNormError.countMismatch(.runningMean, actual: 1, expected: many)) {
            try BatchNormalization.forwardInference(nothing, running: running)
        }
        #expect(throws: BatchNormError.countMismatch(.runningMean, actual: 1, expected: many)) {
            try running.fold(into: [], shape: WeightShape(outer: 0, channels: many))
        }
    }

    @Test(arguments: [
        BatchNormCall.forwardTraining(), .forwardInference(residual: true, mask: .positions),
        .backward(activation: .relu, residual: true, mask: .positions), .backwardFrozen(gradients: []),
    ])
    func plansOfTheLargestShapes(_ call: BatchNormCall) throws {
        let most = Int.max / 8
        for shape in [
            try Shape.nc(1, most), try .nc(most, 1), try .nchw(1, 1, most, 1), try .nc(0, most),
            try .nhwc(1, most, 1, 1), try .nc(1 << 30, 1 << 29),
        ] {
            for scalar in [ScalarType.float32, .float64, .bfloat16] {
                #expect(
                    try BatchNormalization.explain(call, shape: shape, scalar: scalar).description.isEmpty == false
                )
            }
        }
    }

    /// What float32 cannot hold of a Double.
    @Test(arguments: [
        Double.nan, -.nan, .infinity, -.infinity, -1, 1e300, .leastNonzeroMagnitude, .greatestFiniteMagnitude,
    ])
    func optionsOfAnySize(_ number: Double) throws {
        let x = try Tensor<Float>([1, 2, -3, 4], shape: .nc(2, 2))
        var running = try RunningStatistics<Float>(channels: 2)
        _ = try? BatchNormalization.forwardTraining(
            x, running: running.mutableView, options: TrainingOptions(epsilon: number))
        _ = try? BatchNormalization.forwardTraining(
            x, running: running.mutableView, options: TrainingOptions(momentum: number))
        _ = try? BatchNormalization.forwardTraining(x, activation: .leakyReLU(negativeSlope: number))
        _ = try? BatchNormalization.forwardInference(x, running: running, epsilon: number)
        _ = try? Moments(of: x).invstd(epsilon: number)
        _ = try? running.affine(epsilon: number)
        _ = BFloat16(number)
        let isSlope = Float(number).isFinite && number >= 0
        if isSlope {
            #expect(throws: Never.self) { try ActivationMask(.leakyReLU(negativeSlope: number), output: x) }
        } else {
            #expect(throws: BatchNormError.self) {
                try ActivationMask(.leakyReLU(negativeSlope: number), output: x)
            }
        }
    }

    @Test func countsOfAnySize() throws {
        let x = try Tensor<Float>([1, 2, -3, 4], shape: .nc(2, 2))
        let saved = SavedStatistics(mean: [0, 0], invstd: [1, 1])
        for count in [Int.min, -1, .max] {
            var running = try RunningStatistics<Float>(channels: 2)
            running.numBatchesTracked = count
            #expect(throws: BatchNormError.batchCounter(actual: count)) {
                try BatchNormalization.forwardTraining(x, running: running.mutableView)
            }
            var sums = GradientSums(count: count, dy: [0, 0], dyXmu: [0, 0])
            #expect(throws: BatchNormError.self) { try sums.add(sums) }
            guard count < 0 else { continue }
            #expect(throws: BatchNormError.momentsCount(.sums, actual: count, expected: 1)) {
                try BatchNormalization.backwardApply(x, gradOutput: x, sums: sums, saved: saved)
            }
            let moments = Moments(count: count, mean: [0, 0], m2: [1, 1])
            #expect(throws: BatchNormError.momentsCount(.moments, actual: count, expected: 1)) {
                try moments.variance()
            }
            #expect(throws: BatchNormError.self) {
                try BatchNormalization.forwardTraining(x, mask: .lengths([count, 0]))
            }
        }
    }

    @Test func negativeThreadsAreRefusedAsInC() throws {
        try withOwnSettings {
            try BatchNormSettings.setThreads(2)
            for bad in [-5, -1, .min] {
                #expect(throws: BatchNormError.invalidOption(.threads, actual: bad)) {
                    try BatchNormSettings.setThreads(bad)
                }
            }
            #expect(BatchNormSettings.threads == 2)
        }
        #expect(
            BatchNormError.invalidOption(.threads, actual: -5).description
                == "threads is -5, expected 0 or more")
    }
}

@Suite struct LendingTests {
    private struct OwnError: Error, Equatable {}

    @Test func whatIsLentIsNotUsedByOthers() throws {
        let layer = try BatchNormLayer<Float>(numFeatures: 2)
        let x = try Tensor<Float>([1, 2, -3, 4], shape: .nc(2, 2))
        _ = try layer.forward(x)
        let state = try layer.state()
        let lent = BatchNormError.lent(.weight)
        try layer.withWeight { weight in
            weight[0] = 7
            #expect(throws: lent) { try layer.withWeight { $0[0] = 8 } }
            #expect(throws: lent) { try layer.weight }
            #expect(throws: lent) { try layer.setWeight([8, 8]) }
            #expect(throws: lent) { try layer.forward(x) }
            #expect(throws: lent) { try layer.backward(x, gradOutput: x) }
            #expect(throws: lent) { try layer.state() }
            #expect(throws: lent) { try layer.load(state: state) }
            #expect(throws: lent) { try layer.affine() }
            // The other one may be lent as well.
            #expect(throws: Never.self) { try layer.withBias { $0[1] = 5 } }
            #expect(throws: BatchNormError.lent(.bias)) {
                try layer.withBias { _ in try layer.withBias { _ in } }
            }
            #expect(weight[0] == 7)
        }
        #expect(try layer.weight == [7, 1])
        #expect(try layer.bias == [0, 5])
        #expect(throws: Never.self) { try layer.forward(x) }
        #expect(
            lent.description
                == "weight is lent to a closure that may change it, expected no other use before that returns")
    }

    @Test func closuresReturnAndThrow() throws {
        let layer = try BatchNormLayer<Double>(numFeatures: 3)
        #expect(try layer.withWeight { $0.count } == 3)
        #expect(try layer.withBias { bias in bias[0] + 1 } == 1)
        #expect(throws: OwnError()) { try layer.withWeight { _ in throw OwnError() } }
        #expect(throws: OwnError()) { try layer.withBias { _ in throw OwnError() } }
        #expect(throws: BatchNormError.noForward) { try layer.withWeight { _ in throw BatchNormError.noForward } }
        // Given back all the same.
        #expect(try layer.weight == [1, 1, 1])
        try layer.withBias { $0[0] = 2 }
        #expect(try layer.bias == [2, 0, 0])
    }

    /// A closure without errors of its own leaves the one type.
    @Test func theErrorIsTyped() {
        func last(_ layer: BatchNormLayer<Float>) throws(BatchNormError) -> Float {
            try layer.withWeight { $0[$0.count - 1] }
        }
        #expect(throws: BatchNormError.noParameter(.weight)) {
            try last(BatchNormLayer(LayerOptions(numFeatures: 2, hasWeight: false)))
        }
    }
}
