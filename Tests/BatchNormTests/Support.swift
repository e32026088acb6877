// What the tests share: a readable float64 reference, reproducible random data, and how close is close.

import Synchronization

@testable import BatchNorm

/// The settings are the whole process's, and tests run at the same time: changes them inside `body` alone, and takes
/// them back.
func withOwnSettings<Result>(_ body: () throws -> Result) rethrows -> Result {
    try settings.withLock { _ in
        let threads = BatchNormSettings.threads
        let isa = BatchNormSettings.isa
        defer {
            try? BatchNormSettings.setThreads(threads)
            BatchNormSettings.isa = isa
            try? BatchNormSettings.setThreading(.automatic)
        }
        return try body()
    }
}

private let settings = Mutex(())

/// Batch normalization as in the textbook, one channel after the other, in float64.
struct Reference {
    let shape: Shape
    var epsilon = 1e-5
    var weight: [Double]?
    var bias: [Double]?

    /// The positions of a channel's values in memory order.
    func positions(of channel: Int) -> [Int] {
        let c = shape.channels
        let spatial = shape.spatial.reduce(1, *)
        return (0..<shape.batch).flatMap { n in
            (0..<spatial).map { s in
                switch shape.layout {
                case .nchw: (n * c + channel) * spatial + s
                case .nhwc: (n * spatial + s) * c + channel
                }
            }
        }
    }

    /// Mean and biased variance per channel.
    func moments(_ x: [Double]) -> (mean: [Double], variance: [Double]) {
        var means: [Double] = []
        var variances: [Double] = []
        for channel in 0..<shape.channels {
            let values = positions(of: channel).map { x[$0] }
            let mean = values.reduce(0, +) / Double(values.count)
            // The second term corrects for the rounding of the mean.
            let deviations = values.map { $0 - mean }
            let rest = deviations.reduce(0, +) / Double(values.count)
            means.append(mean + rest)
            variances.append(
                deviations.map { ($0 - rest) * ($0 - rest) }.reduce(0, +) / Double(values.count))
        }
        return (means, variances)
    }

    func invstd(_ variance: [Double]) -> [Double] {
        variance.map { $0 + epsilon == 0 ? 0 : 1 / ($0 + epsilon).squareRoot() }
    }

    func forward(_ x: [Double], mean: [Double], invstd: [Double]) -> [Double] {
        var y = x
        for channel in 0..<shape.channels {
            for position in positions(of: channel) {
                y[position] =
                    (x[position] - mean[channel]) * invstd[channel] * (weight?[channel] ?? 1)
                    + (bias?[channel] ?? 0)
            }
        }
        return y
    }

    func backward(
        _ x: [Double], gradOutput dy: [Double], mean: [Double], invstd: [Double], frozen: Bool
    ) -> (input: [Double], weight: [Double], bias: [Double]) {
        var dx = dy
        var dweight: [Double] = []
        var dbias: [Double] = []
        for channel in 0..<shape.channels {
            let places = positions(of: channel)
            let m = Double(places.count)
            let r = invstd[channel]
            let s1 = places.map { dy[$0] }.reduce(0, +)
            let s2 = places.map { dy[$0] * (x[$0] - mean[channel]) }.reduce(0, +)
            dbias.append(s1)
            dweight.append(s2 * r)
            for place in places {
                let c = x[place] - mean[channel]
                let inner = frozen ? dy[place] : dy[place] - s1 / m - c * r * r * s2 / m
                dx[place] = (weight?[channel] ?? 1) * r * inner
            }
        }
        return (dx, dweight, dbias)
    }
}

/// SplitMix64: the same numbers in every run.
struct Random: RandomNumberGenerator {
    private var state: UInt64
    init(_ seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }

    mutating func values<Scalar: BatchNormParameter>(
        _ count: Int, in range: ClosedRange<Double> = -1...1, as type: Scalar.Type = Scalar.self
    ) -> [Scalar] {
        (0..<count).map { _ in Scalar(Double.random(in: range, using: &self)) }
    }

    mutating func tensor<Scalar: BatchNormParameter>(
        _ shape: Shape, in range: ClosedRange<Double> = -1...1, as type: Scalar.Type = Scalar.self
    ) throws -> Tensor<Scalar> {
        try Tensor(values(shape.count, in: range), shape: shape)
    }
}

extension Sequence where Element: BatchNormParameter {
    var doubles: [Double] { map { Double($0) } }
}

/// The largest difference, in units of `scale` (at least 1) and of the type's precision.
func largestError<Scalar: BatchNormParameter>(
    _ actual: [Scalar], _ expected: [Double], scale: Double = 1
) -> Double {
    guard actual.count == expected.count else { return .infinity }
    let ulp = Scalar.scalarType == .float32 ? Double(Float.ulpOfOne) : Double.ulpOfOne
    return zip(actual, expected).reduce(0) { largest, pair in
        let size = max(scale, abs(pair.1))
        let error = abs(Double(pair.0) - pair.1) / (size * ulp)
        return error.isNaN ? .infinity : max(largest, error)
    }
}

/// What saved means (in deviations) and invstds of tensors of this type may be off by, in units of float64's last place: of
/// float32 tensors 2^-22.
func savedBound(_ scalar: ScalarType) -> Double { scalar == .float64 ? 100 : 0x1p30 }

/// One shape of every rank in both layouts, some longer than a tile and some shorter than a vector.
let shapes: [Shape] = [
    try! .nc(7, 5), try! .nc(300, 33), try! .ncl(3, 4, 17), try! .nlc(3, 17, 4),
    try! .nchw(2, 3, 4, 5), try! .nhwc(2, 4, 5, 3), try! .nchw(3, 2, 40, 41),
    try! .nhwc(3, 40, 41, 2), try! .ncdhw(2, 3, 2, 3, 4), try! .ndhwc(2, 2, 3, 4, 3),
    try! .nchw(1, 1, 64, 65), try! .nc(2, 1),
]
