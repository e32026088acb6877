// The choices a caller has. Raw values are those of the C header and of saved states: pinned.

/// How running statistics take in a batch.
///
/// With momentum 1, as at the first batch of a cumulative average, the new value is the batch's, whatever the old one
/// was. Otherwise an old value that is NaN or infinite stays as it is, mean and variance each by itself, for no average
/// mends it; `SavedStatistics.nonfiniteRunningChannels` tells how many channels have one.
public enum Averaging: Int32, Sendable {
    /// `new = (1 - momentum) * old + momentum * batch`: PyTorch's direction of momentum.
    case exponential = 0
    /// Momentum is 1/k at the k-th batch that the statistic takes in: the plain mean over these, PyTorch's
    /// `momentum=None`. See `RunningStatistics.skippedBatches`.
    case cumulative = 1
}

/// Which batch variance enters the running variance. The normalization itself always uses the biased one.
public enum RunningVariance: Int32, Sendable {
    /// Sum / (M - 1), as PyTorch and cuDNN.
    case unbiased = 0
    /// Sum / M, as ONNX, Keras 3 and Flax.
    case biased = 1
}

/// What training does with one value per channel (M = 1), whose variance says nothing.
public enum OneValuePolicy: Int32, Sendable {
    /// Throws `BatchNormError.oneValue`, as PyTorch does.
    case error = 0
    /// Normalizes by the running statistics, which stay as they are.
    case useRunning = 1
    /// The output is the bias; the running mean is updated, the running variance is not.
    case allow = 2
}

/// What training does with NaN or infinity in a channel. In either case the outputs of that channel are NaN,
/// its running statistics keep their old value and all other channels are untouched, to the bit.
public enum NonfinitePolicy: Int32, Sendable {
    /// Succeeds and tells the number of such channels.
    case report = 0
    /// Throws `BatchNormError.nonfinite` after outputs and statistics have been written, also if running statistics were
    /// NaN or infinite and have stayed so.
    case error = 1
}

/// Which statistics normalized an output, and so which backward belongs to it.
public enum Statistics: Int32, Sendable {
    /// The batch's own: they depend on the input, and the gradient flows through them.
    case batch = 0
    /// Running statistics: constants as far as the gradient goes.
    case running = 1
}

/// What a layer's forward takes its statistics from, and whether it updates any.
public enum ForwardPass: Int32, Sendable {
    /// As the layer's mode says.
    case normal = 0
    /// As the mode says, but in training the running statistics and their counter stay as they are.
    case keepRunning = 1
    /// The last forward once more, by the statistics that it used: nothing is summed and nothing updated. For
    /// activation checkpointing, where a second forward must not count the batch twice.
    case recompute = 2
}

/// The choices of a forward pass in training. The defaults are PyTorch's.
public struct TrainingOptions: Hashable, Sendable {
    /// Added to the variance inside the square root; finite and at least 0. With 0 a channel of variance 0
    /// gets an inverse standard deviation of 0, so that its output is the bias.
    public var epsilon: Double
    /// The share of the new batch in the running statistics; finite, not clamped, unused when cumulative.
    public var momentum: Double
    /// How running statistics take in a batch.
    public var averaging: Averaging
    /// Which variance they take in.
    public var runningVariance: RunningVariance
    /// What to do with one value per channel.
    public var oneValue: OneValuePolicy
    /// What to do with NaN and infinity.
    public var nonfinite: NonfinitePolicy

    /// PyTorch's choices, but for those that are given.
    public init(
        epsilon: Double = 1e-5, momentum: Double = 0.1, averaging: Averaging = .exponential,
        runningVariance: RunningVariance = .unbiased, oneValue: OneValuePolicy = .error,
        nonfinite: NonfinitePolicy = .report
    ) {
        self.epsilon = epsilon
        self.momentum = momentum
        self.averaging = averaging
        self.runningVariance = runningVariance
        self.oneValue = oneValue
        self.nonfinite = nonfinite
    }
}

/// What a layer is made from. The defaults are those of `torch.nn.BatchNorm2d`.
public struct LayerOptions: Hashable, Sendable {
    /// The number of channels, C, at least 1.
    public var numFeatures: Int
    /// The choices of its forward passes in training; evaluation uses the epsilon.
    public var training: TrainingOptions
    /// Whether there is a weight (γ); without one it counts as 1.
    public var hasWeight: Bool
    /// Whether there is a bias (β); without one it counts as 0.
    public var hasBias: Bool
    /// Whether there are running statistics; without them evaluation uses the batch's, too.
    public var trackRunningStats: Bool

    /// PyTorch's choices, but for those that are given.
    public init(
        numFeatures: Int, training: TrainingOptions = TrainingOptions(), hasWeight: Bool = true,
        hasBias: Bool = true, trackRunningStats: Bool = true
    ) {
        self.numFeatures = numFeatures
        self.training = training
        self.hasWeight = hasWeight
        self.hasBias = hasBias
        self.trackRunningStats = trackRunningStats
    }
}

extension LayerOptions {
    /// How many arrays of C elements a layer holds: weight, bias, running mean and running variance.
    var arrayCount: Int { (hasWeight ? 1 : 0) + (hasBias ? 1 : 0) + (trackRunningStats ? 2 : 0) }
}

// Saved with a program's own settings. Embedded Swift, which the C library is built with, has no `Codable`.
#if !hasFeature(Embedded)
    extension Averaging: Codable {}
    extension RunningVariance: Codable {}
    extension OneValuePolicy: Codable {}
    extension NonfinitePolicy: Codable {}
    extension TrainingOptions: Codable {}
    extension LayerOptions: Codable {}
#endif
