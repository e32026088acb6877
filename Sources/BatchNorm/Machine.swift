// What the planner must know of the machine, and the process's settings. The settings live in C
// (settings.c), where Embedded Swift finds its atomics.

import CBatchNormKernels

/// An instruction set that the kernels are compiled for. Those of one family of CPUs build on each other in this order;
/// between families there is none.
///
/// Results have the same bits whichever is used.
public enum ISA: Int32, Sendable {
    /// Any CPU of the architecture.
    case generic = 0
    /// AVX2 with FMA.
    case avx2 = 1
    /// AVX-512 F, VL, DQ and BW.
    case avx512 = 2
}

extension ISA {
    /// As `BATCHNORM_MAX_ISA` spells it.
    package var name: StaticString {
        switch self {
        case .generic: "generic"
        case .avx2: "avx2"
        case .avx512: "avx512"
        }
    }
}

/// Whose threads calls run on.
///
/// A process should have one set of threads that compute: those of two OpenMP runtimes take the cores from each other,
/// for they go on spinning after a parallel region. PyTorch, for one, brings a runtime of its own (libgomp).
///
/// Threads do not survive a fork, and neither does libgomp: in a forked child `.shared` is not to be had,
/// `.automatic` means `.own`, and `.shared` and `.pool` are back at `.automatic`.
public enum Threading: Int32, Sendable {
    /// `.shared` as soon as there is such a runtime, else `.own`.
    case automatic = 0
    /// The library's own OpenMP runtime, libomp.
    case own = 1
    /// The OpenMP runtime that others have loaded into the process: libgomp alone; of several files
    /// the one loaded first.
    case shared = 2
    /// The pool given to ``BatchNormSettings/useThreadPool(_:)``.
    case pool = 3
}

struct Machine: Sendable {
    var isa: ISA
    var threads: Int
    /// Bytes of one core's second-level cache.
    var l2: Int
    /// Bytes of the last-level cache that are counted on: see `own_share` in platform.c.
    var l3: Int

    static var current: Machine { current(threads: BatchNormSettings.threads) }

    /// For work that one thread does: the OpenMP runtime need not be asked, which takes as long as some tiny calls.
    static var currentForOneThread: Machine { current(threads: 1) }

    private static func current(threads: Int) -> Machine {
        Machine(
            isa: BatchNormSettings.isa,
            threads: threads,
            l2: Int(bnk_cache_size(2)),
            l3: Int(bnk_cache_size(3)))
    }
}

/// Settings of the whole process; safe to use from any thread. Results have the same bits whatever is set here.
public enum BatchNormSettings {
    /// The largest number of threads a call may use; small problems use fewer.
    ///
    /// At first, and after ``setThreads(_:)`` with 0: what the OpenMP runtime in use says to the calling thread
    /// (`OMP_NUM_THREADS`, `torch.set_num_threads`, else the cores). Whatever was set, the number that is told and used
    /// is at most that of the processors that the process may use, or 64 if these are fewer.
    public static var threads: Int { Int(bnk_threads()) }

    /// Sets the largest number of threads a call may use; 0 leaves it to the OpenMP runtime, see ``threads``.
    ///
    ///     try BatchNormSettings.setThreads(4)
    ///
    /// - Throws: ``BatchNormError/invalidOption(_:actual:)``, and nothing changes, if the number is negative.
    public static func setThreads(_ count: Int) throws(BatchNormError) {
        guard count >= 0 else { throw .invalidOption(.threads, actual: count) }
        bnk_set_threads(Int32(clamping: count))
    }

    /// The instruction set in use. Setting it leaves that one and those that it builds on; one that the CPU does not have
    /// leaves all that it has.
    ///
    /// At first the best that the CPU has, or what the environment variable `BATCHNORM_MAX_ISA` (`generic`, `avx2`,
    /// `avx512`) lowers it to.
    public static var isa: ISA {
        get { ISA(rawValue: bnk_isa()) ?? .generic }
        set { bnk_set_max_isa(newValue.rawValue) }
    }
    /// Whose threads calls run on; see ``Threading``.
    public static var threading: Threading { Threading(rawValue: bnk_threading()) ?? .automatic }

    /// Chooses whose threads calls run on. The last call of this or of ``useThreadPool(_:)`` counts.
    ///
    /// Waits until calls that use the pool before have ended.
    ///
    /// - Throws: ``BatchNormError/noSharedRuntime(forked:)``, and nothing changes, if `.shared` is not to be had;
    ///   ``BatchNormError/invalidOption(_:actual:)`` for `.pool`, which ``useThreadPool(_:)`` chooses.
    public static func setThreading(_ threading: Threading) throws(BatchNormError) {
        guard threading != .pool else {
            throw .invalidOption(.threading, actual: Int(threading.rawValue))
        }
        switch Int(bnk_set_threading(threading.rawValue)) {
        case BNK_SHARED_RUNTIME_ABSENT: throw .noSharedRuntime(forked: false)
        case BNK_SHARED_RUNTIME_FORKED: throw .noSharedRuntime(forked: true)
        default: break
        }
    }

    /// Runs the calls of all threads on a pool of the caller's.
    ///
    /// ```swift
    /// BatchNormSettings.useThreadPool { members, member in
    ///     DispatchQueue.concurrentPerform(iterations: members, execute: member)
    /// }
    /// ```
    ///
    /// Waits until calls that use the pool before have ended, which is then released; so no member may call this.
    ///
    /// - Parameter run: Calls its second argument exactly once with each number from 0 to its first argument, without
    ///   that one, on any threads, at the same time or one after another, and returns when all of these calls have.
    ///   It may be called by several threads at once. Its first argument is from 2 to ``threads``.
    public static func useThreadPool(
        _ run: @escaping @Sendable (_ members: Int, _ member: @Sendable (Int) -> Void) -> Void
    ) {
        let pool = Unmanaged.passRetained(ThreadPool(run)).toOpaque()
        bnk_set_pool(
            { pool, members, member, context in
                guard let pool, let member else { return }
                // Safe to send: what a member may touch is the kernels' care.
                nonisolated(unsafe) let context = context
                Unmanaged<ThreadPool>.fromOpaque(pool).takeUnretainedValue()
                    .run(Int(members)) { member(context, Int32(truncatingIfNeeded: $0)) }
            }, pool,
            { pool in
                guard let pool else { return }
                Unmanaged<ThreadPool>.fromOpaque(pool).release()
            })
    }

    /// Whose threads a call made now would run on: "libomp.so.5", "libgomp-24e2ab19.so.1.0.0" (the name of the
    /// runtime's file), or "pool".
    public static var threadRuntime: String { String(cString: bnk_thread_runtime()) }
}

/// The C side's hold on a closure.
private final class ThreadPool: Sendable {
    let run: @Sendable (Int, @Sendable (Int) -> Void) -> Void

    init(_ run: @escaping @Sendable (Int, @Sendable (Int) -> Void) -> Void) { self.run = run }
}
