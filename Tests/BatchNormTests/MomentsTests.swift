// The operations in two halves, and the statistics of many batches, through the public functions.

import Testing

@testable import BatchNorm

@Suite struct MomentsTests {
    @Test(arguments: shapes)
    func onePartHasTheBitsOfTheWhole(_ shape: Shape) throws {
        try compare(shape, as: Float.self)
        try compare(shape, as: Double.self)
    }

    private func compare<Scalar: BatchNormParameter>(_ shape: Shape, as _: Scalar.Type) throws {
        var random = Random(31)
        let x: Tensor<Scalar> = try random.tensor(shape, in: 99...101)
        let dy: Tensor<Scalar> = try random.tensor(shape)
        let weight: [Scalar] = random.values(shape.channels)
        let bias: [Scalar] = random.values(shape.channels)
        var running = try RunningStatistics<Scalar>(channels: shape.channels)
        var again = running
        let whole = try BatchNormalization.forwardTraining(x, weight: weight, bias: bias, running: running.mutableView)
        let gradients = try BatchNormalization.backward(x, gradOutput: dy, weight: weight, saved: whole.saved)

        let moments = try Moments(of: x)
        #expect(moments.count == shape.valuesPerChannel && moments.channels == shape.channels)
        let halves = try BatchNormalization.normalize(
            x, moments: moments, weight: weight, bias: bias, running: again.mutableView)
        #expect(halves.output == whole.output)
        #expect(halves.saved == whole.saved)
        #expect(again == running)
        #expect(try moments.invstd() == whole.saved.invstd)
        let sums = try BatchNormalization.backwardReduce(x, gradOutput: dy, saved: halves.saved)
        #expect(
            try BatchNormalization.backwardApply(x, gradOutput: dy, sums: sums, weight: weight, saved: halves.saved)
                == gradients)
        // The second forward of activation checkpointing.
        #expect(
            try BatchNormalization.normalize(x, moments: moments, weight: weight, bias: bias).output == whole.output)
        let once = try BatchNormalization.normalize(x, saved: whole.saved, weight: weight, bias: bias)
        #expect(largestError(once.elements, whole.output.elements.doubles, scale: 128) < 2)
    }

    @Test func partsAgreeWithTheReference() throws {
        let shape = try Shape.nchw(7, 3, 5, 6)
        var random = Random(32)
        let x: Tensor<Float> = try random.tensor(shape, in: -3...5)
        let dy: Tensor<Float> = try random.tensor(shape)
        func part(_ tensor: Tensor<Float>, _ samples: Range<Int>) throws -> Tensor<Float> {
            let part = tensor.elements[(samples.lowerBound * 90)..<(samples.upperBound * 90)]
            return try Tensor(Array(part), shape: .nchw(samples.count, 3, 5, 6))
        }
        let ranges = [0..<2, 2..<2, 2..<7]
        var moments = try Moments(channels: 3)
        for range in ranges { try moments.merge(Moments(of: part(x, range))) }
        let reference = Reference(shape: shape)
        let (mean, variance) = reference.moments(x.elements.doubles)
        #expect(moments.count == 210)
        // A variance may be off by twice as much as its inverse square root.
        let bound = savedBound(.float32)
        #expect(largestError(moments.mean, mean, scale: 2) < bound)
        #expect(largestError(try moments.variance(), variance) < 2 * bound)
        #expect(
            largestError(try moments.variance(.unbiased), variance.map { $0 * 210 / 209 })
                < 2 * bound)

        var output: [Float] = []
        var sums = GradientSums(count: 0, dy: [0, 0, 0], dyXmu: [0, 0, 0])
        var saved: SavedStatistics?
        for range in ranges {
            let normalized = try BatchNormalization.normalize(part(x, range), moments: moments)
            output += normalized.output.elements
            saved = normalized.saved
            try sums.add(
                BatchNormalization.backwardReduce(part(x, range), gradOutput: part(dy, range), saved: normalized.saved))
        }
        let whole = try BatchNormalization.forwardTraining(x)
        #expect(largestError(output, whole.output.elements.doubles) < 4)
        let gradients = try BatchNormalization.backward(x, gradOutput: dy, saved: whole.saved)
        var gradInput: [Float] = []
        for range in ranges {
            let own = try BatchNormalization.backwardApply(
                part(x, range), gradOutput: part(dy, range), sums: sums, saved: #require(saved))
            gradInput += own.input.elements
            // Sums of 210 terms that are pieces of their own here, and one there.
            #expect(largestError(own.weight, gradients.weight.doubles, scale: 70) < 8)
            #expect(largestError(own.bias, gradients.bias.doubles, scale: 70) < 8)
        }
        #expect(largestError(gradInput, gradients.input.elements.doubles) < 4)
    }

    @Test func badMomentsAreRefused() throws {
        let good = Moments(count: 4, mean: [1, 2], m2: [3, 4])
        func merging(_ other: Moments) throws {
            var moments = good
            defer { #expect(moments == good) }
            try moments.merge(other)
        }
        #expect(throws: BatchNormError.momentsCount(.other, actual: -1, expected: 0)) {
            try merging(Moments(count: -1, mean: [0, 0], m2: [0, 0]))
        }
        #expect(throws: BatchNormError.momentsM2(.other, channel: 1, actual: -2)) {
            try merging(Moments(count: 1, mean: [0, 0], m2: [0, -2]))
        }
        #expect(throws: BatchNormError.momentsCountOverflow(actual: .max, expected: .max - 4)) {
            try merging(Moments(count: .max, mean: [0, 0], m2: [0, 0]))
        }
        #expect(throws: BatchNormError.countMismatch(.other, actual: 1, expected: 2)) {
            try merging(Moments(count: 1, mean: [0], m2: [0]))
        }
        #expect(throws: BatchNormError.countMismatch(.m2, actual: 3, expected: 2)) {
            try merging(Moments(count: 1, mean: [0, 0], m2: [0, 0, 0]))
        }
        #expect(throws: BatchNormError.momentsCount(.moments, actual: 0, expected: 1)) {
            try Moments(channels: 2).variance()
        }
        let x = try Tensor<Float>([1, 2, 3, 4], shape: .nc(2, 2))
        #expect(throws: BatchNormError.momentsCount(.moments, actual: 0, expected: 1)) {
            try BatchNormalization.normalize(x, moments: Moments(channels: 2))
        }
        #expect(throws: BatchNormError.oneValueOfMoments) {
            try BatchNormalization.normalize(x, moments: Moments(count: 1, mean: [0, 0], m2: [0, 0]))
        }
        var sums = GradientSums(count: 1, dy: [0, 0], dyXmu: [0, 0])
        #expect(throws: BatchNormError.countMismatch(.sumDy, actual: 1, expected: 2)) {
            try sums.add(GradientSums(count: 1, dy: [0], dyXmu: [0]))
        }
        let saved = SavedStatistics(mean: [0, 0], invstd: [1, 1])
        sums.count = 0
        #expect(throws: BatchNormError.momentsCount(.sums, actual: 0, expected: 1)) {
            try BatchNormalization.backwardApply(x, gradOutput: x, sums: sums, saved: saved)
        }
        #expect(
            BatchNormError.momentsM2(.moments, channel: 7, actual: -0.5).description
                == "moments->m2[7] is -0.5, expected 0 or more")
    }
}

@Suite struct StatisticsAccumulatorTests {
    private func batches() throws -> [Tensor<Float>] {
        var random = Random(33)
        return try (1...4).map { try random.tensor(.nc(3 * $0, 2), in: -1...Double($0)) }
    }

    @Test func exactIsThatOfAllValues() throws {
        var collected = try StatisticsAccumulator(channels: 2, runningVariance: .biased)
        var all: [Float] = []
        for batch in try batches() {
            try collected.add(batch)
            all += batch.elements
        }
        let (mean, variance) = Reference(shape: try .nc(30, 2)).moments(all.doubles)
        let running = try collected.statistics(as: Float.self)
        #expect(largestError(running.mean, mean) < 1)
        #expect(largestError(running.variance, variance) < 1)
        #expect(running.numBatchesTracked == 4)
    }

    @Test func meanIsThatOfACumulativeForward() throws {
        var collected = try StatisticsAccumulator(channels: 2, method: .mean)
        var running = try RunningStatistics<Float>(channels: 2)
        for batch in try batches() {
            try collected.add(batch)
            _ = try BatchNormalization.forwardTraining(
                batch, running: running.mutableView, options: TrainingOptions(averaging: .cumulative))
        }
        let statistics = try collected.statistics(as: Float.self)
        // The forward rounds to float32 after each batch.
        #expect(largestError(statistics.mean, running.mean.doubles) < 4)
        #expect(largestError(statistics.variance, running.variance.doubles) < 4)
        #expect(statistics.numBatchesTracked == 4)
    }

    @Test func whatIsRefusedLeavesNoTrace() throws {
        for method in [StatisticsAccumulator.Method.exact, .mean] {
            var collected = try StatisticsAccumulator(channels: 2, method: method)
            #expect(throws: BatchNormError.momentsCount(.moments, actual: 0, expected: 1)) {
                try collected.statistics(as: Float.self)
            }
            try collected.add(batches()[0])
            let before = try collected.statistics(as: Double.self)
            #expect(throws: BatchNormError.nonfinite(channels: 1, runningChannels: 0, of: 2)) {
                try collected.add(Tensor<Float>([1, .nan, 2, 3], shape: .nc(2, 2)))
            }
            #expect(throws: BatchNormError.self) {
                try collected.add(Tensor<Float>([1, 2, 3], shape: .nc(1, 3)))
            }
            try collected.add(Tensor<Float>([], shape: .nc(0, 2)))
            #expect(try collected.statistics(as: Double.self) == before)
            try collected.add(Tensor<Double>([1e100, 0, -1e100, 0], shape: .nc(2, 2)))
            #expect(throws: BatchNormError.nonfinite(channels: 1, runningChannels: 0, of: 2)) {
                try collected.statistics(as: Float.self)
            }
        }
    }
}

@Suite struct SplitFusionTests {
    private static let activations: [Activation] = [
        .none, .relu, .leakyReLU(negativeSlope: 0.01), .leakyReLU(negativeSlope: 2),
    ]

    /// One part has the bits of the whole operation, with all that a call may ask for.
    @Test(arguments: shapes, activations)
    func onePartHasTheBitsOfTheWhole(_ shape: Shape, _ activation: Activation) throws {
        var random = Random(41)
        let x = try random.tensor(shape, in: -2...2, as: Float.self)
        let dy = try random.tensor(shape, as: Float.self)
        let added = try random.tensor(shape, in: -2...2, as: Float.self)
        let weight = random.values(shape.channels, in: 0.5...2, as: Float.self)
        let bias = random.values(shape.channels, as: Float.self)
        let takesPart = (0..<shape.valuesPerChannel).map { $0 < 2 || $0 % 3 != 0 }
        for residual in [nil, added] {
            for mask in [nil, PositionMask.positions(takesPart, masked: .pass)] {
                var running = try RunningStatistics<Float>(channels: shape.channels)
                var again = running
                let whole = try BatchNormalization.forwardTraining(
                    x, weight: weight, bias: bias, activation: activation, residual: residual, mask: mask,
                    running: running.mutableView)
                let gradients = try BatchNormalization.backward(x, gradOutput: dy, weight: weight, saved: whole.saved)

                let moments = try Moments(of: x, mask: mask)
                let (output, saved) = try BatchNormalization.normalize(
                    x, moments: moments, weight: weight, bias: bias, activation: activation,
                    residual: residual, mask: mask, running: again.mutableView)
                #expect(output == whole.output)
                #expect(saved == whole.saved)
                #expect(again == running)
                #expect((saved.activationMask == nil) == (activation == .none))
                let second = try BatchNormalization.normalize(
                    x, moments: moments, weight: weight, bias: bias, activation: activation,
                    residual: residual, mask: mask)
                #expect(second.output == whole.output)
                #expect(second.saved == whole.saved)

                // What was saved repeats it but for roundings; so where the sign stays, the mask is the same.
                let repeated = try BatchNormalization.normalize(
                    x, saved: saved, weight: weight, bias: bias, activation: activation, residual: residual,
                    mask: mask)
                #expect(largestError(repeated.elements, output.elements.doubles, scale: 4) < 2)

                var ofOutput = saved
                if activation != .none {
                    ofOutput.activationMask = try ActivationMask(activation, output: output)
                }
                let sums = try BatchNormalization.backwardReduce(x, gradOutput: dy, saved: saved)
                #expect(try BatchNormalization.backwardReduce(x, gradOutput: dy, saved: ofOutput) == sums)
                let applied = try BatchNormalization.backwardApply(
                    x, gradOutput: dy, sums: sums, weight: weight, saved: saved)
                #expect(applied == gradients)
                #expect((applied.residual != nil) == (residual != nil))
            }
        }
    }

    @Test func spans() throws {
        let shape = try Shape.nhwc(2, 5, 4, 3)
        var random = Random(42)
        let x = try random.tensor(shape, as: Float.self)
        let dy = try random.tensor(shape, as: Float.self)
        let residual = try random.tensor(shape, as: Float.self)
        let whole = try BatchNormalization.forwardTraining(x, activation: .relu, residual: residual)
        let gradients = try BatchNormalization.backward(x, gradOutput: dy, saved: whole.saved)
        let sums = try BatchNormalization.backwardReduce(x, gradOutput: dy, saved: whole.saved)
        var gradResidual = [Float](repeating: .nan, count: shape.count)
        try BatchNormalization.backwardApply(
            input: x.span, gradOutput: dy.span, shape: shape, sums: sums,
            saved: whole.saved, gradResidual: gradResidual.mutableSpan)
        #expect(gradResidual == gradients.residual?.elements)
    }

    @Test func badExtrasAreRefused() throws {
        let x = try Tensor<Float>([1, 2, 3, 4], shape: .nc(2, 2))
        let moments = try Moments(of: x)
        let saved = try BatchNormalization.forwardTraining(x).saved
        let short = try Tensor<Float>([1, 2], shape: .nc(1, 2))
        let mismatch = BatchNormError.shapeMismatch(actual: short.shape, expected: x.shape)
        #expect(throws: mismatch) { try BatchNormalization.normalize(x, moments: moments, residual: short) }
        #expect(throws: mismatch) { try BatchNormalization.normalize(x, saved: saved, residual: short) }
        let slope = Activation.leakyReLU(negativeSlope: -1)
        #expect(throws: BatchNormError.negativeSlope(actual: -1)) {
            try BatchNormalization.normalize(x, moments: moments, activation: slope)
        }
        #expect(throws: BatchNormError.negativeSlope(actual: -1)) {
            try BatchNormalization.normalize(x, saved: saved, activation: slope)
        }
        var rest = saved
        rest.meanRest = [0, 0, 0]
        #expect(throws: BatchNormError.countMismatch(.savedMeanRest, actual: 3, expected: 2)) {
            try BatchNormalization.normalize(x, saved: rest)
        }
    }

    /// Without what the mean lacks, float64 gradients of a large mean lose digits.
    @Test func theMeansRestIsSaved() throws {
        var random = Random(43)
        let shape = try Shape.nchw(3, 4, 9, 9)
        let x = try random.tensor(shape, in: 1e9...(1e9 + 8), as: Double.self)
        let (output, saved) = try BatchNormalization.forwardTraining(x)
        #expect(saved.meanRest.contains { $0 != 0 })
        #expect(try BatchNormalization.normalize(x, saved: saved) == output)
    }
}

@Suite struct RecalibrationTests {
    private func batches() throws -> [Tensor<Float>] {
        var random = Random(44)
        return try (1...4).map { try random.tensor(.nc(3 * $0, 2), in: 4...(5 + Double($0))) }
    }

    @Test(arguments: [StatisticsAccumulator.Method.exact, .mean])
    func isWhatTheAccumulatorSays(_ method: StatisticsAccumulator.Method) throws {
        var collected = try StatisticsAccumulator(channels: 2, method: method, runningVariance: .biased)
        for batch in try batches() { try collected.add(batch) }
        let expected = try collected.statistics(as: Float.self)
        for fromMoments in [false, true] {
            let layer = try BatchNormLayer<Float>(numFeatures: 2)
            if fromMoments {
                let moments = try batches().map { try Moments(of: $0) }
                try layer.recalibrate(moments, method: method, runningVariance: .biased)
            } else {
                try layer.recalibrate(batches(), method: method, runningVariance: .biased)
            }
            #expect(try layer.runningMean == expected.mean)
            #expect(try layer.runningVar == expected.variance)
            #expect(layer.numBatchesTracked == 4)
        }
    }

    @Test func whatIsRefusedChangesNothing() throws {
        let layer = try BatchNormLayer<Float>(numFeatures: 2)
        let state = try layer.state()
        #expect(throws: BatchNormError.momentsCount(.moments, actual: 0, expected: 1)) {
            try layer.recalibrate([Tensor<Float>]())
        }
        let bad = try Tensor<Float>([1, .nan, 2, 3], shape: .nc(2, 2))
        #expect(throws: BatchNormError.nonfinite(channels: 1, runningChannels: 0, of: 2)) {
            try layer.recalibrate(batches() + [bad])
        }
        #expect(try layer.state() == state)
        let none = try BatchNormLayer<Float>(LayerOptions(numFeatures: 2, trackRunningStats: false))
        #expect(throws: BatchNormError.noRunningStatistics) { try none.recalibrate(batches()) }
    }
}
