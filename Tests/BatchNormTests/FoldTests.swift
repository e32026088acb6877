// Folding: a folded layer does what convolution and normalization did; what rounding costs; bad input. The layouts are
// tested one by one from C and Python.

import Testing

@testable import BatchNorm

@Suite struct FoldTests {
    /// Running statistics, γ and β of so many channels.
    private func parameters<Scalar: BatchNormParameter>(
        _ channels: Int, _ random: inout Random
    ) -> (running: RunningStatistics<Scalar>, weight: [Scalar], bias: [Scalar]) {
        let running = RunningStatistics<Scalar>(
            mean: random.values(channels, in: -3...3),
            variance: random.values(channels, in: 0.1...4))
        return (running, random.values(channels), random.values(channels))
    }

    private func checkLinear<Scalar: BatchNormParameter>(_ type: Scalar.Type) throws {
        var random = Random(1)
        let (running, gamma, beta): (RunningStatistics<Scalar>, [Scalar], [Scalar]) =
            parameters(3, &random)
        let weight: [Scalar] = random.values(12)  // [O][I] or [I][O]: 3 outputs, 4 inputs
        let bias: [Scalar] = random.values(3)
        let x: [Scalar] = random.values(4)
        for shape in [
            try WeightShape.outputFirst(channels: 3, values: 4),
            try .outputLast(values: 4, channels: 3),
        ] {
            func linear(_ weight: [Scalar], _ bias: [Scalar]) -> [Double] {
                (0..<3).map { o in
                    (0..<4).reduce(Double(bias[o])) { sum, i in
                        let index = shape.inner == 4 ? o * 4 + i : i * 3 + o
                        return sum + Double(weight[index]) * Double(x[i])
                    }
                }
            }
            let reference = Reference(
                shape: try .nc(1, 3), weight: gamma.doubles, bias: beta.doubles)
            let expected = reference.forward(
                linear(weight, bias), mean: running.mean.doubles,
                invstd: reference.invstd(running.variance.doubles))

            let folded = try running.fold(
                into: weight, bias: bias, shape: shape, weight: gamma, bias: beta)
            let actual = linear(folded.weight, folded.bias).map { Scalar($0) }
            #expect(largestError(actual, expected, scale: 10) < 8)

            let layer = try BatchNormLayer<Scalar>(numFeatures: 3)
            try layer.setRunningMean(running.mean)
            try layer.setRunningVar(running.variance)
            try layer.setWeight(gamma)
            try layer.setBias(beta)
            #expect(try layer.fold(into: weight, bias: bias, shape: shape) == folded)
        }
    }

    @Test func aFoldedLinearLayerDoesBoth() throws {
        try checkLinear(Float.self)
        try checkLinear(Double.self)
    }

    @Test func outputChannelsOfATransposedConvolutionAreCountedInTheirGroup() throws {
        // [2 groups][3 inputs][2 outputs][5 values]: each element times its channel's scale.
        let shape = try WeightShape.transposed(groups: 2, inputs: 3, channels: 2, spatial: 5)
        #expect(shape.count == 60 && shape.outputChannels == 4)
        let running = RunningStatistics<Double>(
            mean: [0, 0, 0, 0], variance: [1, 1, 1, 1])
        let folded = try running.fold(
            into: Array(repeating: 1, count: 60), shape: shape, weight: [1, 2, 3, 4], epsilon: 0)
        let expected = (0..<60).map { index in
            let (group, channel) = (index / 30, index / 5 % 2)
            return Double(group * 2 + channel + 1)
        }
        #expect(folded.weight == expected)
        #expect(folded.bias == [0, 0, 0, 0])
    }

    @Test func anAffinePairNormalizes() throws {
        var random = Random(2)
        let (running, gamma, beta): (RunningStatistics<Float>, [Float], [Float]) =
            parameters(5, &random)
        let pair = try running.affine(weight: gamma, bias: beta, epsilon: 1e-3)
        let x: Tensor<Float> = try random.tensor(.nc(1, 5))
        let expected = try BatchNormalization.forwardInference(
            x, weight: gamma, bias: beta, running: running, epsilon: 1e-3)
        let actual = (0..<5).map { x.elements[$0] * pair.weight[$0] + pair.bias[$0] }
        #expect(largestError(actual, expected.elements.doubles, scale: 10) < 8)
        #expect(0 < pair.errors.weight && pair.errors.weight <= 0x1p-24)

        let exact = try RunningStatistics<Double>(mean: [3], variance: [4]).affine(epsilon: 0)
        #expect(exact == Folded(weight: [0.5], bias: [-1.5], errors: FoldingErrors()))
        // No variance and no epsilon: scale 0.
        let constant = try RunningStatistics<Double>(mean: [3], variance: [0])
            .affine(bias: [7], epsilon: 0)
        #expect(constant.weight == [0] && constant.bias == [7])
        #expect(try BatchNormLayer<Double>(numFeatures: 1).affine().bias == [0])
    }

    @Test func refusesWhatDoesNotFit() throws {
        let running = try RunningStatistics<Float>(channels: 2)
        let shape = try WeightShape.outputFirst(channels: 2, values: 3)
        let weight = [Float](repeating: 1, count: 6)
        #expect(throws: BatchNormError.countMismatch(.convWeight, actual: 5, expected: 6)) {
            try running.fold(into: Array(weight.dropLast()), shape: shape)
        }
        #expect(throws: BatchNormError.countMismatch(.convBias, actual: 1, expected: 2)) {
            try running.fold(into: weight, bias: [1], shape: shape)
        }
        #expect(throws: BatchNormError.countMismatch(.runningMean, actual: 2, expected: 3)) {
            try running.fold(into: weight, shape: .outputFirst(channels: 3, values: 2))
        }
        #expect(throws: BatchNormError.noChannels) {
            try RunningStatistics<Float>(channels: 0).affine()
        }
        #expect(throws: BatchNormError.noChannels) { try WeightShape(groups: 0, channels: 3) }
        #expect(throws: BatchNormError.negativeCount(.inner, actual: -1)) {
            try WeightShape.outputFirst(channels: 3, values: -1)
        }
        #expect(throws: BatchNormError.self) { try WeightShape(outer: .max, channels: 2) }
        #expect(throws: BatchNormError.epsilon(actual: -1)) { try running.affine(epsilon: -1) }
        #expect(throws: BatchNormError.number(.runningVar, index: 1, actual: -2)) {
            try RunningStatistics<Float>(mean: [0, 0], variance: [1, -2]).affine()
        }
        #expect(throws: BatchNormError.number(.convWeight, index: 4, actual: .infinity)) {
            var weight = weight
            weight[4] = .infinity
            return try running.fold(into: weight, shape: shape)
        }
        #expect(throws: BatchNormError.number(.foldedWeight, index: 0, actual: .infinity)) {
            try RunningStatistics<Float>(mean: [0], variance: [1e-12])
                .affine(weight: [1e35], epsilon: 0)
        }

        let layer = try BatchNormLayer<Float>(numFeatures: 3)
        #expect(throws: BatchNormError.channelsMismatch(actual: 2, expected: 3)) {
            try layer.fold(into: weight, shape: shape)
        }
        var options = LayerOptions(numFeatures: 3)
        options.trackRunningStats = false
        let without = try BatchNormLayer<Float>(options)
        #expect(throws: BatchNormError.noRunningStatistics) { try without.affine() }
    }
}
