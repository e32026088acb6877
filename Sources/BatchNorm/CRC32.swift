// The checksum of saved states: CRC-32 as in ISO 3309, zlib and PNG (polynomial 0xEDB88320, reflected). Bit by bit: a
// state is small, and a table would need initialization.

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
