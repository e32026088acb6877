// What the planner must know of the machine, and the process's settings. The settings live in C
// (settings.c), where Embedded Swift finds its atomics.

import CBatchNormKernels

/// An instruction set that the kernels are compiled for, in ascending order.
///
/// Results have the same bits whichever is used.
public enum ISA: Int32, Sendable, Comparable {
    /// Any CPU of the architecture.
    case generic = 0
    /// AVX2 with FMA.
    case avx2 = 1
    /// AVX-512 F, VL, DQ and BW.
    case avx512 = 2

    public static func < (left: ISA, right: ISA) -> Bool { left.rawValue < right.rawValue }
}

struct Machine: Sendable {
    var isa: ISA
    var threads: Int
    /// Bytes of one core's second-level cache.
    var l2: Int
    /// Bytes of the last-level cache.
    var l3: Int

    static var current: Machine {
        Machine(
            isa: BatchNormSettings.isa,
            threads: BatchNormSettings.threads,
            l2: Int(bnk_cache_size(2)),
            l3: Int(bnk_cache_size(3)))
    }
}

/// Settings of the whole process; safe to use from any thread. Results have the same bits whatever is set here.
public enum BatchNormSettings {
    /// The largest number of threads a call may use; small problems use fewer.
    ///
    /// At first, and after it was set to 0 or less: what OpenMP says (`OMP_NUM_THREADS`, else the cores).
    public static var threads: Int {
        get { Int(bnk_threads()) }
        set { bnk_set_threads(Int32(clamping: max(0, newValue))) }
    }

    /// The instruction set in use. Setting it caps it; a cap above what the CPU has changes nothing.
    ///
    /// At first the best that the CPU has, or what the environment variable `BATCHNORM_MAX_ISA` (`generic`, `avx2`,
    /// `avx512`) lowers it to.
    public static var isa: ISA {
        get { ISA(rawValue: bnk_isa()) ?? .generic }
        set { bnk_set_max_isa(newValue.rawValue) }
    }
}
