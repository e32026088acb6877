// bfloat16 as a Swift type, which the standard library does not have.

/// The upper half of a `Float`: its range, and 8 significant bits.
///
/// A value to store tensors in; to compute, convert to `Float`, which is exact, and back, which rounds once:
///
///     let stored = BFloat16(0.1)
///     print(Float(stored))        // 0.1001
///
/// Comparison is that of IEEE 754: NaN equals nothing, and -0 equals 0.
public struct BFloat16: BitwiseCopyable, Sendable {
    /// Sign, 8 bits of exponent and 7 of the fraction.
    public var bitPattern: UInt16

    /// The number with these bits.
    public init(bitPattern: UInt16) { self.bitPattern = bitPattern }

    /// The nearest number, ties to even; beyond the range infinity. NaN stays NaN and becomes quiet.
    public init(_ value: Float) {
        let bits = value.bitPattern
        guard !value.isNaN else {
            bitPattern = UInt16(truncatingIfNeeded: bits >> 16) | 0x40
            return
        }
        bitPattern = UInt16(truncatingIfNeeded: (bits + 0x7fff + (bits >> 16 & 1)) >> 16)
    }

    /// The nearest number, rounded once, ties to even.
    public init(_ value: Double) {
        // A Float between the same two numbers, and not halfway between them unless `value` is: rounded towards zero,
        // with an odd last bit if that was inexact (Boldo and Melquiond, 2008).
        var near = Float(value)
        if Double(near) != value, near.isFinite {
            if abs(Double(near)) > abs(value) { near = near.sign == .minus ? near.nextUp : near.nextDown }
            near = Float(bitPattern: near.bitPattern | 1)
        }
        self.init(near)
    }

    /// The largest finite number, about 3.39e38.
    public static var greatestFiniteMagnitude: BFloat16 { BFloat16(bitPattern: 0x7f7f) }
    /// The smallest number above 0, 2^-133.
    public static var leastNonzeroMagnitude: BFloat16 { BFloat16(bitPattern: 0x0001) }
    /// The distance from 1 to the next larger number, 2^-7.
    public static var ulpOfOne: BFloat16 { BFloat16(bitPattern: 0x3c00) }
    /// Positive infinity.
    public static var infinity: BFloat16 { BFloat16(bitPattern: 0x7f80) }
    /// A quiet NaN.
    public static var nan: BFloat16 { BFloat16(bitPattern: 0x7fc0) }

    /// Whether this is no number.
    public var isNaN: Bool { bitPattern & 0x7fff > 0x7f80 }
    /// Whether this is neither infinite nor NaN.
    public var isFinite: Bool { bitPattern & 0x7f80 != 0x7f80 }
}

extension Float {
    /// The same number.
    public init(_ value: BFloat16) { self.init(bitPattern: UInt32(value.bitPattern) << 16) }
}

extension Double {
    /// The same number.
    public init(_ value: BFloat16) { self.init(Float(value)) }
}

extension BFloat16: Comparable, Hashable {
    public static func == (left: BFloat16, right: BFloat16) -> Bool { Float(left) == Float(right) }
    public static func < (left: BFloat16, right: BFloat16) -> Bool { Float(left) < Float(right) }
    public static func <= (left: BFloat16, right: BFloat16) -> Bool { Float(left) <= Float(right) }
    public static func > (left: BFloat16, right: BFloat16) -> Bool { Float(left) > Float(right) }
    public static func >= (left: BFloat16, right: BFloat16) -> Bool { Float(left) >= Float(right) }

    public func hash(into hasher: inout Hasher) { hasher.combine(Float(self)) }
}

extension BFloat16: ExpressibleByFloatLiteral, ExpressibleByIntegerLiteral {
    public init(floatLiteral value: Double) { self.init(value) }
    public init(integerLiteral value: Int) { self.init(Double(value)) }
}

extension BFloat16: CustomStringConvertible {
    /// As a `Float` prints.
    public var description: String { Float(self).description }
}

extension BFloat16 {
    /// The number with the other sign.
    public static prefix func - (value: BFloat16) -> BFloat16 {
        BFloat16(bitPattern: value.bitPattern ^ 0x8000)
    }
}
