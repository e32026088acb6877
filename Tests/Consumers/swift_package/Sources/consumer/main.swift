// A user's program: trains a layer on one batch and checks what the layer promises of its output.
import BatchNorm

let shape = try Shape.nchw(8, 3, 4, 4)
let channelOf = { (index: Int) in index / 16 % 3 }
var pixels = [Float]()
for index in 0..<shape.count {
    pixels.append(Float((index % 17) * (channelOf(index) + 1)))
}
let images = try Tensor<Float>(pixels, shape: shape)

let layer = try BatchNormLayer<Float>(numFeatures: 3)
let output = try layer.forward(images)
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
    _ = try layer.forward(try Tensor<Float>([1, 2, 3, 4], shape: .nc(2, 2)))
    fatalError("two channels went into a layer of three")
} catch {
    print("refused: \(error)")
}
print("accepted")
