// The checks that stand between a caller and the kernels: numbers, counts, alignment, overlap. Every operation runs
// them before it writes anything. Nothing in here may trap, whatever the caller passes.

extension BatchNormError.Argument {
    /// Whether the two may be the very same memory although the first is written ("in place").
    func mayBe(_ other: Self) -> Bool {
        switch (self, other) {
        case (.output, .input), (.output, .residual): true
        case (.gradInput, .input), (.gradInput, .gradOutput), (.gradResidual, .gradOutput): true
        case (.foldedWeight, .convWeight), (.foldedBias, .convBias): true
        default: false
        }
    }
}

/// Throws unless the value is a usable epsilon.
package func requireEpsilon(_ epsilon: Double) throws(BatchNormError) {
    guard epsilon.isFinite, epsilon >= 0 else { throw .epsilon(actual: epsilon) }
}

/// Throws unless the value is a usable momentum.
package func requireMomentum(_ momentum: Double) throws(BatchNormError) {
    guard momentum.isFinite else { throw .momentum(actual: momentum) }
}

/// Throws unless the buffer has `count` elements, each at an address that is a multiple of its size.
///
/// A buffer without memory may have only 0 elements, and satisfies only a `count` of 0.
package func requireBuffer(
    _ address: UnsafeRawPointer?, count actual: Int, is count: Int, elementSize: Int,
    _ argument: BatchNormError.Argument
) throws(BatchNormError) {
    guard actual >= 0 else { throw .negativeCount(argument, actual: actual) }
    guard address != nil || (actual == 0 && count == 0) else { throw .missing(argument) }
    guard actual == count else {
        throw .countMismatch(argument, actual: actual, expected: count)
    }
    let bits = UInt(bitPattern: address)
    guard bits % UInt(elementSize) == 0 else {
        throw .misaligned(argument, address: bits, alignment: elementSize)
    }
}

/// How many batches each channel's running mean has not taken in, and then how many each running variance: counters in
/// memory, of the batches that were tracked.
enum SkippedBatches {
    /// Whether any batch was skipped.
    static func any(_ counters: View) -> Bool {
        guard let counters = numbers(counters) else { return false }
        // All of them, so that the loop goes many at a time.
        return counters.reduce(0) { $0 | $1 } != 0
    }

    /// Throws unless each is a number of the batches.
    static func require(_ counters: View, of batches: Int64) throws(BatchNormError) {
        guard any(counters), let counters = numbers(counters) else { return }
        for (index, skipped) in counters.enumerated() where skipped < 0 || skipped > batches {
            throw .skippedBatches(index: index, actual: Int(skipped), limit: Int(batches))
        }
    }

    private static func numbers(_ counters: View) -> UnsafeBufferPointer<Int64>? {
        guard let address = counters.address else { return nil }
        return UnsafeBufferPointer(
            start: address.assumingMemoryBound(to: Int64.self), count: counters.count)
    }
}

/// Checks the buffers of one call, however many, first each by itself and then against each other.
struct BufferCheck: ~Copyable {
    private struct Region {
        /// At first the case that is all zeros, as the other members are, for they are cleared with every call.
        var argument = BatchNormError.Argument.problem
        var start: UInt = 0
        var bytes: UInt = 0
        var isWritten = false
    }

    /// More than any operation has, so that a check allocates nothing.
    private var first = InlineArray<24, Region>(repeating: Region())
    /// Those beyond, should one have them.
    private var more = Memory()
    private var used = 0
    /// Whether any two of them may share memory that is written: known as they come, and true of few calls.
    private var mayOverlap = false

    /// Like `requireSeparate` in the caller's frame: a call would copy all of it once more.
    @inline(__always)
    init() {}

    private mutating func append(_ region: Region) throws(BatchNormError) {
        if used < first.count {
            var overlaps = false
            var regions = first.mutableSpan
            for index in 0..<used where regions[index].isWritten || region.isWritten {
                overlaps = Self.overlap(regions[index], region) || overlaps
            }
            mayOverlap = mayOverlap || overlaps
            regions[used] = region
        } else {
            mayOverlap = true
            let index = used &- first.count
            try more.grow((index / first.count &+ 1) &* first.count &* MemoryLayout<Region>.stride)
            more.address?.assumingMemoryBound(to: Region.self)[index] = region
        }
        used &+= 1
    }

    /// A required buffer that is read.
    mutating func read(
        _ view: View, _ argument: BatchNormError.Argument, count: Int, elementSize: Int
    ) throws(BatchNormError) {
        try add(view.address, view.count, argument, count, elementSize, isWritten: false)
    }

    /// A required buffer that is written.
    mutating func write(
        _ view: MutableView, _ argument: BatchNormError.Argument, count: Int, elementSize: Int
    ) throws(BatchNormError) {
        try add(view.constant.address, view.count, argument, count, elementSize, isWritten: true)
    }

    /// As `read`, where the buffer is there at all.
    mutating func read(
        optional view: View, _ argument: BatchNormError.Argument, count: Int, elementSize: Int
    ) throws(BatchNormError) {
        guard !view.isAbsent else { return }
        try read(view, argument, count: count, elementSize: elementSize)
    }

    /// As `write`, where the buffer is there at all.
    mutating func write(
        optional view: MutableView, _ argument: BatchNormError.Argument, count: Int,
        elementSize: Int
    ) throws(BatchNormError) {
        guard !view.isAbsent else { return }
        try write(view, argument, count: count, elementSize: elementSize)
    }

    private mutating func add(
        _ address: UnsafeRawPointer?, _ actual: Int, _ argument: BatchNormError.Argument,
        _ count: Int, _ elementSize: Int, isWritten: Bool
    ) throws(BatchNormError) {
        try requireBuffer(
            address, count: actual, is: count, elementSize: elementSize, argument)
        // `Shape` has made sure that no count times its element size overflows. Nothing overlaps no bytes.
        guard count > 0 else { return }
        try append(
            Region(
                argument: argument, start: UInt(bitPattern: address),
                bytes: UInt(bitPattern: count &* elementSize), isWritten: isWritten))
    }

    /// Throws if a written buffer overlaps another, except where the two are one and may be. Mutating, like all that looks at
    /// the table, which is copied as a whole otherwise.
    @inline(__always)
    mutating func requireSeparate() throws(BatchNormError) {
        if mayOverlap { try requireInPlace() }
    }

    /// Throws unless those that share written memory are one and may be.
    private mutating func requireInPlace() throws(BatchNormError) {
        let used = used
        let more = more.address?.assumingMemoryBound(to: Region.self)
        var span = first.mutableSpan
        try span.withUnsafeMutableBufferPointer { (first) throws(BatchNormError) in
            func region(_ index: Int) -> Region {
                index < first.count ? first[index] : more?[index &- first.count] ?? Region()
            }
            for one in 0..<used {
                let a = region(one)
                for two in 0..<used where two != one && a.isWritten {
                    let b = region(two)
                    // Of two written buffers each is looked at as `one`; only one order says "in place".
                    guard Self.overlap(a, b) else { continue }
                    let isSame = a.start == b.start && a.bytes == b.bytes
                    guard isSame && a.argument.mayBe(b.argument) else {
                        throw BatchNormError.overlap(written: a.argument, other: b.argument)
                    }
                }
            }
        }
    }

    /// By distances, for the end of a buffer may lie beyond the last address.
    private static func overlap(_ a: Region, _ b: Region) -> Bool {
        b.start &- a.start < a.bytes || a.start &- b.start < b.bytes
    }
}
