// Trains a batch normalization layer by gradient descent until it maps noisy images of two channels (mean 5 and 50)
// onto images of given scale and shift; then infers one single image, which training could not normalize. Run:
// swift run --package-path examples/swift
import BatchNorm

let scale: [Float] = [3, 0.5]
let shift: [Float] = [-1, 4]
let shape = try Shape.nchw(16, 2, 8, 8)

/// Noise of a mean and deviation per channel, and what the layer should make of it.
func makeBatch(_ shape: Shape) throws -> (input: Tensor<Float>, target: Tensor<Float>) {
    var input = [Float](repeating: 0, count: shape.count)
    var target = input
    for index in 0..<shape.count {
        let channel = index / 64 % 2
        // The sum of twelve uniform numbers is close to normal: mean 0, variance 1.
        let noise = (0..<12).reduce(Float(0)) { sum, _ in sum + Float.random(in: -0.5...0.5) }
        input[index] = [5, 50][channel] + [2, 20][channel] * noise
        target[index] = scale[channel] * noise + shift[channel]
    }
    return (try Tensor(input, shape: shape), try Tensor(target, shape: shape))
}

/// The mean squared error and its gradient with respect to the output.
func meanSquaredError(_ output: Tensor<Float>, _ target: Tensor<Float>) throws -> (Float, Tensor<Float>) {
    let differences = zip(output.elements, target.elements).map { $0 - $1 }
    let count = Float(differences.count)
    let loss = differences.reduce(0) { $0 + $1 * $1 } / count
    return (loss, try Tensor(differences.map { 2 * $0 / count }, shape: output.shape))
}

let layer = try BatchNormLayer<Float>(numFeatures: 2)
let learningRate: Float = 0.3

for step in 1...80 {
    let (input, target) = try makeBatch(shape)
    let output = try layer(input)
    let (loss, gradOutput) = try meanSquaredError(output, target)
    let gradients = try layer.backward(input, gradOutput: gradOutput)
    try layer.withWeight { weight in
        for channel in weight.indices { weight[channel] -= learningRate * gradients.weight[channel] }
    }
    try layer.withBias { bias in
        for channel in bias.indices { bias[channel] -= learningRate * gradients.bias[channel] }
    }
    if step == 1 || step % 20 == 0 { print("step \(step): loss \(loss)") }
}
print("weight \(try layer.weight ?? []), expected about \(scale)")
print("bias \(try layer.bias ?? []), expected about \(shift)")

// One image: in evaluation mode the statistics collected in training normalize it.
layer.isTraining = false
let (image, expected) = try makeBatch(.nchw(1, 2, 8, 8))
let prediction = try layer(image)
print("inference: loss \(try meanSquaredError(prediction, expected).0)")

// The layer's state is a block of bytes; a layer made from it infers the same bits.
let copy = try BatchNormLayer<Float>(state: layer.state())
print(try copy(image) == prediction ? "the copy agrees, bit for bit" : "the copy differs")
