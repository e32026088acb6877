// The shape of a tensor. Every operation takes one; a `Shape` that exists is valid, so nothing
// behind it has to think about negative sizes or overflowing products again.

/// The order of a tensor's elements in memory, dense in both cases.
public enum Layout: Int32, Sendable {
    /// `[n][c][spatial...]`, PyTorch's contiguous format.
    case nchw = 1
    /// `[n][spatial...][c]`, PyTorch's channels-last format.
    case nhwc = 2
}

/// Up to five sizes in logical order: N, C, then the spatial ones.
public struct Sizes: Hashable, Sendable {
    /// How many sizes there are.
    public let rank: Int
    private let n, c, s0, s1, s2: Int

    package init(_ n: Int, _ c: Int, _ s0: Int = 1, _ s1: Int = 1, _ s2: Int = 1, rank: Int) {
        self.rank = rank
        self.n = n
        self.c = c
        // Sizes beyond the rank count as 1, so that products and comparisons need no special case.
        self.s0 = rank > 2 ? s0 : 1
        self.s1 = rank > 3 ? s1 : 1
        self.s2 = rank > 4 ? s2 : 1
    }

    /// The size at `index`, counted from 0; 1 at and beyond `rank`.
    public subscript(index: Int) -> Int {
        switch index {
        case 0: n
        case 1: c
        case 2: s0
        case 3: s1
        case 4: s2
        default: 1
        }
    }
}

/// The sizes and the memory layout of a tensor.
///
/// `N` is the batch, `C` the channels; up to three spatial sizes follow. Each channel is normalized over its
/// `N * S` values, `S` being the product of the spatial sizes (1 for a matrix). The factories take the sizes
/// in the order of the letters in their names:
///
///     let images = try Shape.nchw(32, 64, 56, 56)
///     let channelsLast = try Shape.nhwc(32, 56, 56, 64)
///     let features = try Shape.nc(100, 32)
///
/// `N` and the spatial sizes may be 0 (an empty batch), `C` may not.
public struct Shape: Hashable, Sendable {
    /// The sizes in logical order, whatever the layout: N, C, then the spatial sizes.
    public let sizes: Sizes
    /// The order in memory. A matrix (N, C) is the same in both layouts and always says `.nchw`.
    public let layout: Layout
    /// The number of elements, N * C * S.
    public let count: Int

    /// The shape with these sizes.
    ///
    /// - Throws: `BatchNormError.rank` for more than three spatial sizes, `.negativeSize`, `.noChannels`, or
    ///   `.sizeOverflow` if the number of elements does not fit in 63 bits.
    public init(
        batch: Int, channels: Int, spatial: [Int] = [], layout: Layout = .nchw
    ) throws(BatchNormError) {
        guard spatial.count <= 3 else { throw .rank(actual: spatial.count + 2) }
        func size(_ index: Int) -> Int { index < spatial.count ? spatial[index] : 1 }
        try self.init(
            sizes: Sizes(batch, channels, size(0), size(1), size(2), rank: spatial.count + 2),
            layout: layout)
    }

    package init(sizes: Sizes, layout: Layout) throws(BatchNormError) {
        guard 2...5 ~= sizes.rank else { throw .rank(actual: sizes.rank) }
        var count = 1
        var overflow = false
        var empty = false
        for index in 0..<sizes.rank {
            let size = sizes[index]
            guard size >= 0 else { throw .negativeSize(dimension: index, actual: size) }
            empty = empty || size == 0
            let product = count.multipliedReportingOverflow(by: size)
            count = product.partialValue
            overflow = overflow || product.overflow
        }
        let channels = sizes[1]
        guard channels > 0 else { throw .noChannels }
        // Also of an empty batch the statistics, C float64 values, must be addressable.
        guard empty || !overflow, channels <= Int.max / 8 else {
            throw .sizeOverflow(sizes, elementSize: channels <= Int.max / 8 ? 1 : 8)
        }
        self.sizes = sizes
        self.layout = sizes.rank == 2 ? .nchw : layout
        self.count = empty ? 0 : count
    }

    /// The number of samples, N.
    public var batch: Int { sizes[0] }
    /// The number of channels, C.
    public var channels: Int { sizes[1] }
    /// The number of sizes, 2 to 5.
    public var rank: Int { sizes.rank }
    /// The spatial sizes, none to three.
    public var spatial: [Int] { (2..<rank).map { sizes[$0] } }
    /// The number of values that each channel is normalized over, M = N * S.
    public var valuesPerChannel: Int { count / channels }
    /// Whether there is no value at all, because N or a spatial size is 0.
    public var isEmpty: Bool { count == 0 }

    /// A matrix: N samples of C features.
    public static func nc(_ n: Int, _ c: Int) throws(BatchNormError) -> Shape {
        try Shape(sizes: Sizes(n, c, rank: 2), layout: .nchw)
    }
    /// Signals or sequences, channel by channel.
    public static func ncl(_ n: Int, _ c: Int, _ l: Int) throws(BatchNormError) -> Shape {
        try Shape(sizes: Sizes(n, c, l, rank: 3), layout: .nchw)
    }
    /// Images, channel by channel.
    public static func nchw(_ n: Int, _ c: Int, _ h: Int, _ w: Int) throws(BatchNormError) -> Shape {
        try Shape(sizes: Sizes(n, c, h, w, rank: 4), layout: .nchw)
    }
    /// Volumes, channel by channel.
    public static func ncdhw(
        _ n: Int, _ c: Int, _ d: Int, _ h: Int, _ w: Int
    ) throws(BatchNormError) -> Shape {
        try Shape(sizes: Sizes(n, c, d, h, w, rank: 5), layout: .nchw)
    }
    /// Signals or sequences, the channels of a position side by side.
    public static func nlc(_ n: Int, _ l: Int, _ c: Int) throws(BatchNormError) -> Shape {
        try Shape(sizes: Sizes(n, c, l, rank: 3), layout: .nhwc)
    }
    /// Images, the channels of a pixel side by side.
    public static func nhwc(_ n: Int, _ h: Int, _ w: Int, _ c: Int) throws(BatchNormError) -> Shape {
        try Shape(sizes: Sizes(n, c, h, w, rank: 4), layout: .nhwc)
    }
    /// Volumes, the channels of a voxel side by side.
    public static func ndhwc(
        _ n: Int, _ d: Int, _ h: Int, _ w: Int, _ c: Int
    ) throws(BatchNormError) -> Shape {
        try Shape(sizes: Sizes(n, c, d, h, w, rank: 5), layout: .nhwc)
    }
}

extension Shape {
    /// Throws if a tensor of this shape is larger than an address can count.
    func requireAddressable(_ scalar: ScalarType) throws(BatchNormError) {
        guard count <= Int.max / scalar.size else {
            throw .sizeOverflow(sizes, elementSize: scalar.size)
        }
    }
}
