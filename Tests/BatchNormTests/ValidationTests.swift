// Bad input: each kind has an error of its own, which quotes actual and expected, and writes nothing.

import Testing

@testable import BatchNorm

@Suite struct ShapeTests {
    @Test func factoriesTakeSizesInTheOrderOfTheirLetters() throws {
        let image = try Shape.nhwc(2, 5, 7, 3)
        #expect(image.batch == 2 && image.channels == 3 && image.spatial == [5, 7])
        #expect(image.layout == .nhwc && image.rank == 4 && image.count == 210)
        #expect(image.valuesPerChannel == 70)
        #expect(
            try image == Shape(batch: 2, channels: 3, spatial: [5, 7], layout: .nhwc))
        #expect(try Shape.ndhwc(2, 3, 4, 5, 6).sizes == Shape.ncdhw(2, 6, 3, 4, 5).sizes)
        #expect(try Shape.nlc(2, 3, 4).spatial == [3])
        // A matrix is the same in both layouts.
        #expect(try Shape(batch: 2, channels: 3, layout: .nhwc) == .nc(2, 3))
    }

    @Test func refusesWhatNoTensorHas() {
        #expect(throws: BatchNormError.rank(actual: 6)) {
            try Shape(batch: 1, channels: 1, spatial: [1, 1, 1, 1])
        }
        #expect(throws: BatchNormError.rank(actual: 1)) {
            try Shape(sizes: Sizes(1, 1, rank: 1), layout: .nchw)
        }
        #expect(throws: BatchNormError.negativeSize(dimension: 0, actual: -1)) {
            try Shape.nc(-1, 2)
        }
        #expect(throws: BatchNormError.negativeSize(dimension: 3, actual: .min)) {
            try Shape.nchw(1, 2, 3, .min)
        }
        #expect(throws: BatchNormError.noChannels) { try Shape.nc(2, 0) }
        #expect(throws: BatchNormError.self) { try Shape.nchw(1 << 32, 2, 1 << 31, 1) }
        #expect(throws: BatchNormError.self) { try Shape.nc(0, 1 << 60) }
    }

    @Test func emptyShapesMayHaveAnyOtherSize() throws {
        let shape = try Shape.nchw(0, 3, .max, .max)
        #expect(shape.isEmpty && shape.count == 0 && shape.valuesPerChannel == 0)
    }

    @Test func overflowDependsOnTheElement() throws {
        let shape = try Shape.nc(1 << 59, 2)
        #expect(throws: Never.self) { try shape.requireAddressable(.float32) }
        #expect(throws: BatchNormError.sizeOverflow(shape.sizes, elementSize: 8)) {
            try shape.requireAddressable(.float64)
        }
    }
}

@Suite struct ValidationTests {
    /// Memory for a training call on (4, 2), filled with a pattern that tells whether anything was written.
    private final class Buffers {
        let memory = UnsafeMutableRawPointer.allocate(byteCount: 1024, alignment: 64)
        init() { memory.initializeMemory(as: UInt8.self, repeating: 0x3c, count: 1024) }
        deinit { memory.deallocate() }

        var isUntouched: Bool {
            UnsafeRawBufferPointer(start: memory, count: 1024).allSatisfy { $0 == 0x3c }
        }
        func view(_ offset: Int, _ count: Int) -> MutableView {
            MutableView(memory + offset, count: count)
        }
    }

    private func expect(
        _ error: BatchNormError, sourceLocation: SourceLocation = #_sourceLocation,
        _ change: (inout ForwardTraining, Buffers) throws -> Void
    ) throws {
        let buffers = Buffers()
        var job = ForwardTraining(
            scalar: .float32, shape: try .nc(4, 2), options: TrainingOptions(),
            input: buffers.view(0, 8).constant, output: buffers.view(64, 8))
        job.weight = buffers.view(128, 2).constant
        job.bias = buffers.view(192, 2).constant
        job.runningMean = buffers.view(256, 2)
        job.runningVar = buffers.view(320, 2)
        job.savedMean = buffers.view(384, 2)
        job.savedInvstd = buffers.view(448, 2)
        try change(&job, buffers)
        #expect(throws: error, sourceLocation: sourceLocation) { try job.run() }
        #expect(buffers.isUntouched, sourceLocation: sourceLocation)
    }

    @Test func numbers() throws {
        for bad in [-1e-9, .infinity, -.infinity] {
            try expect(.epsilon(actual: bad)) { job, _ in job.options.epsilon = bad }
        }
        for bad in [Double.infinity, -.infinity] {
            try expect(.momentum(actual: bad)) { job, _ in job.options.momentum = bad }
        }
        let x = try Tensor<Float>([1, 2], shape: .nc(2, 1))
        var running = try RunningStatistics<Float>(channels: 1)
        for options in [TrainingOptions(epsilon: .nan), TrainingOptions(momentum: .nan)] {
            #expect(throws: BatchNormError.self) {
                try BatchNormalization.forwardTraining(x, running: running.mutableView, options: options)
            }
        }
        #expect(try running == RunningStatistics(channels: 1))
        // Nobody uses a momentum without running statistics.
        #expect(throws: Never.self) {
            try BatchNormalization.forwardTraining(x, options: TrainingOptions(momentum: .nan))
        }
    }

    @Test func counts() throws {
        try expect(.countMismatch(.input, actual: 7, expected: 8)) {
            $0.input = View($1.memory, count: 7)
        }
        try expect(.countMismatch(.output, actual: 9, expected: 8)) { $0.output = $1.view(64, 9) }
        try expect(.countMismatch(.weight, actual: 3, expected: 2)) {
            $0.weight = $1.view(128, 3).constant
        }
        try expect(.countMismatch(.bias, actual: 0, expected: 2)) {
            $0.bias = $1.view(192, 0).constant
        }
        try expect(.countMismatch(.runningMean, actual: 5, expected: 2)) {
            $0.runningMean = $1.view(256, 5)
        }
        try expect(.countMismatch(.savedInvstd, actual: 1, expected: 2)) {
            $0.savedInvstd = $1.view(448, 1)
        }
        try expect(.negativeCount(.output, actual: .min)) { $0.output = $1.view(64, .min) }
    }

    @Test func missing() throws {
        try expect(.missing(.input)) { job, _ in job.input = .absent }
        try expect(.missing(.output)) { job, _ in job.output = MutableView(nil, count: 8) }
        try expect(.missing(.weight)) { job, _ in job.weight = View(nil, count: 2) }
        try expect(.missing(.runningVar)) { job, _ in job.runningVar = .absent }
        try expect(.missing(.runningMean)) { job, _ in job.runningMean = .absent }
        try expect(.missing(.numBatchesTracked)) { job, _ in job.options.averaging = .cumulative }
    }

    @Test func alignment() throws {
        var address: UInt = 0
        let misaligned = Buffers()
        address = UInt(bitPattern: misaligned.memory) + 66
        try expect(.misaligned(.output, address: address, alignment: 4)) { job, _ in
            job.output = misaligned.view(66, 8)
        }
        // Saved statistics are float64 beside float32 tensors.
        address = UInt(bitPattern: misaligned.memory) + 388
        try expect(.misaligned(.savedMean, address: address, alignment: 8)) { job, _ in
            job.savedMean = misaligned.view(388, 2)
        }
    }

    @Test func overlap() throws {
        try expect(.overlap(written: .output, other: .input)) { $0.output = $1.view(4, 8) }
        try expect(.overlap(written: .output, other: .input)) { $0.output = $1.view(28, 8) }
        try expect(.overlap(written: .output, other: .weight)) {
            $0.weight = $1.view(64, 2).constant
        }
        try expect(.overlap(written: .runningMean, other: .runningVar)) {
            $0.runningVar = $1.view(260, 2)
        }
        try expect(.overlap(written: .savedMean, other: .savedInvstd)) {
            $0.savedInvstd = $1.view(384, 2)
        }
        try expect(.overlap(written: .runningMean, other: .input)) {
            $0.runningMean = $1.view(24, 2)
        }
        // What is only read may be shared.
        let buffers = Buffers()
        var job = ForwardTraining(
            scalar: .float32, shape: try .nc(4, 2), options: TrainingOptions(),
            input: buffers.view(0, 8).constant, output: buffers.view(0, 8))
        job.weight = buffers.view(128, 2).constant
        job.bias = job.weight
        #expect(throws: Never.self) { try job.run() }
    }

    @Test func aBufferAtTheEndOfTheAddressesDoesNotWrapAround() throws {
        let end = UnsafeMutableRawPointer(bitPattern: UInt.max - 15)
        try expect(.overlap(written: .output, other: .input)) { job, _ in
            job.input = View(end, count: 8)
            job.output = MutableView(end! + 4, count: 8)
        }
    }

    @Test func counters() throws {
        for bad: Int64 in [-1, .min, .max] {
            let counter = UnsafeMutablePointer<Int64>.allocate(capacity: 1)
            defer { counter.deallocate() }
            counter.pointee = bad
            try expect(.batchCounter(actual: Int(bad))) { job, _ in
                job.numBatchesTracked = counter
            }
            #expect(counter.pointee == bad)
        }
    }

    @Test func backwardInPlaceAndNot() throws {
        let buffers = Buffers()
        for index in 0..<200 { buffers.memory.storeBytes(of: Float(index), toByteOffset: 4 * index, as: Float.self) }
        buffers.memory.storeBytes(of: 1.0, toByteOffset: 384, as: Double.self)
        func job(_ gradInput: MutableView) throws -> Backward {
            var job = Backward(
                scalar: .float32, shape: try .nc(4, 1), statistics: .batch,
                source: .saved(
                    mean: buffers.view(384, 1).constant, invstd: buffers.view(392, 1).constant, rest: .absent),
                input: buffers.view(0, 4).constant, gradOutput: buffers.view(64, 4).constant)
            job.gradInput = gradInput
            return job
        }
        #expect(throws: BatchNormError.overlap(written: .gradInput, other: .gradOutput)) {
            try job(buffers.view(68, 4)).run()
        }
        #expect(throws: BatchNormError.overlap(written: .gradInput, other: .savedMean)) {
            try job(buffers.view(384, 4)).run()
        }
        #expect(throws: Never.self) { try job(buffers.view(64, 4)).run() }
        #expect(throws: Never.self) { try job(buffers.view(0, 4)).run() }
    }

    @Test func layersRefuseImpossibleOptions() {
        #expect(throws: BatchNormError.noChannels) { try BatchNormLayer<Float>(numFeatures: 0) }
        #expect(throws: BatchNormError.negativeCount(.numFeatures, actual: -3)) {
            try BatchNormLayer<Float>(numFeatures: -3)
        }
        #expect(throws: BatchNormError.self) { try BatchNormLayer<Float>(numFeatures: .max) }
        // The allocator can say no.
        #expect(throws: BatchNormError.outOfMemory(bytes: 1 << 58)) {
            try BatchNormLayer<Float>(numFeatures: 1 << 54)
        }
        var options = LayerOptions(numFeatures: 2)
        options.training.epsilon = -1
        #expect(throws: BatchNormError.epsilon(actual: -1)) { try BatchNormLayer<Float>(options) }
        options.training.epsilon = 0
        options.training.momentum = .infinity
        #expect(throws: BatchNormError.momentum(actual: .infinity)) {
            try BatchNormLayer<Float>(options)
        }
        options.training.averaging = .cumulative
        #expect(throws: Never.self) { try BatchNormLayer<Float>(options) }
    }

    @Test func tensorsAndArraysOfTheWrongLength() throws {
        #expect(throws: BatchNormError.countMismatch(.input, actual: 3, expected: 4)) {
            try Tensor<Float>([1, 2, 3], shape: .nc(2, 2))
        }
        let x = try Tensor<Float>([1, 2, 3, 4], shape: .nc(2, 2))
        #expect(throws: BatchNormError.countMismatch(.weight, actual: 0, expected: 2)) {
            try BatchNormalization.forwardTraining(x, weight: [])
        }
        var running = try RunningStatistics<Float>(channels: 3)
        #expect(throws: BatchNormError.countMismatch(.runningMean, actual: 3, expected: 2)) {
            try BatchNormalization.forwardTraining(x, running: running.mutableView)
        }
        running = RunningStatistics(mean: [], variance: [])
        #expect(throws: BatchNormError.countMismatch(.runningMean, actual: 0, expected: 2)) {
            try BatchNormalization.forwardTraining(x, running: running.mutableView)
        }
        let saved = SavedStatistics(mean: [1], invstd: [1, 2])
        #expect(throws: BatchNormError.countMismatch(.savedMean, actual: 1, expected: 2)) {
            try BatchNormalization.backward(x, gradOutput: x, saved: saved)
        }
        #expect(throws: BatchNormError.countMismatch(.runningVar, actual: 1, expected: 2)) {
            try SavedStatistics(running: RunningStatistics<Float>(mean: [1, 2], variance: [1]))
        }
    }
}

@Suite struct ErrorTextTests {
    @Test(
        arguments: [
            (.missing(.input), "input is NULL, but required"),
            (
                .structSize(.problem, actual: 3, least: 56, most: 4096),
                "problem->struct_size is 3, expected a multiple of 8 from 56 to 4096"
            ),
            (
                .unknownMember(.args, offset: 300, actual: 7, known: 296),
                "byte 300 of args is 7, expected 0: this library knows its first 296 bytes, and newer members only as 0"
            ),
            (.invalidOption(.layout, actual: 7), "layout is 7, expected 1 (NCHW) or 2 (NHWC)"),
            (.negativeSize(dimension: 2, actual: -1), "sizes[2] is -1, expected 0 or more"),
            (
                .countMismatch(.runningMean, actual: 5, expected: 3),
                "running_mean.count is 5, expected 3 (num_features)"
            ),
            (.countMismatch(.input, actual: 95, expected: 96), "input.count is 95, expected 96 (N*C*S)"),
            (.countMismatch(.values, actual: 2, expected: 3), "count is 2, expected 3 (num_features)"),
            (
                .misaligned(.output, address: 0x7fff_0000_0001, alignment: 4),
                "output is at address 0x00007fff00000001, expected a multiple of 4"
            ),
            (
                .overlap(written: .output, other: .input),
                "output overlaps input partly, expected the very same memory or memory of its own"
            ),
            (
                .overlap(written: .savedMean, other: .bias),
                "saved.mean overlaps bias, expected memory of its own"
            ),
            (.epsilon(actual: -1e-5), "epsilon is -1e-05, expected a finite number of at least 0"),
            (
                .shapeMismatch(
                    actual: try! .nhwc(2, 4, 5, 3), expected: try! .nc(8, 3)),
                "the shape is (2, 3, 4, 5) NHWC, expected that of the last forward, (8, 3)"
            ),
            (
                .stateChecksum(actual: 0xcbf4_3926, expected: 0xff),
                "the state is damaged: its CRC-32 is 0xcbf43926, expected 0x000000ff"
            ),
            (
                .stateInvalid(.epsilon, actual: .real(.nan)),
                "the state's epsilon is nan, expected a finite number of at least 0"
            ),
        ] as [(BatchNormError, String)])
    func quotesActualAndExpected(_ error: BatchNormError, _ text: String) {
        #expect(error.description == text)
    }

    @Test func oneValueNamesTheRemedy() throws {
        let text = BatchNormError.oneValue(try Shape.nc(1, 2).sizes).description
        #expect(text.contains("(1, 2)") && text.contains("drop_last"))
    }

    @Test func textIsCutToTheBufferAndEndsWithZero() {
        withUnsafeTemporaryAllocation(of: UInt8.self, capacity: 8) { buffer in
            buffer.initialize(repeating: 0xff)
            var text = TextWriter(buffer)
            BatchNormError.noForward.row.sentence.write(to: &text)
            #expect(String(decoding: text.bytes, as: UTF8.self) == "the lay")
            #expect(buffer[7] == 0)
        }
    }
}

@Suite struct BufferTests {
    /// Every pair is looked at, wherever the two stand in a list of any length.
    @Test(arguments: [2, 20, 23, 24, 25, 26, 49, 120])
    func overlapsAreFoundAmongAnyNumber(count: Int) throws {
        let memory = UnsafeMutableRawPointer.allocate(byteCount: 8 * count + 8, alignment: 8)
        defer { memory.deallocate() }
        func check(written: Int, at place: Int) throws {
            var buffers = BufferCheck()
            for index in 0..<count {
                let address = memory + 8 * (index == written ? place : index)
                if index == written {
                    try buffers.write(
                        MutableView(address, count: 1), .output, count: 1, elementSize: 8)
                } else {
                    try buffers.read(View(address, count: 1), .weight, count: 1, elementSize: 8)
                }
            }
            try buffers.requireSeparate()
        }
        for written in 0..<count {
            try check(written: written, at: written)
            try check(written: written, at: count)
            for place in Set([0, count / 2, count - 1]) where place != written {
                #expect(throws: BatchNormError.overlap(written: .output, other: .weight)) {
                    try check(written: written, at: place)
                }
            }
        }
    }
}
