// Tensors of BFloat16 and Float16: what Float gives, rounded once.

import Testing

@testable import BatchNorm

@Suite("Half types")
struct HalfTests {
    @Test("BFloat16 rounds to nearest, ties to even, once")
    func rounding() {
        #expect(Float(BFloat16(1 as Float)) == 1)
        #expect(Float(BFloat16(Float(1) + 0x1p-8)) == 1)  // a tie, to even
        #expect(Float(BFloat16(Float(1) + 0x1p-8 + 0x1p-20)) == 1 + 0x1p-7)
        #expect(Float(BFloat16(Float(1) + 0x3p-8)) == 1 + 0x1p-6)  // a tie, to even
        // Just above a tie, which rounding to Float first would make one.
        #expect(Float(BFloat16(1 + 0x1p-8 + 0x1p-40)) == 1 + 0x1p-7)
        #expect(Float(BFloat16(-1 - 0x1p-8 - 0x1p-40)) == -1 - 0x1p-7)
        #expect(Float(BFloat16(1 + 0x3p-8 - 0x1p-40)) == 1 + 0x1p-7)
        #expect(BFloat16(Float.greatestFiniteMagnitude) == .infinity)
        #expect(BFloat16(0x1p-133) == .leastNonzeroMagnitude)
        #expect(BFloat16(0x1p-134) == 0)
        #expect(BFloat16(Float.nan).isNaN)
        #expect(BFloat16(Float(bitPattern: 0x7f80_0001)).isNaN)
        #expect(-BFloat16(2.5) == -2.5)
        #expect(BFloat16.nan != BFloat16.nan)
        #expect("\(BFloat16(0.1))" == "0.100097656")
    }

    @Test("every BFloat16 is a Float and comes back")
    func everyPattern() {
        for pattern in UInt16.min...UInt16.max {
            let value = BFloat16(bitPattern: pattern)
            guard !value.isNaN else { continue }
            #expect(BFloat16(Float(value)).bitPattern == pattern)
            #expect(BFloat16(Double(value)).bitPattern == pattern)
        }
    }

    @Test("inference is Float's, rounded", arguments: [Layout.nchw, .nhwc])
    func inference(layout: Layout) throws {
        try inference(BFloat16.self, layout, { BFloat16($0) }, { Float($0) })
        try inference(Float16.self, layout, { Float16($0) }, { Float($0) })
    }

    private func inference<Half: BatchNormScalar>(
        _: Half.Type, _ layout: Layout, _ narrow: (Float) -> Half, _ widen: (Half) -> Float
    ) throws where Half.Parameter == Float {
        let shape = try Shape(batch: 3, channels: 5, spatial: [7, 4], layout: layout)
        let values = (0..<shape.count).map { narrow(Float($0 * 37 % 101) / 7 - 5) }
        let mean: [Float] = [1, 2, -3, 0, 4]
        let variance: [Float] = [1, 4, 0.25, 2, 9]
        let half = try BatchNormalization.forwardInference(
            Tensor(values, shape: shape), activation: .relu,
            running: RunningStatistics<Half>(mean: mean, variance: variance))
        let float = try BatchNormalization.forwardInference(
            Tensor(values.map(widen), shape: shape), activation: .relu,
            running: RunningStatistics<Float>(mean: mean, variance: variance))
        for index in 0..<shape.count {
            #expect(half.elements[index] == narrow(float.elements[index]))
        }
    }

    @Test("a layer trains: its parameters are Float")
    func training() throws {
        let shape = try Shape.nchw(8, 3, 9, 5)
        let values = (0..<shape.count).map { BFloat16(Float($0 * 41 % 127) / 16) }
        let halves = try Tensor(values, shape: shape)
        let floats = try Tensor(values.map { Float($0) }, shape: shape)
        let layer = try BatchNormLayer<BFloat16>(numFeatures: 3)
        let reference = try BatchNormLayer<Float>(numFeatures: 3)
        let output = try layer.forward(halves)
        let expected = try reference.forward(floats)
        for index in 0..<shape.count {
            let right = expected.elements[index]
            #expect(abs(Float(output.elements[index]) - right) <= max(abs(right), 0.01) * 0x1p-7)
        }
        let mean: [Float] = try #require(try layer.runningMean)
        for channel in 0..<3 {
            #expect(try abs(mean[channel] - reference.runningMean![channel]) < 1e-5)
        }

        let gradients = try layer.backward(halves, gradOutput: output)
        let expectedGradients = try reference.backward(floats, gradOutput: expected)
        let weight: [Float] = gradients.weight
        for channel in 0..<3 {
            let right = expectedGradients.weight[channel]
            #expect(abs(weight[channel] - right) <= abs(right) * 0.01)
        }

        // The state says what the tensors are.
        let again = try BatchNormLayer<BFloat16>(state: layer.state())
        #expect(try again.runningMean == layer.runningMean)
        #expect(throws: BatchNormError.self) { try BatchNormLayer<Float>(state: layer.state()) }
    }
}
