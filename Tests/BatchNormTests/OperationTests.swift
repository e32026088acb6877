// The stateless functions against the reference, on tensors and on spans.

import Testing

@testable import BatchNorm

@Suite struct ForwardTrainingTests {
    @Test(arguments: shapes)
    func agreesWithReferenceInFloat32(_ shape: Shape) throws { try compare(shape, as: Float.self) }

    @Test(arguments: shapes)
    func agreesWithReferenceInFloat64(_ shape: Shape) throws { try compare(shape, as: Double.self) }

    private func compare<Scalar: BatchNormParameter>(_ shape: Shape, as _: Scalar.Type) throws {
        var random = Random(1)
        let c = shape.channels
        let x: Tensor<Scalar> = try random.tensor(shape, in: -3...5)
        let weight: [Scalar] = random.values(c)
        let bias: [Scalar] = random.values(c)
        var running = RunningStatistics<Scalar>(
            mean: random.values(c), variance: random.values(c, in: 0.5...2), numBatchesTracked: 4)
        let before = running
        let (y, saved) = try BatchNormalization.forwardTraining(
            x, weight: weight, bias: bias, running: running.mutableView)

        let reference = Reference(shape: shape, weight: weight.doubles, bias: bias.doubles)
        let (mean, variance) = reference.moments(x.elements.doubles)
        let invstd = reference.invstd(variance)
        let expected = reference.forward(x.elements.doubles, mean: mean, invstd: invstd)
        // In float64 the reference rounds as much as what it judges.
        let bound: Double = Scalar.scalarType == .float32 ? 4 : 64
        #expect(y.shape == shape)
        #expect(largestError(y.elements, expected) < bound)
        #expect(largestError(saved.mean, mean, scale: 8) < savedBound(Scalar.scalarType))
        #expect(largestError(saved.invstd, invstd) < savedBound(Scalar.scalarType))
        #expect(saved.statistics == .batch)
        #expect(saved.nonfiniteChannels == 0)

        let m = Double(shape.valuesPerChannel)
        let newMean = zip(before.mean.doubles, mean).map { 0.9 * $0 + 0.1 * $1 }
        let newVariance = zip(before.variance.doubles, variance).map {
            0.9 * $0 + 0.1 * $1 * m / (m - 1)
        }
        #expect(largestError(running.mean, newMean) < bound / 2)
        #expect(largestError(running.variance, newVariance) < bound / 2)
        #expect(running.numBatchesTracked == 5)
    }

    @Test func hugeMeanBesideTinyDeviation() throws {
        let shape = try Shape.nchw(4, 1, 56, 56)
        var random = Random(2)
        let x: Tensor<Float> = try random.tensor(shape, in: 9999.98...10000.02)
        let (y, _) = try BatchNormalization.forwardTraining(x)
        let reference = Reference(shape: shape)
        let (mean, variance) = reference.moments(x.elements.doubles)
        let expected = reference.forward(
            x.elements.doubles, mean: mean, invstd: reference.invstd(variance))
        #expect(largestError(y.elements, expected) < 4)
    }

    @Test func constantChannelGivesExactlyTheBias() throws {
        for value: Float in [3.7, 1e4, -1e-3] {
            let x = try Tensor<Float>(repeating: value, shape: .nhwc(5, 7, 9, 3))
            let bias: [Float] = [0.1, -2, 5]
            let (y, _) = try BatchNormalization.forwardTraining(x, weight: [2, 3, 4], bias: bias)
            #expect(y.elements.indices.allSatisfy { y.elements[$0] == bias[$0 % 3] })
        }
    }

    @Test func zeroVarianceAndZeroEpsilon() throws {
        let x = try Tensor<Double>(repeating: 2, shape: .nc(4, 2))
        let (y, saved) = try BatchNormalization.forwardTraining(
            x, weight: [5, 6], bias: [1, 2], options: TrainingOptions(epsilon: 0))
        #expect(saved.invstd == [0, 0])
        #expect(y.elements == [1, 2, 1, 2, 1, 2, 1, 2])
    }

    @Test func biasedVarianceOnRequest() throws {
        let x = try Tensor<Double>([1, 2, 3, 6], shape: .nc(4, 1))
        var unbiased = RunningStatistics<Double>(mean: [0], variance: [0])
        var biased = unbiased
        var options = TrainingOptions(momentum: 1)
        _ = try BatchNormalization.forwardTraining(x, running: unbiased.mutableView, options: options)
        options.runningVariance = .biased
        _ = try BatchNormalization.forwardTraining(x, running: biased.mutableView, options: options)
        #expect(unbiased.mean == [3] && biased.mean == [3])
        #expect(abs(biased.variance[0] - 3.5) < 1e-14)
        #expect(abs(unbiased.variance[0] - 14.0 / 3) < 1e-14)
    }

    @Test func cumulativeAverageIsThePlainMeanOverAllBatches() throws {
        var random = Random(3)
        var running = try RunningStatistics<Double>(channels: 2)
        let options = TrainingOptions(momentum: .nan, averaging: .cumulative)
        let shape = try Shape.nc(10, 2)
        var means = [0.0, 0.0]
        for k in 1...5 {
            let x: Tensor<Double> = try random.tensor(shape, in: -1...Double(k))
            let (_, saved) = try BatchNormalization.forwardTraining(x, running: running.mutableView, options: options)
            means = zip(means, saved.mean).map { $0 + $1 / 5 }
        }
        #expect(largestError(running.mean, means) < 20)
        #expect(running.numBatchesTracked == 5)
    }

    @Test func emptyBatchChangesNothing() throws {
        for shape in [try Shape.nchw(0, 3, 4, 4), try .nhwc(2, 0, 4, 3), try .nc(0, 3)] {
            let x = try Tensor<Float>([], shape: shape)
            var running = try RunningStatistics<Float>(channels: 3)
            let (y, saved) = try BatchNormalization.forwardTraining(x, running: running.mutableView)
            #expect(y.elements.isEmpty)
            #expect(try running == RunningStatistics(channels: 3))
            let gradients = try BatchNormalization.backward(x, gradOutput: x, saved: saved)
            #expect(gradients.weight == [0, 0, 0] && gradients.bias == [0, 0, 0])
        }
    }

    @Test(arguments: [Float.nan, .infinity, -.infinity])
    func nonfiniteValuesStayInTheirChannel(_ bad: Float) throws {
        for shape in [try Shape.nchw(3, 4, 5, 6), try .nhwc(3, 5, 6, 4), try .nc(90, 4)] {
            var random = Random(4)
            let good: Tensor<Float> = try random.tensor(shape)
            var elements = good.elements
            let places = Reference(shape: shape).positions(of: 2)
            elements[places[17]] = bad
            var cleanRunning = try RunningStatistics<Float>(channels: 4)
            var running = cleanRunning
            let (cleanOutput, _) = try BatchNormalization.forwardTraining(good, running: cleanRunning.mutableView)
            let (output, saved) = try BatchNormalization.forwardTraining(
                Tensor(elements, shape: shape), running: running.mutableView)

            #expect(saved.nonfiniteChannels == 1)
            for channel in 0..<4 {
                let positions = Reference(shape: shape).positions(of: channel)
                if channel == 2 {
                    #expect(positions.allSatisfy { output.elements[$0].isNaN })
                    #expect(running.mean[channel] == 0 && running.variance[channel] == 1)
                } else {
                    #expect(
                        positions.allSatisfy {
                            output.elements[$0].bitPattern == cleanOutput.elements[$0].bitPattern
                        })
                    #expect(running.mean[channel] == cleanRunning.mean[channel])
                    #expect(running.variance[channel] == cleanRunning.variance[channel])
                }
            }
        }
    }

    @Test func nonfinitePolicyErrorComesAfterTheWork() throws {
        let x = try Tensor<Float>([1, .nan, 2, 3], shape: .nc(2, 2))
        var running = try RunningStatistics<Float>(channels: 2)
        #expect(throws: BatchNormError.nonfinite(channels: 1, runningChannels: 0, of: 2)) {
            try BatchNormalization.forwardTraining(
                x, running: running.mutableView, options: TrainingOptions(nonfinite: .error))
        }
        #expect(running.numBatchesTracked == 1)
        #expect(running.mean[0] == 0.15 && running.mean[1] == 0)
    }

    @Test func oneValuePerChannel() throws {
        let shape = try Shape.nc(1, 2)
        let x = try Tensor<Float>([3, 4], shape: shape)
        let start = RunningStatistics<Float>(mean: [1, 1], variance: [4, 4], numBatchesTracked: 7)
        var running = start

        #expect(throws: BatchNormError.oneValue(shape.sizes)) {
            try BatchNormalization.forwardTraining(x, running: running.mutableView)
        }
        #expect(running == start)

        var options = TrainingOptions(epsilon: 0, oneValue: .useRunning)
        let (byRunning, saved) = try BatchNormalization.forwardTraining(
            x, running: running.mutableView, options: options)
        #expect(byRunning.elements == [1, 1.5])
        #expect(saved == SavedStatistics(mean: [1, 1], invstd: [0.5, 0.5], statistics: .running))
        #expect(running == start)
        #expect(throws: BatchNormError.oneValueWithoutRunningStatistics(shape.sizes)) {
            try BatchNormalization.forwardTraining(x, options: options)
        }

        options.oneValue = .allow
        let (allowed, _) = try BatchNormalization.forwardTraining(
            x, bias: [8, 9], running: running.mutableView, options: options)
        #expect(allowed.elements == [8, 9])
        #expect(largestError(running.mean, [1.2, 1.3]) < 2)
        #expect(running.variance == start.variance)
        #expect(running.numBatchesTracked == 8)
    }

    @Test func resultsHaveTheSameBitsForAnyThreadsAndInstructionSet() throws {
        try withOwnSettings {
            for shape in [try Shape.nchw(5, 3, 40, 50), try .nhwc(9, 20, 21, 17), try .nc(1000, 70)] {
                var random = Random(5)
                let x: Tensor<Float> = try random.tensor(shape)
                let dy: Tensor<Float> = try random.tensor(shape)
                var expected: (Tensor<Float>, SavedStatistics, Gradients<Float>)?
                for isa in [ISA.generic, .avx2, .avx512] {
                    for threads in [1, 2, 3, 5, 8] {
                        BatchNormSettings.isa = isa
                        try BatchNormSettings.setThreads(threads)
                        let (y, saved) = try BatchNormalization.forwardTraining(x)
                        let gradients = try BatchNormalization.backward(x, gradOutput: dy, saved: saved)
                        if let expected {
                            #expect(y == expected.0)
                            #expect(saved == expected.1)
                            #expect(gradients == expected.2)
                        } else {
                            expected = (y, saved, gradients)
                        }
                    }
                }
            }
        }
    }
}

@Suite struct ForwardInferenceTests {
    @Test(arguments: shapes)
    func agreesWithReference(_ shape: Shape) throws {
        var random = Random(6)
        let c = shape.channels
        let x: Tensor<Float> = try random.tensor(shape)
        let running = RunningStatistics<Float>(
            mean: random.values(c), variance: random.values(c, in: 0.1...4))
        let weight: [Float] = random.values(c)
        let y = try BatchNormalization.forwardInference(x, weight: weight, running: running, epsilon: 1e-3)
        let reference = Reference(shape: shape, epsilon: 1e-3, weight: weight.doubles)
        let expected = reference.forward(
            x.elements.doubles, mean: running.mean.doubles,
            invstd: reference.invstd(running.variance.doubles))
        #expect(largestError(y.elements, expected) < 4)
    }

    @Test func emptyBatch() throws {
        let x = try Tensor<Float>([], shape: .nchw(0, 2, 3, 3))
        #expect(try BatchNormalization.forwardInference(x, running: RunningStatistics(channels: 2)) == x)
    }
}

@Suite struct BackwardTests {
    @Test(arguments: shapes, [Statistics.batch, .running])
    func agreesWithReference(_ shape: Shape, _ statistics: Statistics) throws {
        try compare(shape, statistics, as: Float.self)
        try compare(shape, statistics, as: Double.self)
    }

    private func compare<Scalar: BatchNormParameter>(
        _ shape: Shape, _ statistics: Statistics, as _: Scalar.Type
    ) throws {
        var random = Random(7)
        let c = shape.channels
        let x: Tensor<Scalar> = try random.tensor(shape)
        let dy: Tensor<Scalar> = try random.tensor(shape)
        let weight: [Scalar] = random.values(c)
        let saved: SavedStatistics
        switch statistics {
        case .batch: saved = try BatchNormalization.forwardTraining(x, weight: weight).saved
        case .running:
            saved = try SavedStatistics(
                running: RunningStatistics<Scalar>(
                    mean: random.values(c), variance: random.values(c, in: 0.5...2)))
        }
        let gradients = try BatchNormalization.backward(x, gradOutput: dy, weight: weight, saved: saved)
        let expected = Reference(shape: shape, weight: weight.doubles).backward(
            x.elements.doubles, gradOutput: dy.elements.doubles, mean: saved.mean,
            invstd: saved.invstd, frozen: statistics == .running)
        let size = saved.invstd.reduce(1, max)
        let bound: Double = Scalar.scalarType == .float32 ? 8 : 64
        #expect(largestError(gradients.input.elements, expected.input, scale: size) < bound)
        let sum = Double(shape.valuesPerChannel) * size
        #expect(largestError(gradients.weight, expected.weight, scale: sum) < 4)
        #expect(largestError(gradients.bias, expected.bias, scale: sum) < 4)
    }

    @Test func agreesWithFiniteDifferences() throws {
        let shape = try Shape.nchw(2, 2, 2, 3)
        var random = Random(8)
        let x: Tensor<Double> = try random.tensor(shape)
        let dy: Tensor<Double> = try random.tensor(shape)
        let weight: [Double] = [0.7, -1.3]
        let bias: [Double] = [0.1, 0.2]
        func loss(_ x: [Double], _ weight: [Double], _ bias: [Double]) throws -> Double {
            let (y, _) = try BatchNormalization.forwardTraining(
                Tensor(x, shape: shape), weight: weight, bias: bias)
            return zip(y.elements, dy.elements).reduce(0) { $0 + $1.0 * $1.1 }
        }
        func slope(_ at: [Double], _ index: Int, _ f: ([Double]) throws -> Double) throws -> Double {
            let h = 1e-5
            var up = at
            var down = at
            up[index] += h
            down[index] -= h
            return try (f(up) - f(down)) / (2 * h)
        }
        let (_, saved) = try BatchNormalization.forwardTraining(x, weight: weight, bias: bias)
        let gradients = try BatchNormalization.backward(x, gradOutput: dy, weight: weight, saved: saved)
        for index in 0..<shape.count {
            let expected = try slope(x.elements, index) { try loss($0, weight, bias) }
            #expect(abs(gradients.input.elements[index] - expected) < 1e-7)
        }
        for channel in 0..<2 {
            let weightSlope = try slope(weight, channel) { try loss(x.elements, $0, bias) }
            #expect(abs(gradients.weight[channel] - weightSlope) < 1e-7)
            let biasSlope = try slope(bias, channel) { try loss(x.elements, weight, $0) }
            #expect(abs(gradients.bias[channel] - biasSlope) < 1e-7)
        }
    }

    @Test func eachGradientCanBeSkipped() throws {
        let shape = try Shape.nhwc(3, 5, 5, 4)
        var random = Random(9)
        let x: Tensor<Float> = try random.tensor(shape)
        let dy: Tensor<Float> = try random.tensor(shape)
        let (_, saved) = try BatchNormalization.forwardTraining(x)
        let all = try BatchNormalization.backward(x, gradOutput: dy, saved: saved)
        for wanted in 0..<8 {
            var input = wanted & 1 == 0 ? nil : [Float](repeating: 99, count: shape.count)
            var weight = wanted & 2 == 0 ? nil : [Float](repeating: 99, count: 4)
            var bias = wanted & 4 == 0 ? nil : [Float](repeating: 99, count: 4)
            try BatchNormalization.backward(
                input: x.span, gradOutput: dy.span, shape: shape, saved: saved, gradInput: input?.mutableSpan,
                gradWeight: weight?.mutableSpan, gradBias: bias?.mutableSpan)
            #expect(input == (wanted & 1 == 0 ? nil : all.input.elements))
            #expect(weight == (wanted & 2 == 0 ? nil : all.weight))
            #expect(bias == (wanted & 4 == 0 ? nil : all.bias))
        }
    }
}

@Suite struct SpanTests {
    @Test func spansGiveTheSameAsTensors() throws {
        let shape = try Shape.nchw(2, 3, 5, 7)
        var random = Random(10)
        let x: Tensor<Float> = try random.tensor(shape)
        let weight: [Float] = random.values(3)
        var running = try RunningStatistics<Float>(channels: 3)
        var spanRunning = running
        let (y, saved) = try BatchNormalization.forwardTraining(x, weight: weight, running: running.mutableView)

        var output = [Float](repeating: 0, count: shape.count)
        let spanSaved = try BatchNormalization.forwardTraining(
            input: x.span, shape: shape, output: output.mutableSpan, weight: weight.span,
            running: spanRunning.mutableView)
        #expect(output == y.elements)
        #expect(spanSaved == saved)
        #expect(spanRunning == running)
    }

    @Test func inPlaceGivesTheSame() throws {
        for shape in [try Shape.nchw(2, 3, 5, 7), try .nhwc(4, 33, 9, 3), try .nc(100, 3)] {
            var random = Random(11)
            let x: Tensor<Float> = try random.tensor(shape)
            var running = try RunningStatistics<Float>(channels: 3)
            var otherRunning = running
            let (y, saved) = try BatchNormalization.forwardTraining(x, running: running.mutableView)
            var inPlace = x
            let otherSaved = try BatchNormalization.forwardTraining(
                inPlace: inPlace.mutableSpan, shape: shape, running: otherRunning.mutableView)
            #expect(inPlace == y)
            #expect(otherSaved == saved)
            #expect(otherRunning == running)

            let evaluated = try BatchNormalization.forwardInference(x, running: running)
            inPlace = x
            try BatchNormalization.forwardInference(
                inPlace: inPlace.mutableSpan, shape: shape, runningMean: running.mean.span,
                runningVar: running.variance.span)
            #expect(inPlace == evaluated)
        }
    }

    @Test func tensorsAreValues() throws {
        let x = try Tensor<Float>([1, 2], shape: .nc(2, 1))
        var y = x
        var values = y.mutableSpan
        values[0] = 9
        #expect(x.elements == [1, 2])
        #expect(y.elements == [9, 2])
    }
}
