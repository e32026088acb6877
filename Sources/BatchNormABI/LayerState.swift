// Section STATE of batchnorm.h: a layer's state as bytes.

import BatchNorm
import CBatchNorm

@_cdecl("bn_layer_state_size") @implementation
public func bn_layer_state_size(
    _ layer: OpaquePointer?, _ size: UnsafeMutablePointer<Int64>?
) -> bn_status {
    perform { () throws(BatchNormError) in
        let layer = try LayerCore.from(layer)
        try require(size, .size).pointee = Int64(layer.stateByteCount)
    }
}

@_cdecl("bn_layer_save_state") @implementation
public func bn_layer_save_state(
    _ layer: OpaquePointer?, _ out: UnsafeMutableRawPointer?, _ size: Int64
) -> bn_status {
    perform { () throws(BatchNormError) in
        try LayerCore.from(layer).saveState(to: out, size: Int(size))
    }
}

@_cdecl("bn_layer_load_state") @implementation
public func bn_layer_load_state(
    _ layer: OpaquePointer?, _ state: UnsafeRawPointer?, _ size: Int64
) -> bn_status {
    perform { () throws(BatchNormError) in
        try LayerCore.from(layer).loadState(state, size: Int(size))
    }
}

@_cdecl("bn_layer_create_from_state") @implementation
public func bn_layer_create_from_state(
    _ state: UnsafeRawPointer?, _ size: Int64, _ layer: UnsafeMutablePointer<OpaquePointer?>?
) -> bn_status {
    perform { () throws(BatchNormError) in
        let target = try require(layer, .layer)
        target.pointee = try LayerCore.make(fromState: state, size: Int(size)).intoHandle()
    }
}
