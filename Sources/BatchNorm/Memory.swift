// Memory as the core sees it: borrowed views of the caller's buffers and owned, fallible allocations. Public code
// never meets either; it has spans, arrays and tensors.

/// Stands for the address of no elements, which nobody reads: empty arrays and spans may have none. Aligned to every
/// element type.
private var nowhere: UnsafeMutableRawPointer? { UnsafeMutableRawPointer(bitPattern: 64) }

/// Borrowed elements that are only read. The element type is known from elsewhere.
package struct View {
    package let address: UnsafeRawPointer?
    package let count: Int

    package init(_ address: UnsafeRawPointer?, count: Int) {
        self.address = address
        self.count = count
    }

    package static var absent: View { View(nil, count: 0) }
    package var isAbsent: Bool { address == nil && count == 0 }

    /// The caller keeps the span alive for as long as the view is used. An empty span makes an empty view, not an
    /// absent one.
    init<Element: BitwiseCopyable>(_ span: Span<Element>) {
        let address = span.withUnsafeBytes { $0.baseAddress }
        self.init(address ?? UnsafeRawPointer(nowhere), count: span.count)
    }

    init<Element: BitwiseCopyable>(_ span: Span<Element>?) {
        if let span { self.init(span) } else { self = .absent }
    }
}

/// Borrowed elements that are written.
package struct MutableView {
    package let address: UnsafeMutableRawPointer?
    package let count: Int

    package init(_ address: UnsafeMutableRawPointer?, count: Int) {
        self.address = address
        self.count = count
    }

    package static var absent: MutableView { MutableView(nil, count: 0) }
    package var isAbsent: Bool { address == nil && count == 0 }
    package var constant: View { View(address, count: count) }

    /// As for `View`.
    init<Element: BitwiseCopyable>(_ span: consuming MutableSpan<Element>) {
        self = span.withUnsafeMutableBufferPointer { MutableView($0) }
    }

    init<Element: BitwiseCopyable>(_ span: consuming MutableSpan<Element>?) {
        if let span { self.init(span) } else { self = .absent }
    }

    init<Element: BitwiseCopyable>(_ buffer: UnsafeMutableBufferPointer<Element>) {
        self.init(UnsafeMutableRawPointer(buffer.baseAddress) ?? nowhere, count: buffer.count)
    }
}

extension Array {
    /// As `init(repeating:count:)`, which ends the process where memory is refused: the allocator that can say no is
    /// asked first. For every array whose size follows from a number of the caller's.
    init(allocating count: Int, of element: Element) throws(BatchNormError) {
        try requireMemory(for: count, of: Element.self)
        self.init(repeating: element, count: count)
    }
}

/// Throws unless an array of so many elements, 0 or more, can be had now.
func requireMemory<Element>(for count: Int, of type: Element.Type) throws(BatchNormError) {
    let (bytes, overflow) = count.multipliedReportingOverflow(by: MemoryLayout<Element>.stride)
    // Room for what Swift puts before the elements.
    guard !overflow, bytes <= Int.max - 64, let memory = Kernels.allocate(bytes + 64) else {
        throw .outOfMemory(bytes: overflow ? .max : bytes)
    }
    Kernels.free(memory)
}

/// Throws unless the number is one of channels, whose float64 values are addressable.
func requireChannels(_ channels: Int) throws(BatchNormError) {
    guard channels != 0 else { throw .noChannels }
    try requireAllocatable(channels, .channels)
}

/// Memory of the library's own: 64-byte aligned, not cleared, freed at the end. It only grows.
struct Memory: ~Copyable {
    private(set) var address: UnsafeMutableRawPointer?
    private var bytes = 0

    /// None yet.
    init() {}

    deinit { Kernels.free(address) }

    /// Makes room for at least so many bytes. What was in there is lost if it has to grow; on failure all stays.
    mutating func reserve(_ wanted: Int) throws(BatchNormError) {
        guard wanted > bytes else { return }
        try replace(wanted)
    }

    /// As `reserve`, but what was in there stays.
    mutating func grow(_ wanted: Int) throws(BatchNormError) {
        guard wanted > bytes else { return }
        try replace(wanted, keeping: bytes)
    }

    private mutating func replace(_ wanted: Int, keeping kept: Int = 0) throws(BatchNormError) {
        guard let fresh = Kernels.allocate(wanted) else { throw .outOfMemory(bytes: wanted) }
        if kept > 0, let address { fresh.copyMemory(from: address, byteCount: kept) }
        Kernels.free(address)
        address = fresh
        bytes = wanted
    }
}

/// Memory of a call that may serve the next one again.
struct Workspace: ~Copyable {
    /// What the kernels need.
    var kernels = Memory()
    /// A mask made from lengths.
    var mask = Memory()
}
