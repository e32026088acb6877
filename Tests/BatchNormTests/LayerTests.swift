// The layer: modes, what backward remembers, parameters, and that a refused call changes nothing.

import Testing

@testable import BatchNorm

@Suite struct LayerTests {
    let shape = try! Shape.nchw(4, 3, 5, 6)

    private func random(_ seed: UInt64, _ shape: Shape? = nil) throws -> Tensor<Float> {
        var random = Random(seed)
        return try random.tensor(shape ?? self.shape, in: -2...3)
    }

    @Test func startsAsPyTorchDoes() throws {
        let layer = try BatchNormLayer<Float>(numFeatures: 3)
        #expect(layer.isTraining)
        #expect(try layer.weight == [1, 1, 1])
        #expect(try layer.bias == [0, 0, 0])
        #expect(try layer.runningMean == [0, 0, 0])
        #expect(try layer.runningVar == [1, 1, 1])
        #expect(layer.numBatchesTracked == 0)
        #expect(layer.options == LayerOptions(numFeatures: 3))
        #expect(throws: BatchNormError.noForward) { try layer.savedStatistics() }
    }

    @Test func doesWhatTheFunctionsDo() throws {
        let layer = try BatchNormLayer<Float>(numFeatures: 3)
        try layer.setWeight([0.5, -1, 2])
        try layer.setBias([1, 2, 3])
        var running = try RunningStatistics<Float>(channels: 3)
        for seed in 1...3 {
            let x = try random(UInt64(seed))
            let dy = try random(UInt64(seed) + 100)
            let (y, saved) = try BatchNormalization.forwardTraining(
                x, weight: [0.5, -1, 2], bias: [1, 2, 3], running: running.mutableView)
            #expect(try layer.forward(x) == y)
            #expect(try layer.savedStatistics() == saved)
            #expect(try layer.runningMean == running.mean)
            #expect(try layer.runningVar == running.variance)
            #expect(layer.numBatchesTracked == seed)
            let expected = try BatchNormalization.backward(x, gradOutput: dy, weight: [0.5, -1, 2], saved: saved)
            #expect(try layer.backward(x, gradOutput: dy) == expected)
            // Again, for a graph that is walked twice.
            #expect(try layer.backward(x, gradOutput: dy) == expected)
        }
        layer.isTraining = false
        let x = try random(9)
        let y = try BatchNormalization.forwardInference(x, weight: [0.5, -1, 2], bias: [1, 2, 3], running: running)
        #expect(try layer.forward(x) == y)
        #expect(layer.numBatchesTracked == 3)
        #expect(try layer.runningMean == running.mean)
    }

    @Test func backwardAfterEvaluationIsFrozenAtThatForward() throws {
        let layer = try BatchNormLayer<Float>(numFeatures: 3)
        try layer.setRunningMean([1, 2, 3])
        try layer.setRunningVar([4, 5, 6])
        layer.isTraining = false
        let x = try random(1)
        let dy = try random(2)
        _ = try layer.forward(x)
        let saved = try SavedStatistics(
            running: RunningStatistics<Float>(mean: [1, 2, 3], variance: [4, 5, 6]))
        // Neither new statistics nor another mode reach back.
        try layer.resetRunningStats()
        layer.isTraining = true
        #expect(try layer.savedStatistics() == saved)
        let expected = try BatchNormalization.backward(x, gradOutput: dy, saved: saved)
        #expect(try layer.backward(x, gradOutput: dy) == expected)
    }

    @Test func withoutRunningStatisticsEvaluationUsesTheBatch() throws {
        let layer = try BatchNormLayer<Float>(
            LayerOptions(numFeatures: 3, trackRunningStats: false))
        #expect(try layer.runningMean == nil && layer.runningVar == nil)
        #expect(layer.numBatchesTracked == nil)
        let x = try random(1)
        let trained = try layer.forward(x)
        layer.isTraining = false
        #expect(try layer.forward(x) == trained)
        #expect(try layer.savedStatistics().statistics == .batch)
        #expect(throws: BatchNormError.noRunningStatistics) { try layer.resetRunningStats() }
        #expect(throws: BatchNormError.noRunningStatistics) { try layer.setRunningMean([1, 2, 3]) }
        #expect(throws: BatchNormError.noRunningStatistics) { try layer.setNumBatchesTracked(1) }
    }

    @Test func withoutWeightOrBias() throws {
        for (hasWeight, hasBias) in [(false, true), (true, false), (false, false)] {
            let layer = try BatchNormLayer<Float>(
                LayerOptions(numFeatures: 3, hasWeight: hasWeight, hasBias: hasBias))
            #expect((try layer.weight != nil) == hasWeight)
            #expect((try layer.bias != nil) == hasBias)
            #expect(try layer.runningMean == [0, 0, 0])
            #expect(try layer.runningVar == [1, 1, 1])
            if hasBias { try layer.setBias([1, 2, 3]) }
            let x = try random(1)
            let expected = try BatchNormalization.forwardTraining(x, bias: hasBias ? [1, 2, 3] : nil).output
            #expect(try layer.forward(x) == expected)
            if !hasWeight {
                #expect(throws: BatchNormError.noParameter(.weight)) {
                    try layer.setWeight([1, 1, 1])
                }
            }
            if !hasBias {
                #expect(throws: BatchNormError.noParameter(.bias)) { try layer.withBias { _ in } }
            }
        }
    }

    @Test func cumulativeAverage() throws {
        var options = LayerOptions(numFeatures: 3)
        options.training.averaging = .cumulative
        let layer = try BatchNormLayer<Double>(options)
        var means = [0.0, 0.0, 0.0]
        for seed in 1...4 {
            var random = Random(UInt64(seed))
            _ = try layer.forward(random.tensor(shape))
            means = zip(means, try layer.savedStatistics().mean).map { $0 + $1 / 4 }
        }
        #expect(largestError(try #require(try layer.runningMean), means) < 20)
    }

    @Test func oneLayerServesEveryShape() throws {
        let layer = try BatchNormLayer<Double>(numFeatures: 3)
        for shape in [
            try Shape.nc(8, 3), try .nlc(2, 9, 3), try .nchw(1, 3, 30, 30), try .nhwc(2, 4, 4, 3),
            try .ncdhw(2, 3, 2, 2, 2), try .nc(2, 3),
        ] {
            var random = Random(1)
            let x: Tensor<Double> = try random.tensor(shape)
            let dy: Tensor<Double> = try random.tensor(shape)
            let (y, saved) = try BatchNormalization.forwardTraining(x)
            #expect(try layer.forward(x) == y)
            let expected = try BatchNormalization.backward(x, gradOutput: dy, saved: saved)
            #expect(try layer.backward(x, gradOutput: dy) == expected)
        }
    }

    @Test func inPlaceGivesTheSame() throws {
        let layer = try BatchNormLayer<Float>(numFeatures: 3)
        let x = try random(1)
        let y = try layer.forward(x)
        var inPlace = x
        try layer.forward(inPlace: inPlace.mutableSpan, shape: shape)
        #expect(inPlace == y)
    }

    @Test func emptyBatch() throws {
        let layer = try BatchNormLayer<Float>(numFeatures: 3)
        let empty = try Tensor<Float>([], shape: .nchw(0, 3, 5, 5))
        for training in [true, false] {
            layer.isTraining = training
            #expect(try layer.forward(empty) == empty)
            let gradients = try layer.backward(empty, gradOutput: empty)
            #expect(gradients.weight == [0, 0, 0] && gradients.bias == [0, 0, 0])
            #expect(layer.numBatchesTracked == 0)
            #expect(try layer.runningMean == [0, 0, 0] && layer.runningVar == [1, 1, 1])
        }
    }

    @Test func oneValuePolicies() throws {
        let x = try Tensor<Float>([3, 4, 5], shape: .nc(1, 3))
        var options = LayerOptions(numFeatures: 3)
        let strict = try BatchNormLayer<Float>(options)
        #expect(throws: BatchNormError.oneValue(x.shape.sizes)) { try strict.forward(x) }
        #expect(strict.numBatchesTracked == 0)

        options.training.oneValue = .useRunning
        options.training.epsilon = 0
        let lenient = try BatchNormLayer<Float>(options)
        #expect(try lenient.forward(x) == x)
        #expect(try lenient.savedStatistics().statistics == .running)
        #expect(lenient.numBatchesTracked == 0)
        // The statistics were constants, so the gradient passes straight through.
        #expect(try lenient.backward(x, gradOutput: x).input == x)
    }

    @Test func nonfiniteErrorStillRecordsTheForward() throws {
        var options = LayerOptions(numFeatures: 2)
        options.training.nonfinite = .error
        let layer = try BatchNormLayer<Float>(options)
        let x = try Tensor<Float>([1, .infinity, 3, 4], shape: .nc(2, 2))
        #expect(throws: BatchNormError.nonfinite(channels: 1, runningChannels: 0, of: 2)) { try layer.forward(x) }
        #expect(try layer.savedStatistics().nonfiniteChannels == 1)
        #expect(layer.numBatchesTracked == 1)
        #expect(try layer.runningMean == [0.2, 0])
    }

    @Test func refusedCallsChangeNothing() throws {
        let layer = try BatchNormLayer<Float>(numFeatures: 3)
        let x = try random(1)
        let state = try layer.state()
        #expect(throws: BatchNormError.noForward) { try layer.backward(x, gradOutput: x) }
        let wide = try random(2, .nc(4, 5))
        #expect(throws: BatchNormError.channelsMismatch(actual: 5, expected: 3)) {
            try layer.forward(wide)
        }
        #expect(throws: BatchNormError.countMismatch(.values, actual: 2, expected: 3)) {
            try layer.setWeight([7, 7])
        }
        #expect(throws: BatchNormError.countMismatch(.values, actual: 0, expected: 3)) {
            try layer.setRunningVar([])
        }
        #expect(throws: BatchNormError.batchCounter(actual: -1)) {
            try layer.setNumBatchesTracked(-1)
        }
        #expect(try layer.state() == state)

        _ = try layer.forward(x)
        let other = try random(3, .nchw(4, 3, 6, 5))
        #expect(throws: BatchNormError.shapeMismatch(actual: other.shape, expected: x.shape)) {
            try layer.backward(other, gradOutput: other)
        }
        #expect(throws: BatchNormError.shapeMismatch(actual: other.shape, expected: x.shape)) {
            try layer.backward(x, gradOutput: other)
        }
        try layer.setNumBatchesTracked(.max)
        let full = try layer.state()
        #expect(throws: BatchNormError.batchCounter(actual: .max)) { try layer.forward(x) }
        #expect(try layer.state() == full)
    }

    @Test func optimizersWriteParametersInPlace() throws {
        let layer = try BatchNormLayer<Double>(numFeatures: 3)
        try layer.withWeight { weight in
            for index in weight.indices { weight[index] -= 0.25 * Double(index) }
        }
        try layer.withBias { $0[1] = 5 }
        #expect(try layer.weight == [1, 0.75, 0.5])
        #expect(try layer.bias == [0, 5, 0])
    }

    @Test func aLayerMayBeSentToAnotherTask() async throws {
        let layer = try BatchNormLayer<Float>(numFeatures: 3)
        let x = try random(1)
        let count = await Task {
            _ = try? layer.forward(x)
            return layer.numBatchesTracked
        }.value
        #expect(count == 1)
    }

    @Test func epsilonAndMomentumCanBeSet() throws {
        let x = try random(1)
        var options = LayerOptions(numFeatures: 3)
        options.training.epsilon = 0.5
        options.training.momentum = 0.75
        let other = try BatchNormLayer<Float>(options)
        let layer = try BatchNormLayer<Float>(numFeatures: 3)
        try layer.setEpsilon(0.5)
        try layer.setMomentum(0.75)
        #expect(layer.options == options)
        #expect(try layer.forward(x).elements == other.forward(x).elements)
        #expect(try layer.runningVar == other.runningVar)
        try layer.setEpsilon(3)
        try layer.setMomentum(.nan, averaging: .cumulative)
        #expect(
            try layer.backward(x, gradOutput: x).input.elements
                == other.backward(x, gradOutput: x).input.elements)
        #expect(throws: BatchNormError.self) { try layer.setEpsilon(-1) }
        #expect(throws: BatchNormError.self) { try layer.setMomentum(.infinity) }
        #expect(layer.options.training.epsilon == 3)
    }
}
