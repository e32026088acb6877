// What shapes, tensors, options and layers print. Embedded Swift, which the C library is built with, leaves this file
// out: there nobody prints a Swift value.

#if !hasFeature(Embedded)
    extension Shape: CustomStringConvertible {
        /// The sizes in logical order and the layout, as in `[32, 3, 28, 28] nhwc`.
        public var description: String { "\((0..<rank).map { sizes[$0] }) \(layout)" }
    }

    extension Tensor: CustomStringConvertible {
        /// The type, the shape and the elements in memory order; of more than eight the first and the last three.
        public var description: String {
            let values =
                elements.count > 8
                ? elements.prefix(3).map { "\($0)" } + ["..."] + elements.suffix(3).map { "\($0)" }
                : elements.map { "\($0)" }
            return "Tensor<\(Scalar.self)>(\(shape), [\(values.joined(separator: ", "))])"
        }
    }

    extension TrainingOptions: CustomStringConvertible {
        /// The epsilon, the momentum or `cumulative`, and every other choice that is not PyTorch's default.
        public var description: String {
            let defaults = TrainingOptions()
            var words = ["epsilon: \(epsilon)"]
            words.append("momentum: " + (averaging == .cumulative ? "cumulative" : "\(momentum)"))
            if runningVariance != defaults.runningVariance {
                words.append("runningVariance: \(runningVariance)")
            }
            if oneValue != defaults.oneValue { words.append("oneValue: \(oneValue)") }
            if nonfinite != defaults.nonfinite { words.append("nonfinite: \(nonfinite)") }
            return words.joined(separator: ", ")
        }
    }

    extension LayerOptions: CustomStringConvertible {
        /// The options in the order of `torch.nn.BatchNorm2d`'s.
        public var description: String {
            "numFeatures: \(numFeatures), \(training), hasWeight: \(hasWeight), hasBias: \(hasBias), "
                + "trackRunningStats: \(trackRunningStats)"
        }
    }

    extension BatchNormLayer: CustomStringConvertible {
        /// The type of its elements and its options.
        public var description: String { "BatchNormLayer<\(Scalar.self)>(\(options))" }
    }
#endif
