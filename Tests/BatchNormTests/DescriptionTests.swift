// What values print, and the short ways to make and to call a layer.

import Testing

import BatchNorm

@Suite struct DescriptionTests {
    @Test func shapeTellsSizesAndLayout() throws {
        #expect("\(try Shape.nhwc(2, 4, 5, 3))" == "[2, 3, 4, 5] nhwc")
        #expect("\(try Shape.nc(2, 3))" == "[2, 3] nchw")
    }

    @Test func tensorLeavesOutItsMiddle() throws {
        let short = try Tensor<Float>([1, 2, 3, 4, 5, 6, 7, 8], shape: .nc(4, 2))
        #expect("\(short)" == "Tensor<Float>([4, 2] nchw, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])")
        let long = try Tensor<Double>((1...9).map(Double.init), shape: .nc(3, 3))
        #expect("\(long)" == "Tensor<Double>([3, 3] nchw, [1.0, 2.0, 3.0, ..., 7.0, 8.0, 9.0])")
        #expect("\(try Tensor<Float>([], shape: .nc(0, 2)))" == "Tensor<Float>([0, 2] nchw, [])")
    }

    @Test func layerTellsItsOptions() throws {
        #expect(
            "\(try BatchNormLayer<Float>(numFeatures: 3))"
                == "BatchNormLayer<Float>(numFeatures: 3, epsilon: 1e-05, momentum: 0.1, hasWeight: true, "
                + "hasBias: true, trackRunningStats: true)")
        let training = TrainingOptions(
            averaging: .cumulative, runningVariance: .biased, oneValue: .allow, nonfinite: .error)
        #expect(
            "\(training)" == "epsilon: 1e-05, momentum: cumulative, runningVariance: biased, oneValue: allow, "
                + "nonfinite: error")
    }

    @Test func layerTakesItsOptionsOneByOne() throws {
        let layer = try BatchNormLayer<Float>(
            numFeatures: 3, epsilon: 1e-3, momentum: 0.01, hasBias: false, trackRunningStats: false)
        #expect(
            layer.options
                == LayerOptions(
                    numFeatures: 3, training: TrainingOptions(epsilon: 1e-3, momentum: 0.01),
                    hasBias: false, trackRunningStats: false))
    }

    @Test func callingALayerIsItsForward() throws {
        let x = try Tensor<Float>([1, -2, 3, 4, 0, 6], shape: .nc(3, 2))
        let residual = try Tensor<Float>([1, 1, -1, -1, 2, 2], shape: .nc(3, 2))
        let called = try BatchNormLayer<Float>(numFeatures: 2)
        let forward = try BatchNormLayer<Float>(numFeatures: 2)
        #expect(
            try called(x, activation: .relu, residual: residual)
                == forward.forward(x, activation: .relu, residual: residual))
        #expect(try called.runningMean == forward.runningMean)
    }
}
