// Whose threads calls run on, as Swift chooses it. What the choice does is tested in C (Tests/Kernels, Tests/ABI);
// here it is the closure's way into C and back. Calls of other tests use the same pools meanwhile.

import Dispatch
import Synchronization
import Testing

@testable import BatchNorm

@Suite struct ThreadingTests {
    /// Large enough for several threads.
    private func normalize() throws -> Tensor<Float> {
        let shape = try Shape.nchw(1, 3, 250, 250)
        let pixels = (0..<shape.count).map { Float(($0 * 7919) % 1013) }
        return try BatchNormalization.forwardTraining(Tensor(pixels, shape: shape)).output
    }

    @Test func aClosureRunsTheMembers() throws {
        try withOwnSettings {
            try BatchNormSettings.setThreads(1)
            let expected = try normalize()
            try BatchNormSettings.setThreads(3)
            let counts = Mutex((calls: 0, widest: 0))
            BatchNormSettings.useThreadPool { members, member in
                counts.withLock { $0 = ($0.calls + 1, max($0.widest, members)) }
                for number in (0..<members).reversed() { member(number) }
            }
            #expect(BatchNormSettings.threading == .pool)
            #expect(BatchNormSettings.threadRuntime == "pool")
            #expect(try normalize() == expected)
            #expect(counts.withLock { $0.calls } > 0)
            #expect(counts.withLock { $0.widest } == 3)
        }
    }

    @Test func dispatchRunsTheMembers() throws {
        try withOwnSettings {
            try BatchNormSettings.setThreads(1)
            let expected = try normalize()
            try BatchNormSettings.setThreads(4)
            BatchNormSettings.useThreadPool { members, member in
                DispatchQueue.concurrentPerform(iterations: members, execute: member)
            }
            #expect(try normalize() == expected)
        }
    }

    @Test func aPoolIsReleasedOnceItIsReplaced() throws {
        final class Resource: Sendable {
            func run(_ members: Int, _ member: @Sendable (Int) -> Void) {
                for number in 0..<members { member(number) }
            }
        }
        try withOwnSettings {
            weak var first: Resource?
            weak var second: Resource?
            do {
                let resource = Resource()
                first = resource
                BatchNormSettings.useThreadPool { resource.run($0, $1) }
            }
            #expect(first != nil)
            do {
                let resource = Resource()
                second = resource
                BatchNormSettings.useThreadPool { resource.run($0, $1) }
            }
            #expect(first == nil)
            #expect(second != nil)
            try BatchNormSettings.setThreading(.own)
            #expect(second == nil)
            #expect(BatchNormSettings.threading == .own)
            #expect(BatchNormSettings.threadRuntime != "pool")
        }
    }

    @Test func choicesThatCannotBe() {
        withOwnSettings {
            #expect(throws: BatchNormError.invalidOption(.threading, actual: 3)) {
                try BatchNormSettings.setThreading(.pool)
            }
            #expect(BatchNormSettings.threading == .automatic)
        }
        #expect(
            BatchNormError.noSharedRuntime(forked: true).description
                == "threading is 2 (shared), but this process was forked, which no OpenMP threads survive: "
                + "expected 0 (auto) or 1 (own)")
        #expect(
            BatchNormError.noSharedRuntime(forked: false).description
                == "threading is 2 (shared), but no OpenMP runtime besides the library's own is loaded: "
                + "expected 0 (auto) or 1 (own)")
    }
}
