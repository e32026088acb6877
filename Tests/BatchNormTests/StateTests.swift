// A layer's state as bytes: what goes in comes out, and nothing that is damaged, cut off, foreign or newer gets in.

import Testing

@testable import BatchNorm

@Suite struct StateTests {
    private func layer<Scalar: BatchNormParameter>(
        _ options: LayerOptions, as _: Scalar.Type = Scalar.self
    ) throws -> BatchNormLayer<Scalar> {
        let layer = try BatchNormLayer<Scalar>(options)
        var random = Random(1)
        let c = options.numFeatures
        if options.hasWeight { try layer.setWeight(random.values(c)) }
        if options.hasBias { try layer.setBias(random.values(c)) }
        if options.trackRunningStats {
            try layer.setRunningMean(random.values(c))
            try layer.setRunningVar(random.values(c, in: 0.1...9))
            try layer.setNumBatchesTracked(12_345_678_901)
        }
        layer.isTraining = false
        return layer
    }

    private var unusual: LayerOptions {
        LayerOptions(
            numFeatures: 3,
            training: TrainingOptions(
                epsilon: 0.125, momentum: 0.75, averaging: .cumulative, runningVariance: .biased,
                oneValue: .allow, nonfinite: .error))
    }

    private func expectSame<Scalar: BatchNormParameter>(
        _ one: BatchNormLayer<Scalar>, _ two: BatchNormLayer<Scalar>
    ) throws {
        #expect(one.options == two.options)
        #expect(one.isTraining == two.isTraining)
        #expect(try one.weight == two.weight)
        #expect(try one.bias == two.bias)
        #expect(try one.runningMean == two.runningMean)
        #expect(try one.runningVar == two.runningVar)
        #expect(one.numBatchesTracked == two.numBatchesTracked)
        #expect(try one.skippedBatches == two.skippedBatches)
    }

    @Test func roundTrip() throws {
        for kind in 0..<8 {
            var options = unusual
            options.hasWeight = kind & 1 != 0
            options.hasBias = kind & 2 != 0
            options.trackRunningStats = kind & 4 != 0
            let float: BatchNormLayer<Float> = try layer(options)
            try expectSame(BatchNormLayer(state: float.state()), float)
            let double: BatchNormLayer<Double> = try layer(options)
            try expectSame(BatchNormLayer(state: double.state()), double)

            let other = try BatchNormLayer<Float>(options)
            try other.load(state: float.state())
            try expectSame(other, float)
        }
    }

    @Test func loadTakesStateButNotOptions() throws {
        let source: BatchNormLayer<Float> = try layer(unusual)
        let target = try BatchNormLayer<Float>(numFeatures: 3)
        try target.load(state: source.state())
        #expect(target.options == LayerOptions(numFeatures: 3))
        #expect(try target.weight == source.weight)
        #expect(try target.runningVar == source.runningVar)
        #expect(target.numBatchesTracked == source.numBatchesTracked)
        #expect(!target.isTraining)
    }

    /// The format itself, so that states of this version stay readable.
    @Test func bytesAreAsDocumented() throws {
        let layer = try BatchNormLayer<Float>(
            LayerOptions(numFeatures: 1, hasBias: false, trackRunningStats: false))
        try layer.setWeight([-2])
        let bytes = try layer.state()
        let expected: [UInt8] =
            [0x89, 0x42, 0x4e, 0x53, 0x0d, 0x0a, 0x1a, 0x0a]
            + [2, 0, 0, 0] + [1, 0, 0, 0] + [96, 0, 0, 0, 0, 0, 0, 0]
            + [1, 0, 0, 0, 0, 0, 0, 0] + [0, 0, 0, 0, 0, 0, 0, 0]
            + [0xf1, 0x68, 0xe3, 0x88, 0xb5, 0xf8, 0xe4, 0x3e]
            + [0x9a, 0x99, 0x99, 0x99, 0x99, 0x99, 0xb9, 0x3f]
            + [UInt8](repeating: 0, count: 16)
            + [1, 0, 0, 0] + [0, 0, 0, 0] + [0, 0, 0, 0] + [1, 0, 0, 0]
            + [0, 0, 0, 0xc0]
        #expect(bytes.dropLast(4) == expected[...])
        #expect(Array(bytes.suffix(4)) == littleEndian(checksum(expected)))
    }

    @Test func everyFlippedBitIsFoundAndNothingChanges() throws {
        let source: BatchNormLayer<Float> = try layer(unusual)
        let target = try BatchNormLayer<Float>(unusual)
        let before = try target.state()
        let bytes = try source.state()
        for index in bytes.indices {
            for bit in 0..<8 {
                var damaged = bytes
                damaged[index] ^= 1 << bit
                #expect(throws: BatchNormError.self) { try target.load(state: damaged) }
                #expect(throws: BatchNormError.self) { try BatchNormLayer<Float>(state: damaged) }
            }
        }
        #expect(try target.state() == before)
    }

    @Test func truncatedAndExtended() throws {
        let bytes = try layer(unusual, as: Float.self).state()
        for count in 0..<bytes.count {
            let expected = count < 92 ? 92 : bytes.count
            #expect(throws: BatchNormError.stateTruncated(actual: count, expected: expected)) {
                try BatchNormLayer<Float>(state: Array(bytes.prefix(count)))
            }
        }
        #expect(
            throws: BatchNormError.stateTruncated(
                actual: bytes.count + 1, expected: bytes.count)
        ) {
            try BatchNormLayer<Float>(state: bytes + [0])
        }
    }

    @Test func foreignAndNewer() throws {
        #expect(throws: BatchNormError.stateForeign) {
            try BatchNormLayer<Float>(state: Array("this is a text, not a state".utf8))
        }
        var bytes = try layer(unusual, as: Float.self).state()
        bytes[8] = 3
        let newer = sealed(bytes)
        #expect(throws: BatchNormError.stateVersion(actual: 3, expected: 2)) {
            try BatchNormLayer<Float>(state: newer)
        }
    }

    @Test func intactButImpossible() throws {
        let bytes = try layer(unusual, as: Float.self).state()
        func patched(_ offset: Int, _ value: [UInt8]) -> [UInt8] {
            var copy = bytes
            copy.replaceSubrange(offset..<offset + value.count, with: value)
            return sealed(copy)
        }
        let invalid: [(Int, [UInt8], BatchNormError)] = [
            (12, [5], .stateInvalid(.dtype, actual: .integer(5))),
            (24, littleEndian(UInt64(0)), .stateInvalid(.numFeatures, actual: .integer(0))),
            (24, littleEndian(UInt64(4)), .stateInvalid(.numFeatures, actual: .integer(4))),
            (24, littleEndian(UInt64.max), .stateInvalid(.numFeatures, actual: .integer(-1))),
            (
                24, littleEndian(UInt64(1) << 62),
                .stateInvalid(.numFeatures, actual: .integer(1 << 62))
            ),
            (32, littleEndian(UInt64.max), .stateInvalid(.numBatchesTracked, actual: .integer(-1))),
            (40, littleEndian((-1.0).bitPattern), .stateInvalid(.epsilon, actual: .real(-1))),
            (
                40, littleEndian(Double.infinity.bitPattern),
                .stateInvalid(.epsilon, actual: .real(.infinity))
            ),
            (56, [2], .stateInvalid(.averaging, actual: .integer(2))),
            (60, [2], .stateInvalid(.runningVariance, actual: .integer(2))),
            (64, [3], .stateInvalid(.oneValue, actual: .integer(3))),
            (68, [2], .stateInvalid(.nonfinite, actual: .integer(2))),
            (72, [2], .stateInvalid(.hasWeight, actual: .integer(2))),
            (76, [2], .stateInvalid(.hasBias, actual: .integer(2))),
            (80, [2], .stateInvalid(.trackRunningStats, actual: .integer(2))),
            (84, [2], .stateInvalid(.training, actual: .integer(2))),
        ]
        for (offset, value, error) in invalid {
            #expect(throws: error) { try BatchNormLayer<Float>(state: patched(offset, value)) }
        }
        // Not a number, where an average needs one.
        var exponential = unusual
        exponential.training.averaging = .exponential
        var nan = try layer(exponential, as: Float.self).state()
        nan.replaceSubrange(48..<56, with: littleEndian(Double.infinity.bitPattern))
        #expect(throws: BatchNormError.stateInvalid(.momentum, actual: .real(.infinity))) {
            try BatchNormLayer<Float>(state: sealed(nan))
        }
    }

    @Test func aHugeLayerWithoutArraysNeedsNoMemory() throws {
        var bytes = try BatchNormLayer<Float>(
            LayerOptions(
                numFeatures: 1, hasWeight: false, hasBias: false, trackRunningStats: false)
        ).state()
        bytes.replaceSubrange(24..<32, with: littleEndian(UInt64(1) << 50))
        let layer = try BatchNormLayer<Float>(state: sealed(bytes))
        #expect(layer.options.numFeatures == 1 << 50)
    }

    @Test func anotherKindOfLayer() throws {
        let state = try layer(unusual, as: Float.self).state()
        func kind(_ change: (inout LayerOptions) -> Void) throws -> BatchNormLayer<Float> {
            var options = unusual
            change(&options)
            return try BatchNormLayer(options)
        }
        #expect(throws: BatchNormError.scalarTypeMismatch(actual: .float32, expected: .float64)) {
            try BatchNormLayer<Double>(unusual).load(state: state)
        }
        #expect(throws: BatchNormError.scalarTypeMismatch(actual: .float32, expected: .float64)) {
            try BatchNormLayer<Double>(state: state)
        }
        #expect(throws: BatchNormError.channelsMismatch(actual: 3, expected: 4)) {
            try kind { $0.numFeatures = 4 }.load(state: state)
        }
        #expect(throws: BatchNormError.optionMismatch(.hasWeight, actual: 1, expected: 0)) {
            try kind { $0.hasWeight = false }.load(state: state)
        }
        #expect(throws: BatchNormError.optionMismatch(.hasBias, actual: 1, expected: 0)) {
            try kind { $0.hasBias = false }.load(state: state)
        }
        #expect(throws: BatchNormError.optionMismatch(.trackRunningStats, actual: 1, expected: 0)) {
            try kind { $0.trackRunningStats = false }.load(state: state)
        }
    }

    @Test func saveNeedsRoom() throws {
        let core = try LayerCore(scalar: .float32, options: unusual)
        let size = core.stateByteCount
        let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: size + 1, alignment: 1)
        defer { bytes.deallocate() }
        bytes.initializeMemory(as: UInt8.self, repeating: 0xee)
        #expect(throws: BatchNormError.bufferTooSmall(actual: size - 1, expected: size)) {
            try core.saveState(to: bytes.baseAddress, size: size - 1)
        }
        #expect(bytes.allSatisfy { $0 == 0xee })
        #expect(throws: BatchNormError.negativeCount(.size, actual: -1)) {
            try core.saveState(to: bytes.baseAddress, size: -1)
        }
        // At an odd address, and not a byte more than there is.
        try core.saveState(to: bytes.baseAddress! + 1, size: size)
        #expect(bytes[0] == 0xee)
        #expect(try LayerCore.make(fromState: bytes.baseAddress! + 1, size: size).isTraining)
    }

    @Test func checksumIsTheUsualCRC32() {
        #expect(checksum(Array("123456789".utf8)) == 0xcbf4_3926)
        #expect(checksum([]) == 0)
    }

    private func checksum(_ bytes: [UInt8]) -> UInt32 {
        var checksum = CRC32()
        for byte in bytes { checksum.append(byte) }
        return checksum.value
    }

    private func littleEndian<Number: FixedWidthInteger>(_ number: Number) -> [UInt8] {
        withUnsafeBytes(of: number.littleEndian) { Array($0) }
    }

    /// The bytes with a checksum that fits what has been changed.
    private func sealed(_ bytes: [UInt8]) -> [UInt8] {
        let body = Array(bytes.dropLast(4))
        return body + littleEndian(checksum(body))
    }
}
