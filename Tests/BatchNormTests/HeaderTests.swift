// What ties Swift to batchnorm.h: values that both sides spell out, and the way from an error to a status and a
// message. The C interface itself is tested from C.

import BatchNormABI
import CBatchNorm
import Testing

@testable import BatchNorm

@Suite struct HeaderTests {
    @Test func rawValuesAreTheHeaders() {
        #expect(Int(ScalarType.float32.rawValue) == BN_DTYPE_FLOAT32)
        #expect(Int(ScalarType.float64.rawValue) == BN_DTYPE_FLOAT64)
        #expect(Int(Layout.nchw.rawValue) == BN_LAYOUT_NCHW)
        #expect(Int(Layout.nhwc.rawValue) == BN_LAYOUT_NHWC)
        #expect(Int(Averaging.exponential.rawValue) == BN_AVERAGING_EXPONENTIAL)
        #expect(Int(Averaging.cumulative.rawValue) == BN_AVERAGING_CUMULATIVE)
        #expect(Int(RunningVariance.unbiased.rawValue) == BN_VARIANCE_UNBIASED)
        #expect(Int(RunningVariance.biased.rawValue) == BN_VARIANCE_BIASED)
        #expect(Int(OneValuePolicy.error.rawValue) == BN_ONE_VALUE_ERROR)
        #expect(Int(OneValuePolicy.useRunning.rawValue) == BN_ONE_VALUE_USE_RUNNING)
        #expect(Int(OneValuePolicy.allow.rawValue) == BN_ONE_VALUE_ALLOW)
        #expect(Int(NonfinitePolicy.report.rawValue) == BN_NONFINITE_REPORT)
        #expect(Int(NonfinitePolicy.error.rawValue) == BN_NONFINITE_ERROR)
        #expect(Int(Statistics.batch.rawValue) == BN_STATISTICS_BATCH)
        #expect(Int(Statistics.running.rawValue) == BN_STATISTICS_RUNNING)
        #expect(Int(Threading.automatic.rawValue) == BN_THREADING_AUTO)
        #expect(Int(Threading.own.rawValue) == BN_THREADING_OWN)
        #expect(Int(Threading.shared.rawValue) == BN_THREADING_SHARED)
        #expect(Int(Threading.pool.rawValue) == BN_THREADING_POOL)
        #expect(Int(ISA.generic.rawValue) == BN_ISA_GENERIC)
        #expect(Int(ISA.avx2.rawValue) == BN_ISA_AVX2)
        #expect(Int(ISA.avx512.rawValue) == BN_ISA_AVX512)
        #expect(Int(BatchNormOperation.forwardTraining.rawValue) == BN_OPERATION_FORWARD_TRAINING)
        #expect(Int(BatchNormOperation.forwardInference.rawValue) == BN_OPERATION_FORWARD_INFERENCE)
        #expect(Int(BatchNormOperation.backward.rawValue) == BN_OPERATION_BACKWARD)
        #expect(Int(BatchNormOperation.backwardFrozen.rawValue) == BN_OPERATION_BACKWARD_FROZEN)
    }

    @Test func activationsAreTheHeaders() throws {
        #expect(try Activation(kind: BN_ACTIVATION_NONE, slope: 0) == .none)
        #expect(try Activation(kind: BN_ACTIVATION_RELU, slope: 0) == .relu)
        #expect(try Activation(kind: BN_ACTIVATION_LEAKY_RELU, slope: 0.1) == .leakyReLU(negativeSlope: 0.1))
    }

    @Test(arguments: Status.allCases)
    func statusesAreTheHeaders(status: Status) {
        // As `bn_status_name`, which goes by the header's constants: `noChannels` is BN_STATUS_NO_CHANNELS.
        let words = "\(status)".map { $0.isUppercase ? "_\($0)" : $0.uppercased() }
        #expect(String(cString: bn_status_name(status.rawValue)) == "BN_STATUS_" + words.joined())
    }

    @Test func failuresReturnAStatusAndLeaveAMessage() {
        #expect(bn_layer_set_training(nil, 1) == BN_STATUS_NULL_POINTER)
        #expect(String(cString: bn_last_error_message()) == "layer is NULL, but required")
        #expect(String(cString: bn_status_name(102)) == "BN_STATUS_INVALID_OPTION")
        #expect(String(cString: bn_status_name(-1)) == "BN_STATUS_UNKNOWN")
    }

    @Test func aForwardThroughTheHeaderIsTheSameAsThroughSwift() throws {
        let shape = try Shape.nchw(2, 3, 4, 4)
        var random = Random(1)
        let x: Tensor<Float> = try random.tensor(shape)
        var output = [Float](repeating: 0, count: shape.count)
        var problem = bn_problem(
            struct_size: UInt32(MemoryLayout<bn_problem>.size), dtype: Int32(BN_DTYPE_FLOAT32),
            layout: Int32(BN_LAYOUT_NCHW), rank: 4, sizes: (2, 3, 4, 4, 0))
        var args = bn_forward_training_args()
        args.struct_size = UInt32(MemoryLayout<bn_forward_training_args>.size)
        args.epsilon = 1e-5
        let status = x.elements.withUnsafeBytes { input in
            output.withUnsafeMutableBytes { output in
                args.input = bn_view(data: input.baseAddress, count: Int64(shape.count))
                args.output = bn_mutable_view(data: output.baseAddress, count: Int64(shape.count))
                return bn_forward_training(&problem, &args)
            }
        }
        #expect(status == BN_STATUS_OK)
        #expect(output == (try BatchNormalization.forwardTraining(x).output.elements))
    }
}
