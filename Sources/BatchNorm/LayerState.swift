// A layer's state as one block of bytes. All numbers are little-endian, whatever the machine:
//
//     magic 8 bytes | version u32 | dtype i32 | size i64 | num_features i64 | num_batches_tracked i64 |
//     epsilon f64 | momentum f64 | averaging, running_variance, one_value, nonfinite, has_weight, has_bias,
//     track_running_stats, training i32 | weight, bias, running_mean, running_var as there are |
//     skipped_batches 2 * num_features i64 if there are running statistics | CRC-32 u32
//
// This is version 2; version 1 has no skipped_batches, of which there are none then.

/// A state's fixed part. Reading one means checking everything, the checksum included.
private struct StateHeader {
    static var byteCount: Int { 88 }
    static var version: Int { 2 }
    /// As PNG's: a byte that no text has, and line ends that a transfer as text would change.
    static var magic: UInt64 { 0x0a1a_0a0d_534e_4289 }

    var version = Self.version
    var scalar: ScalarType
    var options: LayerOptions
    var batches: Int64
    var isTraining: Bool

    private var hasSkippedBatches: Bool { version >= 2 && options.trackRunningStats }

    /// The size of the whole state; nil if it does not fit in 63 bits.
    var stateByteCount: Int? {
        let (bytes, overflow) = options.numFeatures.multipliedReportingOverflow(
            by: options.arrayCount &* scalar.parameter.size &+ (hasSkippedBatches ? 16 : 0))
        guard !overflow, bytes <= Int.max - Self.byteCount - 4 else { return nil }
        return Self.byteCount &+ bytes &+ 4
    }
}

extension StateHeader {
    /// Reads and checks a state of which nothing is known yet.
    init(_ memory: UnsafeRawPointer?, size: Int) throws(BatchNormError) {
        guard size >= 0 else { throw .negativeCount(.size, actual: size) }
        guard let memory else { throw .missing(.state) }
        try Self.requireIntact(memory, size: size)
        var reader = ByteReader(memory, at: 8)
        let version = Int(reader.next(as: UInt32.self))
        let scalar: ScalarType = try reader.nextOption(.dtype)
        _ = reader.next(as: Int64.self)  // the size
        let channels = Int(reader.next(as: Int64.self))
        let batches = reader.next(as: Int64.self)
        let training = TrainingOptions(
            epsilon: reader.nextReal(), momentum: reader.nextReal(),
            averaging: try reader.nextOption(.averaging),
            runningVariance: try reader.nextOption(.runningVariance),
            oneValue: try reader.nextOption(.oneValue),
            nonfinite: try reader.nextOption(.nonfinite))
        let options = LayerOptions(
            numFeatures: channels, training: training,
            hasWeight: try reader.nextFlag(.hasWeight), hasBias: try reader.nextFlag(.hasBias),
            trackRunningStats: try reader.nextFlag(.trackRunningStats))
        let isTraining = try reader.nextFlag(.training)
        self.init(
            version: version, scalar: scalar, options: options, batches: batches, isTraining: isTraining)
        try requireValid(memory, size: size)
    }

    /// Throws unless a layer can have all of it.
    private func requireValid(_ memory: UnsafeRawPointer, size: Int) throws(BatchNormError) {
        let channels = options.numFeatures
        let training = options.training
        guard channels > 0 else {
            throw .stateInvalid(.numFeatures, actual: .integer(channels))
        }
        guard batches >= 0, options.trackRunningStats || batches == 0 else {
            throw .stateInvalid(.numBatchesTracked, actual: .integer(Int(batches)))
        }
        guard training.epsilon.isFinite, training.epsilon >= 0 else {
            throw .stateInvalid(.epsilon, actual: .real(training.epsilon))
        }
        guard training.momentum.isFinite || training.averaging == .cumulative else {
            throw .stateInvalid(.momentum, actual: .real(training.momentum))
        }
        guard stateByteCount == size else {
            throw .stateInvalid(.numFeatures, actual: .integer(channels))
        }
        guard var counters = skippedBatches(in: memory) else { return }
        for _ in 0..<2 &* channels {
            let skipped = counters.next(as: Int64.self)
            guard 0 <= skipped, skipped <= batches else {
                throw .stateInvalid(.skippedBatches, actual: .integer(Int(skipped)))
            }
        }
    }

    /// At the skipped batches of a checked state; nil if it has none.
    func skippedBatches(in memory: UnsafeRawPointer) -> ByteReader? {
        guard hasSkippedBatches, let size = stateByteCount else { return nil }
        return ByteReader(memory, at: size &- 4 &- 16 &* options.numFeatures)
    }

    /// Throws unless these are the bytes of a state, all of them and undamaged.
    private static func requireIntact(_ memory: UnsafeRawPointer, size: Int) throws(BatchNormError) {
        for index in 0..<min(size, 8) {
            let expected = UInt8(truncatingIfNeeded: Self.magic >> UInt64(8 &* index))
            guard memory.load(fromByteOffset: index, as: UInt8.self) == expected else {
                throw .stateForeign
            }
        }
        guard size >= Self.byteCount + 4 else {
            throw .stateTruncated(actual: size, expected: Self.byteCount + 4)
        }
        var reader = ByteReader(memory, at: 8)
        let version = reader.next(as: UInt32.self)
        guard 1...Self.version ~= Int(version) else {
            throw .stateVersion(actual: Int(version), expected: Self.version)
        }
        _ = reader.next(as: Int32.self)  // the dtype
        let written = reader.next(as: Int64.self)
        guard written == size else {
            throw .stateTruncated(actual: size, expected: Int(written))
        }
        var checksum = CRC32()
        for index in 0..<size &- 4 {
            checksum.append(memory.load(fromByteOffset: index, as: UInt8.self))
        }
        var end = ByteReader(memory, at: size &- 4)
        let expected = end.next(as: UInt32.self)
        guard checksum.value == expected else {
            throw .stateChecksum(actual: checksum.value, expected: expected)
        }
    }
}

extension LayerCore {
    private var stateHeader: StateHeader {
        StateHeader(scalar: scalar, options: options, batches: batches, isTraining: isTraining)
    }

    /// The size of the state in bytes. It fits, for the arrays themselves do.
    package var stateByteCount: Int { stateHeader.stateByteCount ?? .max }

    /// Writes the state: `stateByteCount` bytes.
    package func saveState(
        to out: UnsafeMutableRawPointer?, size: Int
    ) throws(BatchNormError) {
        let header = stateHeader
        guard size >= 0 else { throw .negativeCount(.size, actual: size) }
        guard size >= stateByteCount else {
            throw .bufferTooSmall(actual: size, expected: stateByteCount)
        }
        guard let out else { throw .missing(.out) }
        var writer = ByteWriter(out)
        writer.append(StateHeader.magic)
        writer.append(UInt32(StateHeader.version))
        writer.append(scalar.rawValue)
        writer.append(Int64(stateByteCount))
        writer.append(Int64(options.numFeatures))
        writer.append(header.batches)
        writer.append(options.training.epsilon)
        writer.append(options.training.momentum)
        writer.append(options.training.averaging.rawValue)
        writer.append(options.training.runningVariance.rawValue)
        writer.append(options.training.oneValue.rawValue)
        writer.append(options.training.nonfinite.rawValue)
        writer.append(options.hasWeight)
        writer.append(options.hasBias)
        writer.append(options.trackRunningStats)
        writer.append(isTraining)
        writer.append(weight, scalar)
        writer.append(bias, scalar)
        writer.append(runningMean, scalar)
        writer.append(runningVar, scalar)
        writer.append(skippedBatches, .float64)
        writer.appendChecksum()
    }

    /// Takes over mode, parameters, statistics and counters from the state of a layer of the same kind.
    package func loadState(_ state: UnsafeRawPointer?, size: Int) throws(BatchNormError) {
        let header = try StateHeader(state, size: size)
        guard header.scalar == scalar else {
            throw .scalarTypeMismatch(actual: header.scalar, expected: scalar)
        }
        guard header.options.numFeatures == options.numFeatures else {
            throw .channelsMismatch(
                actual: header.options.numFeatures, expected: options.numFeatures)
        }
        try requireEqual(.hasWeight, header.options.hasWeight, options.hasWeight)
        try requireEqual(.hasBias, header.options.hasBias, options.hasBias)
        try requireEqual(
            .trackRunningStats, header.options.trackRunningStats, options.trackRunningStats)
        take(header, from: state)
    }

    /// A new layer, options and all, from a state.
    package static func make(
        fromState state: UnsafeRawPointer?, size: Int
    ) throws(BatchNormError) -> LayerCore {
        let header = try StateHeader(state, size: size)
        let layer = try LayerCore(scalar: header.scalar, options: header.options)
        layer.take(header, from: state)
        return layer
    }

    private func requireEqual(
        _ argument: BatchNormError.Argument, _ actual: Bool, _ expected: Bool
    ) throws(BatchNormError) {
        guard actual == expected else {
            throw .optionMismatch(argument, actual: actual ? 1 : 0, expected: expected ? 1 : 0)
        }
    }

    private func take(_ header: StateHeader, from state: UnsafeRawPointer?) {
        guard let state else { return }
        var reader = ByteReader(state, at: StateHeader.byteCount)
        reader.next(into: weight, scalar)
        reader.next(into: bias, scalar)
        reader.next(into: runningMean, scalar)
        reader.next(into: runningVar, scalar)
        skippedBatches.zero()
        if var counters = header.skippedBatches(in: state) {
            counters.next(into: skippedBatches, .float64)
        }
        batches = header.batches
        isTraining = header.isTraining
    }
}
