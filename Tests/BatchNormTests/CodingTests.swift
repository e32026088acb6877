// Options and running statistics as JSON.

import BatchNorm
import Foundation
import Testing

@Suite struct CodingTests {
    private func decoded<Value: Codable>(_ value: Value) throws -> Value {
        try JSONDecoder().decode(Value.self, from: JSONEncoder().encode(value))
    }

    @Test func optionsComeBack() throws {
        let training = TrainingOptions(
            epsilon: 1e-3, momentum: 0.25, averaging: .cumulative, runningVariance: .biased,
            oneValue: .useRunning, nonfinite: .error)
        let options = LayerOptions(numFeatures: 7, training: training, hasBias: false)
        #expect(try decoded(options) == options)
    }

    @Test func runningStatisticsComeBack() throws {
        let running = RunningStatistics<Float>(
            mean: [0.1, -3], variance: [2, 1e-30], numBatchesTracked: 9, skippedBatches: [1, 0, 2, 0])
        #expect(try decoded(running) == running)
    }
}
