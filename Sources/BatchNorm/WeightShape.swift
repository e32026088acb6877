// Where the output channels lie in the weight of a convolution or linear layer, for folding.

/// Where the output channels lie in a weight tensor: it is seen as `[groups][outer][channels][inner]`, dense, and the
/// values of output channel `group * channels + channel` are those at `[group][...][channel][...]`.
///
/// That is every layout there is: what lies before the axis of the output channels is `outer`, what lies behind it
/// `inner`. Only PyTorch's transposed convolutions, whose output channels are counted within a group, need `groups`.
public struct WeightShape: Equatable, Sendable {
    /// Parts of the tensor, each with output channels of its own.
    public let groups: Int
    /// Values before the axis of the output channels.
    public let outer: Int
    /// Output channels of a group.
    public let channels: Int
    /// Values behind the axis of the output channels.
    public let inner: Int
    /// The number of elements of the tensor.
    public let count: Int

    /// - Throws: `BatchNormError.negativeCount`, `.noChannels` if `groups` or `channels` is 0, or `.sizeOverflow`.
    public init(
        groups: Int = 1, outer: Int = 1, channels: Int, inner: Int = 1
    ) throws(BatchNormError) {
        try requireNotNegative(groups, .groups)
        try requireNotNegative(outer, .outer)
        try requireNotNegative(channels, .channels)
        try requireNotNegative(inner, .inner)
        guard groups > 0, channels > 0 else { throw .noChannels }
        // Also of a weight without values, the bias must be addressable.
        let sizes = Sizes(groups, outer, channels, inner, rank: 4)
        guard let output = Self.product(groups, channels), output <= Int.max / 8,
            let values = Self.product(outer, inner), let count = Self.product(output, values),
            count <= Int.max / 8
        else { throw .sizeOverflow(sizes, elementSize: 8) }
        self.groups = groups
        self.outer = outer
        self.channels = channels
        self.inner = inner
        self.count = count
    }

    private static func product(_ a: Int, _ b: Int) -> Int? {
        let product = a.multipliedReportingOverflow(by: b)
        return product.overflow ? nil : product.partialValue
    }

    /// The number of output channels in all.
    public var outputChannels: Int { groups &* channels }

    /// `[output][...]`: PyTorch's convolutions `[O][I/groups][spatial...]`, grouped, depthwise and channels-last ones
    /// included, and linear layers `[O][I]`. `values` is the number of values per output channel.
    public static func outputFirst(
        channels: Int, values: Int
    ) throws(BatchNormError) -> WeightShape {
        try WeightShape(channels: channels, inner: values)
    }

    /// `[...][output]`: convolutions `[spatial...][I/groups][O]` and dense layers `[I][O]` of Keras, Flax and JAX. A
    /// depthwise kernel of Keras, `[spatial...][I][multiplier]`, has `I * multiplier` channels.
    public static func outputLast(
        values: Int, channels: Int
    ) throws(BatchNormError) -> WeightShape {
        try WeightShape(outer: values, channels: channels)
    }

    /// `[groups][I/groups][O/groups][spatial...]`: PyTorch's transposed convolutions, `[I][O/groups][spatial...]`.
    ///
    /// - Parameters:
    ///   - inputs: Input channels of a group, I/groups.
    ///   - channels: Output channels of a group, O/groups.
    ///   - spatial: The product of the spatial sizes.
    public static func transposed(
        groups: Int = 1, inputs: Int, channels: Int, spatial: Int
    ) throws(BatchNormError) -> WeightShape {
        try WeightShape(groups: groups, outer: inputs, channels: channels, inner: spatial)
    }

    /// Calls `body` with the index of each value of an output channel.
    func forEachIndex(
        of output: Int, _ body: (Int) throws(BatchNormError) -> Void
    ) throws(BatchNormError) {
        // Without values there may be any number of rows.
        guard count > 0 else { return }
        let (group, channel) = output.quotientAndRemainder(dividingBy: channels)
        for row in 0..<outer {
            let start = ((group &* outer &+ row) &* channels &+ channel) &* inner
            for index in start..<start &+ inner { try body(index) }
        }
    }
}

private func requireNotNegative(
    _ size: Int, _ argument: BatchNormError.Argument
) throws(BatchNormError) {
    guard size >= 0 else { throw .negativeCount(argument, actual: size) }
}
