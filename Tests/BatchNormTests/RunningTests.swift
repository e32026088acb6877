// Running statistics where a channel cannot take a batch in: what stays, what is counted, what the next one weighs.

import Testing

@testable import BatchNorm

struct RunningTests {
    private let bad = try! Tensor<Double>([.infinity, 1, 0, 3], shape: .nc(2, 2))
    private let good = try! Tensor<Double>([5, 1, 7, 3], shape: .nc(2, 2))
    private let cumulative = TrainingOptions(averaging: .cumulative)

    private func expectClose(_ actual: [Double]?, _ expected: [Double]) {
        #expect(largestError(actual ?? [], expected) < 4)
    }

    @Test func aCumulativeAverageIsOfWhatWasTakenIn() throws {
        for inHalves in [false, true] {
            var running = try RunningStatistics<Double>(channels: 2)
            for batch in [bad, good, good] {
                if inHalves {
                    try Moments(of: batch).update(&running, options: cumulative)
                } else {
                    _ = try BatchNormalization.forwardTraining(batch, running: running.mutableView, options: cumulative)
                }
            }
            expectClose(running.mean, [6, 2])
            expectClose(running.variance, [2, 2])
            #expect(running.numBatchesTracked == 3)
            #expect(running.skippedBatches == [1, 0, 1, 0])
        }
    }

    @Test func oneValueIsSkippedByTheVariance() throws {
        var running = try RunningStatistics<Double>(channels: 2)
        var options = cumulative
        options.oneValue = .allow
        let one = try Tensor<Double>([6, 2], shape: .nc(1, 2))
        for batch in [one, good, good] {
            _ = try BatchNormalization.forwardTraining(batch, running: running.mutableView, options: options)
        }
        expectClose(running.mean, [6, 2])
        expectClose(running.variance, [2, 2])
        #expect(running.skippedBatches == [0, 0, 1, 1])
    }

    @Test(arguments: [Double.nan, .infinity, -.infinity])
    func brokenStatisticsAreReplacedOrTold(_ old: Double) throws {
        for options in [TrainingOptions(momentum: 1), cumulative] {
            var running = RunningStatistics<Double>(mean: [old, 0], variance: [1, old])
            let (_, saved) = try BatchNormalization.forwardTraining(
                good, running: running.mutableView, options: options)
            #expect(saved.nonfiniteChannels == 0 && saved.nonfiniteRunningChannels == 0)
            expectClose(running.mean, [6, 2])
            expectClose(running.variance, [2, 2])
        }
        var running = RunningStatistics<Double>(mean: [old, 0], variance: [1, old])
        let (_, saved) = try BatchNormalization.forwardTraining(
            good, running: running.mutableView, options: TrainingOptions(momentum: 0.5))
        #expect(saved.nonfiniteChannels == 0 && saved.nonfiniteRunningChannels == 2)
        #expect(!running.mean[0].isFinite && !running.variance[1].isFinite)
        #expect(running.mean[1] == 1 && running.variance[0] == 1.5)
        #expect(running.skippedBatches == [1, 0, 0, 1])
        #expect(
            try Moments(of: bad).update(&running, options: TrainingOptions(momentum: 0.5)) == (1, 2))
    }

    @Test func theErrorTellsInputFromStatistics() throws {
        let options = TrainingOptions(nonfinite: .error)
        var broken = RunningStatistics<Double>(mean: [0, .nan], variance: [1, 1])
        #expect(throws: BatchNormError.nonfinite(channels: 0, runningChannels: 1, of: 2)) {
            try BatchNormalization.forwardTraining(good, running: broken.mutableView, options: options)
        }
        #expect(throws: BatchNormError.nonfinite(channels: 1, runningChannels: 1, of: 2)) {
            try BatchNormalization.forwardTraining(bad, running: broken.mutableView, options: options)
        }
        var sound = try RunningStatistics<Double>(channels: 2)
        #expect(throws: BatchNormError.nonfinite(channels: 1, runningChannels: 0, of: 2)) {
            try BatchNormalization.forwardTraining(bad, running: sound.mutableView, options: options)
        }
    }

    @Test func aLayerKeepsCount() throws {
        let layer = try BatchNormLayer<Double>(
            LayerOptions(numFeatures: 2, training: cumulative))
        #expect(try layer.skippedBatches == [0, 0, 0, 0])
        for batch in [bad, good] { _ = try layer.forward(batch) }
        #expect(try layer.skippedBatches == [1, 0, 1, 0])
        for other in [layer, try BatchNormLayer<Double>(state: layer.state())] {
            _ = try other.forward(good)
            expectClose(try other.runningMean, [6, 2])
            expectClose(try other.runningVar, [2, 2])
            #expect(try other.skippedBatches == [1, 0, 1, 0])
        }

        try layer.setSkippedBatches([3, 2, 1, 0])
        #expect(try layer.skippedBatches == [3, 2, 1, 0])
        #expect(throws: BatchNormError.skippedBatches(index: 2, actual: 4, limit: 3)) {
            try layer.setSkippedBatches([3, 2, 4, 0])
        }
        #expect(throws: BatchNormError.countMismatch(.skippedBatches, actual: 2, expected: 4)) {
            try layer.setSkippedBatches([0, 0])
        }
        #expect(try layer.skippedBatches == [3, 2, 1, 0])
        try layer.setNumBatchesTracked(5)
        #expect(try layer.skippedBatches == [0, 0, 0, 0])
        try layer.setSkippedBatches([1, 1, 1, 1])
        try layer.resetRunningStats()
        #expect(try layer.skippedBatches == [0, 0, 0, 0])

        try layer.setRunningMean([.nan, 0])
        try layer.setNumBatchesTracked(1)
        _ = try layer.forward(good)
        #expect(try layer.savedStatistics().nonfiniteRunningChannels == 1)

        let without = try BatchNormLayer<Double>(
            LayerOptions(numFeatures: 2, trackRunningStats: false))
        #expect(try without.skippedBatches == nil)
        #expect(throws: BatchNormError.noRunningStatistics) {
            try without.setSkippedBatches([0, 0, 0, 0])
        }
    }

    @Test func wrongCountersChangeNothing() throws {
        var running = try RunningStatistics<Double>(channels: 2)
        running.skippedBatches[3] = 1
        let before = running
        #expect(throws: BatchNormError.skippedBatches(index: 3, actual: 1, limit: 0)) {
            try BatchNormalization.forwardTraining(good, running: running.mutableView)
        }
        running.skippedBatches = [0, 0]
        #expect(throws: BatchNormError.countMismatch(.skippedBatches, actual: 2, expected: 4)) {
            try BatchNormalization.forwardTraining(good, running: running.mutableView)
        }
        running.skippedBatches = before.skippedBatches
        #expect(running == before)
    }
}
