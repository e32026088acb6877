// How the library makes text that does not grow: a writer into a fixed buffer, and sentences written as interpolated
// literals.

/// Appends text to a fixed buffer; what does not fit is cut off. The text always ends with a NUL.
package struct TextWriter {
    private let buffer: UnsafeMutableBufferPointer<UInt8>
    private var length = 0

    /// `buffer` has room for at least the NUL.
    package init(_ buffer: UnsafeMutableBufferPointer<UInt8>) {
        self.buffer = buffer
        buffer[0] = 0
    }

    /// The text so far, without the NUL.
    package var bytes: UnsafeMutableBufferPointer<UInt8> {
        UnsafeMutableBufferPointer(rebasing: buffer[..<length])
    }

    package mutating func append(_ byte: UInt8) {
        guard length < buffer.count - 1 else { return }
        buffer[length] = byte
        length += 1
        buffer[length] = 0
    }

    package mutating func append(_ text: StaticString) {
        for offset in 0..<text.utf8CodeUnitCount { append(text.utf8Start[offset]) }
    }

    package mutating func append(string: String) {
        for byte in string.utf8 { append(byte) }
    }

    package mutating func append(_ number: Int) { append(string: number.description) }
    package mutating func append(_ number: Double) { append(string: number.description) }

    /// As eight (or more) hexadecimal digits.
    package mutating func append(hexadecimal number: UInt) {
        append("0x")
        var shift = number > 0xffff_ffff ? 60 : 28
        while shift >= 0 {
            let digit = UInt8(truncatingIfNeeded: (number >> UInt(shift)) & 15)
            append(digit < 10 ? 48 + digit : 87 + digit)
            shift -= 4
        }
    }

    package mutating func append(_ sizes: Sizes) {
        append("(")
        for index in 0..<sizes.rank {
            if index > 0 { append(", ") }
            append(sizes[index])
        }
        append(")")
    }

    package mutating func append(_ shape: Shape) {
        append(shape.sizes)
        // A matrix is the same in both layouts.
        guard shape.rank > 2 else { return }
        append(shape.layout == .nchw ? " NCHW" : " NHWC")
    }
}

/// A sentence as a value: what `let sentence: Sentence = "rank is \(actual), expected 2 to 5"` makes. It lies on the
/// stack; what does not fit is cut off.
package struct Sentence: ExpressibleByStringInterpolation {
    private let content: StringInterpolation

    package init(stringInterpolation: StringInterpolation) { content = stringInterpolation }
    package init(stringLiteral text: StaticString) {
        var content = StringInterpolation(literalCapacity: 0, interpolationCount: 0)
        content.appendLiteral(text)
        self.content = content
    }

    package func write(to text: inout TextWriter) {
        for index in 0..<content.length { text.append(content.bytes[index]) }
    }

    var description: String {
        content.bytes.span.extracting(..<content.length).withUnsafeBufferPointer { String(decoding: $0, as: UTF8.self) }
    }

    /// What a sentence may quote.
    package struct StringInterpolation: StringInterpolationProtocol {
        fileprivate var bytes = InlineArray<384, UInt8>(repeating: 0)
        fileprivate var length = 0

        package init(literalCapacity: Int, interpolationCount: Int) {}

        package mutating func appendLiteral(_ text: StaticString) { write { $0.append(text) } }
        package mutating func appendInterpolation(_ text: StaticString) { write { $0.append(text) } }
        package mutating func appendInterpolation(_ number: Int) { write { $0.append(number) } }
        package mutating func appendInterpolation(_ number: Double) { write { $0.append(number) } }
        package mutating func appendInterpolation(hexadecimal number: UInt) { write { $0.append(hexadecimal: number) } }
        package mutating func appendInterpolation(_ sizes: Sizes) { write { $0.append(sizes) } }
        package mutating func appendInterpolation(_ shape: Shape) { write { $0.append(shape) } }
        package mutating func appendInterpolation(_ argument: BatchNormError.Argument) {
            write { $0.append(string: argument.rawValue) }
        }
        package mutating func appendInterpolation(_ sentence: Sentence) { write { sentence.write(to: &$0) } }
        package mutating func appendInterpolation(_ value: BatchNormError.Value) {
            switch value {
            case .integer(let number): appendInterpolation(number)
            case .real(let number): appendInterpolation(number)
            }
        }

        @inline(never)
        private mutating func write(_ piece: (inout TextWriter) -> Void) {
            var span = bytes.mutableSpan
            span.withUnsafeMutableBufferPointer { buffer in
                var text = TextWriter(UnsafeMutableBufferPointer(rebasing: buffer[length...]))
                piece(&text)
                length += text.bytes.count
            }
        }
    }
}
