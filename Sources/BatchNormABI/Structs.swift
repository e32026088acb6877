// The public structs, which begin with `struct_size` and grow at their end: how one of another version of the header is
// read, and written back. Section 1 of batchnorm.h says what a caller may rely on.

import BatchNorm
import CBatchNorm

/// A public struct of batchnorm.h.
protocol PublicStruct {
    /// All members 0.
    init()
    /// The smallest `struct_size` that is accepted: BN_..._LEAST.
    static var least: Int { get }
}

extension bn_problem: PublicStruct { static var least: Int { BN_PROBLEM_LEAST } }
extension bn_forward_training_args: PublicStruct {
    static var least: Int { BN_FORWARD_TRAINING_ARGS_LEAST }
}
extension bn_forward_inference_args: PublicStruct {
    static var least: Int { BN_FORWARD_INFERENCE_ARGS_LEAST }
}
extension bn_backward_args: PublicStruct { static var least: Int { BN_BACKWARD_ARGS_LEAST } }
extension bn_moments: PublicStruct { static var least: Int { BN_MOMENTS_LEAST } }
extension bn_gradient_sums: PublicStruct { static var least: Int { BN_GRADIENT_SUMS_LEAST } }
extension bn_layer_options: PublicStruct { static var least: Int { BN_LAYER_OPTIONS_LEAST } }
extension bn_layer_forward_args: PublicStruct {
    static var least: Int { BN_LAYER_FORWARD_ARGS_LEAST }
}
extension bn_layer_backward_args: PublicStruct {
    static var least: Int { BN_LAYER_BACKWARD_ARGS_LEAST }
}
extension bn_weight_shape: PublicStruct { static var least: Int { BN_WEIGHT_SHAPE_LEAST } }
extension bn_fold_args: PublicStruct { static var least: Int { BN_FOLD_ARGS_LEAST } }
extension bn_explain_args: PublicStruct { static var least: Int { BN_EXPLAIN_ARGS_LEAST } }
extension bn_plan_info: PublicStruct { static var least: Int { BN_PLAN_INFO_LEAST } }

extension PublicStruct {
    /// A page: no struct will be larger, and a size that is none does not lead far.
    fileprivate static var most: Int { 4096 }

    /// How many bytes of the caller's struct and of this library's are the same members.
    fileprivate static func shared(_ size: Int) -> Int { min(size, MemoryLayout<Self>.size) }
}

/// `struct_size`, all that may be read before it is known how large the struct is.
private func requireSize<Struct: PublicStruct>(
    _ pointer: UnsafeRawPointer, of type: Struct.Type, _ argument: BatchNormError.Argument
) throws(BatchNormError) -> Int {
    let size = Int(pointer.loadUnaligned(as: UInt32.self))
    guard size % 8 == 0, Struct.least...Struct.most ~= size else {
        throw .structSize(argument, actual: size, least: Struct.least, most: Struct.most)
    }
    return size
}

/// A struct that a call reads. What the caller's does not reach is 0; what it has beyond this library's must be.
func read<Struct: PublicStruct>(
    _ pointer: UnsafePointer<Struct>?, _ argument: BatchNormError.Argument = .args
) throws(BatchNormError) -> Struct {
    let memory = UnsafeRawPointer(try require(pointer, argument))
    let size = try requireSize(memory, of: Struct.self, argument)
    for offset in Struct.shared(size)..<size {
        let byte = memory.load(fromByteOffset: offset, as: UInt8.self)
        guard byte == 0 else {
            throw .unknownMember(
                argument, offset: offset, actual: Int(byte), known: MemoryLayout<Struct>.size)
        }
    }
    var value = Struct()
    withUnsafeMutableBytes(of: &value) {
        $0.baseAddress?.copyMemory(from: memory, byteCount: Struct.shared(size))
    }
    return value
}

/// Puts a struct that was read, with its results, back where it came from.
func write<Struct: PublicStruct>(_ value: Struct, to pointer: UnsafeMutablePointer<Struct>?) {
    guard let pointer else { return }
    withUnsafeBytes(of: value) {
        guard let from = $0.baseAddress else { return }
        let size = Int(from.load(as: UInt32.self))
        UnsafeMutableRawPointer(pointer).copyMemory(from: from, byteCount: Struct.shared(size))
    }
}

/// Fills a struct that holds results alone, whatever it held. `struct_size` stays the caller's, and what this library
/// does not know of the struct becomes 0.
func fill<Struct: PublicStruct>(
    _ pointer: UnsafeMutablePointer<Struct>?, _ argument: BatchNormError.Argument,
    with value: Struct
) throws(BatchNormError) {
    let memory = UnsafeMutableRawPointer(try require(pointer, argument))
    let size = try requireSize(memory, of: Struct.self, argument)
    let own = MemoryLayout<UInt32>.size
    withUnsafeBytes(of: value) {
        guard let from = $0.baseAddress else { return }
        let known = Struct.shared(size)
        (memory + own).copyMemory(from: from + own, byteCount: known &- own)
        (memory + known).initializeMemory(as: UInt8.self, repeating: 0, count: size &- known)
    }
}
