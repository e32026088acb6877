// A user's program: trains a layer on one batch and checks what the layer promises of its output. Some of BatchNorm's
// types have namesakes in another module, so their module's name goes before them.
import BatchNorm
import Drawing
import Foundation

let drawn: (Drawing.Shape, Drawing.Layout, Drawing.Activation, Drawing.Statistics) = (.circle, .rows, .click, .mean)
let shape = try BatchNorm.Shape.nchw(8, 3, 4, 4)
let channelOf = { (index: Int) in index / 16 % 3 }
var pixels = [Float]()
for index in 0..<shape.count {
    pixels.append(Float((index % 17) * (channelOf(index) + 1)))
}
let images = try BatchNorm.Tensor<Float>(pixels, shape: shape)

let layer = try BatchNormLayer<Float>(numFeatures: 3)
let activation: BatchNorm.Activation = .none
let output = try layer(images, activation: activation)
let statistics: BatchNorm.Statistics = try layer.savedStatistics().statistics
guard shape.layout == BatchNorm.Layout.nchw, statistics == .batch else { fatalError("not as drawn: \(drawn)") }
for channel in 0..<3 {
    var sum = 0.0
    var squares = 0.0
    for index in 0..<shape.count where channelOf(index) == channel {
        let value = Double(output.elements[index])
        sum += value
        squares += value * value
    }
    let mean = sum / 128
    let variance = squares / 128 - mean * mean
    guard abs(mean) < 1e-5, abs(variance - 1) < 1e-3 else {
        fatalError("channel \(channel): mean \(mean), variance \(variance), expected 0 and 1")
    }
}

do {
    _ = try layer(BatchNorm.Tensor<Float>([1, 2, 3, 4], shape: .nc(2, 2)))
    fatalError("two channels went into a layer of three")
} catch {
    // By the package's trait `Foundation`.
    guard (error as any Error).localizedDescription == error.description else {
        fatalError("not localized: \((error as any Error).localizedDescription)")
    }
    print("refused: \(error.localizedDescription)")
}
print("accepted")
