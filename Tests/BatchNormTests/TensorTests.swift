// A tensor's elements by logical index, as spans, in number and mapped.

import BatchNorm
import Testing

@Suite struct TensorTests {
    @Test func subscriptIsLogicalInBothLayouts() throws {
        let values = (0..<24).map(Float.init)
        let first = try Tensor(values, shape: .nchw(2, 3, 2, 2))
        let last = try Tensor(values, shape: .nhwc(2, 2, 2, 3))
        #expect(first[1, 2, 0, 1] == 12 + 2 * 4 + 1)
        #expect(last[1, 2, 0, 1] == 12 + 1 * 3 + 2)
        #expect(try Tensor(values, shape: .nc(4, 6))[3, 1] == 19)
    }

    @Test func writingChangesOneElementOfOneCopy() throws {
        let zeros = try Tensor<Double>.zeros(.nlc(2, 3, 4))
        var written = zeros
        written[1, 3, 2] = 5
        #expect(written.elements == [Double](repeating: 0, count: 23) + [5])
        #expect(zeros.elements == [Double](repeating: 0, count: 24))
        #expect(zeros.count == 24)
    }

    @Test func spansAreTheElementsInMemoryOrder() throws {
        let tensor = try Tensor<Float>([1, 2, 3, 4], shape: .nhwc(1, 1, 2, 2))
        var changed = tensor
        var span = changed.mutableSpan
        for index in span.indices { span[index] *= tensor.span[index] }
        #expect(changed.elements == [1, 4, 9, 16])
        #expect(tensor.elements == [1, 2, 3, 4])
    }

    @Test func mapKeepsTheShape() throws {
        let tensor = try Tensor<Float>([1, -2, 3, -4], shape: .nhwc(1, 1, 2, 2))
        let doubled = tensor.map { Double($0) * 2 }
        #expect(doubled == (try Tensor<Double>([2, -4, 6, -8], shape: .nhwc(1, 1, 2, 2))))
        #expect(throws: BatchNormError.noChannels) {
            try tensor.map { (_) throws(BatchNormError) -> Float in throw .noChannels }
        }
    }
}
