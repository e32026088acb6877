// What every exported function uses at the border: running a body, turning its error into a status and this thread's
// message; options; and the nouns that C and the core share. Structs.swift reads and writes the C structs. Exported
// functions resolve, call and translate; nothing else happens in this module.

import BatchNorm
import CBatchNorm

/// Runs `body`; on an error, records the message and returns the status.
func perform(_ body: () throws(BatchNormError) -> Void) -> bn_status {
    do throws(BatchNormError) {
        try body()
        return bn_status(BN_STATUS_OK)
    } catch {
        let (status, sentence) = error.row
        var text = TextWriter(Kernels.threadText)
        sentence.write(to: &text)
        return status.rawValue
    }
}

/// The pointer, unless it is NULL.
func require<Pointer>(
    _ pointer: Pointer?, _ argument: BatchNormError.Argument
) throws(BatchNormError) -> Pointer {
    guard let pointer else { throw .missing(argument) }
    return pointer
}

/// Throws unless a reserved member is 0.
func requireReserved(_ value: Int32) throws(BatchNormError) {
    guard value == 0 else { throw .invalidOption(.reserved, actual: Int(value)) }
}

/// Throws unless a number that the chosen kind has no use for is 0.
func requireUnused(
    _ value: Double, _ argument: BatchNormError.Argument
) throws(BatchNormError) {
    guard value == 0 else { throw .unusedNumber(argument, actual: value) }
}

/// The option with that value, which the header has pinned.
func option<Option: RawRepresentable<Int32>>(
    _ value: Int32, _ argument: BatchNormError.Argument, as type: Option.Type = Option.self
) throws(BatchNormError) -> Option {
    guard let option = Option(rawValue: value) else {
        throw .invalidOption(argument, actual: Int(value))
    }
    return option
}

/// A member that is 0 or 1.
func flag(
    _ value: Int32, _ argument: BatchNormError.Argument
) throws(BatchNormError) -> Bool {
    guard value == 0 || value == 1 else { throw .invalidOption(argument, actual: Int(value)) }
    return value == 1
}

// MARK: - Views, activation and positions in the core's words

extension View {
    init(_ view: bn_view) { self.init(view.data, count: Int(view.count)) }
    init(_ view: bn_byte_view) { self.init(view.data, count: Int(view.count)) }
    init(_ view: bn_int64_view) { self.init(view.data, count: Int(view.count)) }
    init(_ view: bn_mutable_float64_view) { self.init(view.data, count: Int(view.count)) }
}

extension MutableView {
    init(_ view: bn_mutable_view) { self.init(view.data, count: Int(view.count)) }
    init(_ view: bn_mutable_byte_view) { self.init(view.data, count: Int(view.count)) }
    init(_ view: bn_mutable_int64_view) { self.init(view.data, count: Int(view.count)) }
    init(_ view: bn_mutable_float64_view) { self.init(view.data, count: Int(view.count)) }
}

extension Activation {
    init(_ given: bn_activation) throws(BatchNormError) {
        try requireReserved(given.reserved)
        try requireUnused(given.limit, .limit)
        try self.init(kind: Int(given.kind), slope: given.slope)
    }
}

extension Positions {
    init(_ given: bn_positions) throws(BatchNormError) {
        self.init()
        try requireReserved(given.reserved)
        mask = View(given.mask)
        lengths = View(given.lengths)
        masked = try option(given.masked, .masked)
    }
}

extension GivenStatistics {
    static func saved(_ given: bn_saved) -> GivenStatistics {
        .saved(mean: View(given.mean), invstd: View(given.invstd), rest: View(given.mean_rest))
    }
}

/// A bn_problem in the core's words.
struct Problem {
    let scalar: ScalarType
    let shape: Shape

    init(_ pointer: UnsafePointer<bn_problem>?) throws(BatchNormError) {
        let problem = try read(pointer, .problem)
        scalar = try option(problem.dtype, .dtype)
        let layout: Layout = try option(problem.layout, .layout)
        let sizes = problem.sizes
        shape = try Shape(
            sizes: Sizes(
                Int(sizes.0), Int(sizes.1), Int(sizes.2), Int(sizes.3), Int(sizes.4),
                rank: Int(problem.rank)),
            layout: layout)
    }
}

/// The text of a Swift literal, which lives as long as the program.
func cString(_ text: StaticString) -> UnsafePointer<CChar> {
    UnsafeRawPointer(text.utf8Start).assumingMemoryBound(to: CChar.self)
}
