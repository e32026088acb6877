// Section MACHINE of batchnorm.h: threads, instruction sets, version.

import BatchNorm
import CBatchNorm

@_cdecl("bn_set_num_threads") @implementation
public func bn_set_num_threads(_ threads: Int32) -> bn_status {
    perform { () throws(BatchNormError) in
        try BatchNormSettings.setThreads(Int(threads))
    }
}

@_cdecl("bn_get_num_threads") @implementation
public func bn_get_num_threads() -> Int32 { Int32(clamping: BatchNormSettings.threads) }

@_cdecl("bn_set_threading") @implementation
public func bn_set_threading(_ threading: bn_threading) -> bn_status {
    perform { () throws(BatchNormError) in
        try BatchNormSettings.setThreading(option(threading, .threading))
    }
}

@_cdecl("bn_get_threading") @implementation
public func bn_get_threading() -> bn_threading { BatchNormSettings.threading.rawValue }

@_cdecl("bn_set_thread_pool") @implementation
public func bn_set_thread_pool(
    _ run: bn_run_members?, _ pool: UnsafeMutableRawPointer?
) -> bn_status {
    Kernels.setThreadPool(run, pool)
    return bn_status(BN_STATUS_OK)
}

@_cdecl("bn_get_thread_runtime") @implementation
public func bn_get_thread_runtime() -> UnsafePointer<CChar>? { Kernels.threadRuntime }

@_cdecl("bn_set_max_isa") @implementation
public func bn_set_max_isa(_ isa: bn_isa) -> bn_status {
    perform { () throws(BatchNormError) in
        BatchNormSettings.isa = try option(isa, .isa)
    }
}

@_cdecl("bn_get_isa") @implementation
public func bn_get_isa() -> bn_isa { BatchNormSettings.isa.rawValue }

@_cdecl("bn_isa_name") @implementation
public func bn_isa_name(_ isa: bn_isa) -> UnsafePointer<CChar>? {
    cString(ISA(rawValue: isa)?.name ?? "unknown")
}

@_cdecl("bn_version") @implementation
public func bn_version() -> UnsafePointer<CChar>? {
    withUnsafePointer(to: &versionText) {
        UnsafeRawPointer($0).assumingMemoryBound(to: CChar.self)
    }
}

/// "MAJOR.MINOR.PATCH". Written once, before its first use, and only read from then on.
nonisolated(unsafe) private var versionText = {
    var text = InlineArray<48, UInt8>(repeating: 0)
    var span = text.mutableSpan
    span.withUnsafeMutableBufferPointer { buffer in
        var writer = TextWriter(buffer)
        writer.append(Int(BN_VERSION_MAJOR))
        writer.append(".")
        writer.append(Int(BN_VERSION_MINOR))
        writer.append(".")
        writer.append(Int(BN_VERSION_PATCH))
    }
    return text
}()
