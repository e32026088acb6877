// Activation, residual, masked positions and the layer's passes, as Swift has them. Bits are compared with the plain
// operations and the rest done one by one; the kernels' own cases are in Tests/ABI and Tests/Kernels.

import Testing

@testable import BatchNorm

@Suite struct FusionTests {
    static let activations: [Activation] = [
        .none, .relu, .leakyReLU(negativeSlope: 0.01), .leakyReLU(negativeSlope: 2),
    ]

    private func tensor(_ seed: UInt64, _ shape: Shape) throws -> Tensor<Float> {
        var random = Random(seed)
        return try random.tensor(shape, in: -2...2)
    }

    private func parameters(_ channels: Int) -> (weight: [Float], bias: [Float]) {
        var random = Random(77)
        return (random.values(channels, in: 0.5...2), random.values(channels))
    }

    private func activate(_ activation: Activation, _ value: Float) -> Float {
        guard value <= 0 else { return value }
        switch activation {
        case .none: return value
        case .relu: return 0
        case .leakyReLU(let slope): return value * Float(slope)
        }
    }

    // MARK: Activation and residual

    @Test(arguments: shapes, activations)
    func isThePlainOperationAndTheRest(_ shape: Shape, _ activation: Activation) throws {
        guard shape.valuesPerChannel > 1 else { return }
        let x = try tensor(1, shape)
        let dy = try tensor(2, shape)
        let residual = try tensor(3, shape)
        let (weight, bias) = parameters(shape.channels)
        for added in [residual, nil] {
            let (plain, plainSaved) = try BatchNormalization.forwardTraining(x, weight: weight, bias: bias)
            let sum = zip(plain.elements, added?.elements ?? [Float](repeating: 0, count: x.shape.count))
                .map(+)
            let (output, saved) = try BatchNormalization.forwardTraining(
                x, weight: weight, bias: bias, activation: activation, residual: added)
            #expect(output.elements == sum.map { activate(activation, $0) })
            #expect(saved.mean == plainSaved.mean && saved.invstd == plainSaved.invstd)
            #expect((saved.activationMask == nil) == (activation == .none))
            if let mask = saved.activationMask {
                #expect(try mask == ActivationMask(activation, output: output))
                #expect((0..<mask.count).allSatisfy { mask[$0] == !(output.elements[$0] <= 0) })
            }

            let gated = zip(dy.elements, output.elements).map { gradient, value in
                value <= 0 && activation != .none
                    ? activation.negativeSlope == 0 ? 0 : gradient * Float(activation.negativeSlope)
                    : gradient
            }
            var expected = try BatchNormalization.backward(
                x, gradOutput: Tensor(gated, shape: shape), weight: weight, saved: plainSaved)
            if added != nil { expected.residual = try Tensor(gated, shape: shape) }
            #expect(try BatchNormalization.backward(x, gradOutput: dy, weight: weight, saved: saved) == expected)
        }
    }

    @Test func inferenceAndItsBackward() throws {
        let shape = try Shape.nhwc(3, 5, 7, 19)
        let x = try tensor(1, shape)
        let dy = try tensor(2, shape)
        let residual = try tensor(3, shape)
        let running = RunningStatistics<Float>(
            mean: parameters(19).bias, variance: parameters(19).weight)
        let plain = try BatchNormalization.forwardInference(x, running: running)
        let output = try BatchNormalization.forwardInference(
            x, activation: .relu, residual: residual, running: running)
        #expect(output.elements == zip(plain.elements, residual.elements).map { max(0, $0 + $1) })

        var saved = try SavedStatistics(running: running)
        let gated = zip(dy.elements, output.elements).map { $1 <= 0 ? 0 : $0 }
        var expected = try BatchNormalization.backward(x, gradOutput: Tensor(gated, shape: shape), saved: saved)
        expected.residual = try Tensor(gated, shape: shape)
        saved.activationMask = try ActivationMask(.relu, output: output)
        saved.hasResidual = true
        #expect(try BatchNormalization.backward(x, gradOutput: dy, saved: saved) == expected)
    }

    /// Over the input, over nothing of the caller's, and with what nobody wants left out.
    @Test func spans() throws {
        let shape = try Shape.nchw(2, 3, 9, 5)
        let x = try tensor(1, shape)
        let dy = try tensor(2, shape)
        let residual = try tensor(3, shape)
        var running = try RunningStatistics<Float>(channels: 3)
        let (output, saved) = try BatchNormalization.forwardTraining(
            x, activation: .relu, residual: residual, running: running.mutableView)
        let gradients = try BatchNormalization.backward(x, gradOutput: dy, saved: saved)

        var elements = x.elements
        var again = try RunningStatistics<Float>(channels: 3)
        let inPlace = try BatchNormalization.forwardTraining(
            inPlace: elements.mutableSpan, shape: shape, activation: .relu, residual: residual.span,
            running: again.mutableView)
        #expect(elements == output.elements)
        #expect(inPlace == saved)
        #expect(again == running)

        var elements2 = x.elements
        try BatchNormalization.forwardInference(
            inPlace: elements2.mutableSpan, shape: shape, activation: .relu, residual: residual.span,
            runningMean: running.mean.span, runningVar: running.variance.span)
        #expect(
            try Tensor(elements2, shape: shape)
                == BatchNormalization.forwardInference(x, activation: .relu, residual: residual, running: running))

        var gradResidual = [Float](repeating: .nan, count: shape.count)
        try BatchNormalization.backward(
            input: x.span, gradOutput: dy.span, shape: shape, saved: saved,
            gradResidual: gradResidual.mutableSpan)
        #expect(gradResidual == gradients.residual?.elements)
    }

    // MARK: Masks

    /// As a batch of what takes part alone.
    @Test(arguments: [Layout.nchw, .nhwc])
    func maskedIsAbsent(_ layout: Layout) throws {
        let shape = try Shape(batch: 4, channels: 5, spatial: [33], layout: layout)
        let lengths = [33, 0, 7, 20]
        let reference = Reference(shape: shape)
        var x = try tensor(1, shape)
        var random = Random(5)
        let dy = try random.tensor(shape, as: Float.self)
        let takesPart = (0..<4).flatMap { n in (0..<33).map { $0 < lengths[n] } }
        /// Positions of a channel in memory, those that take part and the others.
        func places(_ channel: Int, _ takingPart: Bool) -> [Int] {
            zip(reference.positions(of: channel), takesPart).filter { $1 == takingPart }.map(\.0)
        }
        let compact = try Shape.ncl(1, 5, 60)
        func compacted(_ tensor: Tensor<Float>) -> [Double] {
            (0..<5).flatMap { places($0, true) }.map { Double(tensor.elements[$0]) }
        }
        var values = x.mutableSpan
        for channel in 0..<5 { for place in places(channel, false) { values[place] = .nan } }

        let ideal = Reference(shape: compact)
        let (mean, variance) = ideal.moments(compacted(x))
        for mask in [PositionMask.lengths(lengths), .positions(takesPart)] {
            var running = try RunningStatistics<Float>(channels: 5)
            let (output, saved) = try BatchNormalization.forwardTraining(x, mask: mask, running: running.mutableView)
            #expect(saved.nonfiniteChannels == 0)
            #expect(largestError(saved.mean, mean) < 64)
            let y = ideal.forward(compacted(x), mean: mean, invstd: ideal.invstd(variance))
            #expect(largestError(compacted(output).map(Float.init), y, scale: 2) <= 3)
            #expect(
                largestError(running.variance, variance.map { 0.9 + 0.1 * $0 * 60 / 59 }) <= 2)
            #expect((0..<5).flatMap { places($0, false) }.allSatisfy { output.elements[$0] == 0 })

            let gradients = try BatchNormalization.backward(x, gradOutput: dy, saved: saved)
            let expected = ideal.backward(
                compacted(x), gradOutput: compacted(dy), mean: saved.mean, invstd: saved.invstd,
                frozen: false)
            #expect(
                largestError(compacted(gradients.input).map(Float.init), expected.input, scale: 2)
                    <= 4)
            #expect(largestError(gradients.bias, expected.bias, scale: 60) <= 1)
            #expect(
                (0..<5).flatMap { places($0, false) }.allSatisfy {
                    gradients.input.elements[$0] == 0
                })
            let inferred = try BatchNormalization.forwardInference(x, mask: mask, running: running)
            #expect(inferred.elements.allSatisfy { $0.isFinite })
        }
    }

    @Test func lengthsAreAMask() throws {
        let shape = try Shape.nlc(3, 50, 4)
        let x = try tensor(1, shape)
        let lengths = [50, 12, 31]
        let positions = lengths.flatMap { length in (0..<50).map { $0 < length } }
        for masked in [MaskedOutput.zero, .pass] {
            let one = try BatchNormalization.forwardTraining(
                x, activation: .relu, mask: .lengths(lengths, masked: masked))
            let other = try BatchNormalization.forwardTraining(
                x, activation: .relu, mask: .positions(positions, masked: masked))
            #expect(one.output == other.output)
            #expect(one.saved.activationMask == other.saved.activationMask)
            #expect(one.saved.mean == other.saved.mean)
            let behind = zip(positions, 0...).filter { !$0.0 }.map(\.1)
            for position in behind {
                for channel in 0..<4 {
                    let place = position * 4 + channel
                    #expect(
                        one.output.elements[place] == (masked == .zero ? 0 : x.elements[place]))
                }
            }
        }
        let all = try BatchNormalization.forwardTraining(x, mask: .lengths([50, 50, 50]))
        #expect(try all.output == BatchNormalization.forwardTraining(x).output)
    }

    @Test func allMaskedUpdatesNothing() throws {
        let shape = try Shape.nchw(2, 3, 4, 5)
        let x = try tensor(1, shape)
        let nothing = PositionMask.positions(Array(repeating: false, count: 40), masked: .pass)
        var running = try RunningStatistics<Float>(channels: 3)
        let (output, saved) = try BatchNormalization.forwardTraining(x, mask: nothing, running: running.mutableView)
        #expect(output == x)
        #expect(try running == RunningStatistics<Float>(channels: 3))
        let gradients = try BatchNormalization.backward(x, gradOutput: x, saved: saved)
        #expect(gradients.input == x)
        #expect(gradients.weight == [0, 0, 0] && gradients.bias == [0, 0, 0])

        var one = nothing
        one.content = .positions((0..<40).map { $0 == 17 })
        #expect(throws: BatchNormError.self) { try BatchNormalization.forwardTraining(x, mask: one) }
    }

    // MARK: The layer

    @Test(arguments: activations) func layerDoesWhatTheFunctionsDo(_ activation: Activation) throws {
        let shape = try Shape.ncl(4, 3, 41)
        let x = try tensor(1, shape)
        let dy = try tensor(2, shape)
        let residual = try tensor(3, shape)
        let (weight, bias) = parameters(3)
        let layer = try BatchNormLayer<Float>(numFeatures: 3)
        try layer.setWeight(weight)
        try layer.setBias(bias)
        for mask in [nil, PositionMask.lengths([41, 5, 0, 40], masked: .pass)] {
            let (output, saved) = try BatchNormalization.forwardTraining(
                x, weight: weight, bias: bias, activation: activation, residual: residual, mask: mask)
            #expect(
                try layer.forward(x, activation: activation, residual: residual, mask: mask) == output)
            let expected = try BatchNormalization.backward(x, gradOutput: dy, weight: weight, saved: saved)
            #expect(expected.residual != nil)
            #expect(try layer.backward(x, gradOutput: dy) == expected)
            var elements = x.elements
            try layer.forward(
                inPlace: elements.mutableSpan, shape: shape, activation: activation,
                residual: residual.span, mask: mask)
            #expect(elements == output.elements)
        }
        // A plain forward forgets them.
        let (plain, saved) = try BatchNormalization.forwardTraining(x, weight: weight, bias: bias)
        #expect(try layer.forward(x) == plain)
        #expect(
            try layer.backward(x, gradOutput: dy)
                == BatchNormalization.backward(x, gradOutput: dy, weight: weight, saved: saved))
    }

    @Test func passesThatUpdateNothing() throws {
        let shape = try Shape.nchw(3, 4, 9, 9)
        var random = Random(9)
        // A mean that one float64 cannot hold.
        let x = try random.tensor(shape, in: 1e15...(1e15 + 8), as: Double.self)
        let dy = try random.tensor(shape, as: Double.self)
        let layer = try BatchNormLayer<Double>(numFeatures: 4)
        #expect(throws: BatchNormError.noForward) { try layer.forward(x, pass: .recompute) }
        let fresh = try layer.state()
        let output = try layer.forward(x, activation: .relu, pass: .keepRunning)
        #expect(try layer.state() == fresh)
        let gradients = try layer.backward(x, gradOutput: dy)

        #expect(try layer.forward(x, activation: .relu) == output)
        #expect(layer.numBatchesTracked == 1)
        let trained = try layer.state()
        #expect(try layer.forward(x, activation: .relu, pass: .recompute) == output)
        #expect(try layer.backward(x, gradOutput: dy) == gradients)
        #expect(try layer.state() == trained)
        let other = try Tensor<Double>(repeating: 0, shape: .nchw(2, 4, 9, 9))
        #expect(throws: BatchNormError.shapeMismatch(actual: other.shape, expected: shape)) {
            try layer.forward(other, pass: .recompute)
        }
        #expect(
            throws: BatchNormError.recomputeMismatch(.activation, actual: .real(1), expected: .real(0))
        ) { try layer.forward(x, pass: .recompute) }
        let mask = PositionMask.positions((0..<shape.valuesPerChannel).map { $0 != 7 })
        #expect(throws: BatchNormError.recomputeMask(position: 7, takesPart: false)) {
            try layer.forward(x, activation: .relu, mask: mask, pass: .recompute)
        }
    }

    // MARK: Refusals

    @Test func badExtrasAreRefused() throws {
        let shape = try Shape.ncl(2, 3, 5)
        let x = try tensor(1, shape)
        var running = try RunningStatistics<Float>(channels: 3)
        let fresh = running
        func refused(
            _ expected: BatchNormError, activation: Activation = .none,
            residual: Tensor<Float>? = nil, mask: PositionMask? = nil
        ) throws {
            let layer = try BatchNormLayer<Float>(numFeatures: 3)
            let state = try layer.state()
            #expect(throws: expected) {
                try BatchNormalization.forwardTraining(
                    x, activation: activation, residual: residual, mask: mask, running: running.mutableView)
            }
            #expect(throws: expected) {
                try BatchNormalization.forwardInference(
                    x, activation: activation, residual: residual, mask: mask, running: running)
            }
            #expect(throws: expected) {
                try layer.forward(x, activation: activation, residual: residual, mask: mask)
            }
            #expect(running == fresh)
            #expect(try layer.state() == state)
        }
        try refused(.negativeSlope(actual: -1), activation: .leakyReLU(negativeSlope: -1))
        try refused(
            .negativeSlope(actual: .infinity), activation: .leakyReLU(negativeSlope: .infinity))
        let short = try Shape.ncl(2, 3, 4)
        try refused(
            .shapeMismatch(actual: short, expected: shape), residual: try tensor(1, short))
        try refused(
            .countMismatch(.mask, actual: 30, expected: 10),
            mask: .positions(Array(repeating: true, count: 30)))
        try refused(
            .countMismatch(.lengths, actual: 3, expected: 2), mask: .lengths([1, 2, 3]))
        try refused(.length(sample: 1, actual: 6, limit: 5), mask: .lengths([5, 6]))
        try refused(.length(sample: 0, actual: -1, limit: 5), mask: .lengths([-1, 5]))

        let images = try tensor(1, .nchw(2, 3, 5, 1))
        #expect(throws: BatchNormError.lengthsRank(actual: 4)) {
            try BatchNormalization.forwardTraining(images, mask: .lengths([5, 5]))
        }
        // What was saved of another shape.
        let (_, saved) = try BatchNormalization.forwardTraining(try tensor(1, short), activation: .relu)
        #expect(throws: BatchNormError.countMismatch(.activationMask, actual: 3, expected: 4)) {
            try BatchNormalization.backward(x, gradOutput: x, saved: saved)
        }
    }

    @Test func emptyBatches() throws {
        let nothing = try Tensor<Float>(repeating: 0, shape: .nhwc(0, 4, 4, 3))
        let (output, saved) = try BatchNormalization.forwardTraining(
            nothing, activation: .relu, residual: nothing, mask: .positions([]))
        #expect(output == nothing)
        let gradients = try BatchNormalization.backward(nothing, gradOutput: nothing, saved: saved)
        #expect(gradients.residual == nothing)
        #expect(gradients.bias == [0, 0, 0])
    }
}
