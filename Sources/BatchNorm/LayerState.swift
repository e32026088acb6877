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

/// Writes little-endian numbers one after the other and sums them up.
private struct ByteWriter {
    private let memory: UnsafeMutableRawPointer
    private var offset = 0
    private var checksum = CRC32()

    init(_ memory: UnsafeMutableRawPointer) { self.memory = memory }

    mutating func append<Number: FixedWidthInteger>(_ number: Number) {
        var rest = UInt64(truncatingIfNeeded: number)
        for _ in 0..<MemoryLayout<Number>.size {
            let byte = UInt8(truncatingIfNeeded: rest)
            memory.storeBytes(of: byte, toByteOffset: offset, as: UInt8.self)
            checksum.append(byte)
            offset &+= 1
            rest >>= 8
        }
    }

    mutating func append(_ number: Double) { append(number.bitPattern) }
    mutating func append(_ flag: Bool) { append(flag ? 1 as Int32 : 0) }

    mutating func append(_ view: MutableView, _ scalar: ScalarType) {
        guard let address = view.address else { return }
        for index in 0..<view.count {
            switch scalar {
            case .float32, .bfloat16, .float16:
                append(address.load(fromByteOffset: index &* 4, as: UInt32.self))
            case .float64:
                append(address.load(fromByteOffset: index &* 8, as: UInt64.self))
            }
        }
    }

    mutating func appendChecksum() { append(checksum.value) }
}

/// Reads little-endian numbers one after the other from bytes of any alignment.
private struct ByteReader {
    private let memory: UnsafeRawPointer
    private var offset: Int

    init(_ memory: UnsafeRawPointer, at offset: Int = 0) {
        self.memory = memory
        self.offset = offset
    }

    mutating func next<Number: FixedWidthInteger>(as type: Number.Type = Number.self) -> Number {
        var number: UInt64 = 0
        for index in 0..<MemoryLayout<Number>.size {
            let byte = memory.load(fromByteOffset: offset &+ index, as: UInt8.self)
            number |= UInt64(byte) << UInt64(8 &* index)
        }
        offset &+= MemoryLayout<Number>.size
        return Number(truncatingIfNeeded: number)
    }

    mutating func nextReal() -> Double { Double(bitPattern: next()) }

    /// 0 or 1, nothing else.
    mutating func nextFlag(_ argument: BatchNormError.Argument) throws(BatchNormError) -> Bool {
        switch next(as: Int32.self) {
        case 0: return false
        case 1: return true
        case let other: throw .stateInvalid(argument, actual: .integer(Int(other)))
        }
    }

    mutating func nextOption<Option: RawRepresentable<Int32>>(
        _ argument: BatchNormError.Argument, as type: Option.Type = Option.self
    ) throws(BatchNormError) -> Option {
        let raw = next(as: Int32.self)
        guard let option = Option(rawValue: raw) else {
            throw .stateInvalid(argument, actual: .integer(Int(raw)))
        }
        return option
    }

    mutating func next(into view: MutableView, _ scalar: ScalarType) {
        guard let address = view.address else { return }
        for index in 0..<view.count {
            switch scalar {
            case .float32, .bfloat16, .float16:
                address.storeBytes(
                    of: next(as: UInt32.self), toByteOffset: index &* 4, as: UInt32.self)
            case .float64:
                address.storeBytes(
                    of: next(as: UInt64.self), toByteOffset: index &* 8, as: UInt64.self)
            }
        }
    }
}

extension StateHeader {
    /// Reads and checks a state of which nothing is known yet.
    init(_ memory: UnsafeRawPointer?, size: Int) throws(BatchNormError) {
        guard size >= 0 else { throw .negativeCount(.size, actual: size) }
        guard let memory else { throw .missing(.state) }
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
        let dtype = reader.next(as: Int32.self)
        let written = reader.next(as: Int64.self)
        guard written == size else {
            throw .stateTruncated(actual: size, expected: Int(written))
        }
        try Self.requireChecksum(memory, size: size)

        guard let scalar = ScalarType(rawValue: dtype) else {
            throw .stateInvalid(.dtype, actual: .integer(Int(dtype)))
        }
        let channels = Int(reader.next(as: Int64.self))
        let batches = reader.next(as: Int64.self)
        let epsilon = reader.nextReal()
        let momentum = reader.nextReal()
        let training = TrainingOptions(
            epsilon: epsilon, momentum: momentum,
            averaging: try reader.nextOption(.averaging),
            runningVariance: try reader.nextOption(.runningVariance),
            oneValue: try reader.nextOption(.oneValue),
            nonfinite: try reader.nextOption(.nonfinite))
        let options = LayerOptions(
            numFeatures: channels, training: training,
            hasWeight: try reader.nextFlag(.hasWeight), hasBias: try reader.nextFlag(.hasBias),
            trackRunningStats: try reader.nextFlag(.trackRunningStats))
        let isTraining = try reader.nextFlag(.training)

        guard channels > 0 else {
            throw .stateInvalid(.numFeatures, actual: .integer(channels))
        }
        guard batches >= 0, options.trackRunningStats || batches == 0 else {
            throw .stateInvalid(.numBatchesTracked, actual: .integer(Int(batches)))
        }
        guard epsilon.isFinite, epsilon >= 0 else {
            throw .stateInvalid(.epsilon, actual: .real(epsilon))
        }
        guard momentum.isFinite || training.averaging == .cumulative else {
            throw .stateInvalid(.momentum, actual: .real(momentum))
        }
        self.init(
            version: Int(version), scalar: scalar, options: options, batches: batches,
            isTraining: isTraining)
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

    private static func requireChecksum(
        _ memory: UnsafeRawPointer, size: Int
    ) throws(BatchNormError) {
        var checksum = CRC32()
        for index in 0..<size &- 4 {
            checksum.append(memory.load(fromByteOffset: index, as: UInt8.self))
        }
        var reader = ByteReader(memory, at: size &- 4)
        let expected = reader.next(as: UInt32.self)
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
