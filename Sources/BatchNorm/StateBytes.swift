// How a saved state is written and read: little-endian numbers one after the other, and a checksum of them.

/// Writes little-endian numbers one after the other and sums them up.
struct ByteWriter {
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
struct ByteReader {
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

/// CRC-32 as in ISO 3309, zlib and PNG (polynomial 0xEDB88320, reflected). Bit by bit: a state is small, and a table would
/// need initialization.
package struct CRC32 {
    private var register: UInt32 = 0xffff_ffff

    package init() {}

    package mutating func append(_ byte: UInt8) {
        register ^= UInt32(byte)
        for _ in 0..<8 {
            register = (register >> 1) ^ (0xedb8_8320 & (0 &- (register & 1)))
        }
    }

    /// The checksum of what has been appended so far.
    package var value: UInt32 { ~register }
}
