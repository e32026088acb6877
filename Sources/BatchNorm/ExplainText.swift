// What a call would do, in plain English: the numbers of Explain.swift in a few lines.

extension BatchNormPlan: CustomStringConvertible {
    /// The plan in a few lines of plain English, for people who have never seen the sources. The wording may change from
    /// version to version; programs take the numbers.
    public var description: String {
        withText { String(decoding: $0, as: UTF8.self) }
    }

    /// Runs `body` with the lines, without a line end or NUL after the last. They lie on the stack: nothing is allocated.
    package func withText<Result, Failure>(
        _ body: (UnsafeMutableBufferPointer<UInt8>) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        // BN_EXPLAIN_TEXT_SIZE in batchnorm.h.
        var bytes = InlineArray<2048, UInt8>(repeating: 0)
        var span = bytes.mutableSpan
        return try span.withUnsafeMutableBufferPointer { (buffer) throws(Failure) in
            var text = TextWriter(buffer)
            write(to: &text)
            return try body(text.bytes)
        }
    }

    private func write(to text: inout TextWriter) {
        text.append(call.operation.name)
        text.append(": ")
        text.append(scalar.name)
        text.append(" ")
        text.append(shape)
        guard hasWork else {
            text.append(shape.isEmpty ? "\nan empty batch" : "\nno gradient is wanted")
            text.append(": there is nothing to do")
            return
        }
        text.append(", ")
        text.append(decimalBytes: tensorBytes)
        text.append(" a tensor")
        if scalar != scalar.parameter {
            text.append(", computed in ")
            text.append(scalar.parameter.name)
            text.append(" and rounded once")
        }
        text.append("\n")
        writeFusion(to: &text)
        writeMask(to: &text)
        writeGradients(to: &text)
        writeThreads(to: &text)
        writePieces(to: &text)
        writeSteps(to: &text)
        writeStores(to: &text)
        text.append("workspace: ")
        if workspaceBytes == 0 { text.append("none") } else { text.append(decimalBytes: workspaceBytes) }
        text.append("\nlimit: ")
        writeLimit(to: &text)
        text.append(", which")
        writeTraffic(limitBytesRead, limitBytesWritten, to: &text)
        text.append("\nthis plan")
        writeTraffic(bytesRead, bytesWritten, to: &text)
        text.append(", ")
        let ratio =
            (Double(bytesRead) + Double(bytesWritten))
            / (Double(limitBytesRead) + Double(limitBytesWritten))
        text.append(hundredths: Int(ratio * 100 + 0.5))
        text.append(" times the limit")
        if call.operation == .forwardTraining, shape.valuesPerChannel == 1 {
            text.append("\none value per channel: an error unless the call's one_value policy allows it")
        }
    }

    /// What is done in the same sweep, and what it costs.
    private func writeFusion(to text: inout TextWriter) {
        let plain = call.unfused
        guard call != plain else { return }
        text.append("fused: ")
        let isActivated = call.activation != .none
        if call.isForward {
            if isActivated {
                text.append(call.activation.name)
                text.append("(")
            }
            text.append("batch normalization")
            if call.hasResidual { text.append(" + residual") }
            if isActivated {
                text.append(")")
                text.append(slopeOf: call.activation)
            }
            if call.hasActivationMask { text.append(", and one bit a value for backward") }
        } else {
            if isActivated {
                text.append("back through ")
                text.append(call.activation.name)
                text.append(slopeOf: call.activation)
                if call.gate == .activationMask { text.append(", by one bit a value") }
                if call.gate == .output { text.append(", by the forward's output") }
            }
            if isActivated && call.hasResidual { text.append(", and ") }
            if call.hasResidual { text.append("the residual's gradient") }
        }
        let more = call.needed.union(call.written).subtracting(plain.needed.union(plain.written))
        text.append("; ")
        if more.isEmpty { text.append("nothing") } else { text.append(decimalBytes: more.bytes(shape, scalar)) }
        text.append(" more to move\n")
    }

    private func writeMask(to text: inout TextWriter) {
        guard let mask = call.mask else { return }
        text.append("masked: ")
        text.append(decimalBytes: shape.valuesPerChannel)
        switch mask {
        case .positions: text.append(", one byte a position")
        case .lengths: text.append(" of workspace, one byte a position, made of the lengths")
        }
        text.append("; what follows is told as if all took part\n")
    }

    private func writeGradients(to text: inout TextWriter) {
        guard !call.isForward, call.gradients != .all else { return }
        text.append("gradients: ")
        var separator: StaticString = ""
        func append(_ name: StaticString, if isWritten: Bool) {
            guard isWritten else { return }
            text.append(separator)
            text.append(name)
            separator = ", "
        }
        append("grad_input", if: call.gradients.contains(.input))
        append("grad_weight", if: call.gradients.contains(.weight))
        append("grad_bias", if: call.gradients.contains(.bias))
        append("grad_residual", if: call.hasResidual)
        text.append(", no others\n")
    }

    private func writeThreads(to text: inout TextWriter) {
        text.append(isa.name)
        text.append(", ")
        text.append(threads, "thread")
        if threads == 1, threadsAllowed > 1 {
            text.append(" of ")
            text.append(threadsAllowed)
            text.append(": so little work is done sooner without the others")
        } else if threads > 1 {
            text.append(", one parallel region")
        }
        text.append("\n")
    }

    private func writePieces(to text: inout TextWriter) {
        text.append("seen as ")
        text.append(rows, "row")
        text.append(" of ")
        text.append(shape.channels, "channel")
        if innerValues > 1 {
            text.append(" of ")
            text.append(innerValues, "value")
        }
        text.append(", walked by ")
        if isByColumns {
            text.append("columns: ")
            text.append(runChannels, "neighbouring channel")
            if rowsPerLine > 1 {
                text.append(" of ")
                text.append(rowsPerLine, "row")
            }
            text.append(", ")
            text.append(runChannels &* innerValues &* rowsPerLine, "column")
            text.append(", fill the vectors\n")
        } else {
            text.append("rows: the values of one channel fill the vectors\n")
        }
        text.append(pieces, "piece")
        text.append(pieces == 1 ? " of " : " of up to ")
        text.append(pieceRows, "row")
        text.append(" x ")
        text.append(runChannels, "channel")
        if innerValues > 1 {
            text.append(" x ")
            text.append(pieceValues, "value")
        }
        text.append("\n")
    }

    private func writeSteps(to text: inout TextWriter) {
        guard call.reduces && call.applies else {
            text.append(halfOfTheSteps)
            return
        }
        if steps == 1 {
            text.append("one step: ")
            if runChannels == shape.channels {
                text.append("the whole tensor")
            } else if runChannels == 1 {
                text.append("each channel")
            } else {
                text.append("each run of ")
                text.append(runChannels, "channel")
            }
            text.append(" is reduced and then applied by one thread")
            // reduction.c
            text.append(
                hasNontemporalStores && !isByColumns
                    ? "; while it is written, the next one is reduced\n" : "\n")
        } else {
            text.append("three steps: all pieces are reduced, their sums merged, then all is applied, ")
            text.append("last piece first\n")
        }
        text.append("in between, ")
        text.append(decimalBytes: heldBytes)
        switch held {
        case .l2:
            text.append(" wait in the L2 cache (")
            text.append(binaryBytes: l2Bytes)
            text.append("): memory is read once\n")
        case .l3:
            text.append(" wait in L3 (")
            text.append(binaryBytes: l3Bytes)
            text.append(" of it): memory is read once\n")
        case .memory:
            if steps == 1, threads > 1 {
                text.append(" a thread")
            }
            text.append(" are more than fits in L3 (")
            text.append(binaryBytes: l3Bytes)
            text.append(" of it): memory is read twice\n")
        }
    }

    /// Of a call that only reduces or only applies.
    private var halfOfTheSteps: StaticString {
        switch (steps == 1, call.reduces) {
        case (true, true): "one step: the channels' sums; nothing is applied\n"
        case (true, false): "one step: the statistics are given, so each piece is applied at once\n"
        case (false, true): "two steps: all pieces are reduced, then their sums merged; nothing is applied\n"
        case (false, false):
            "two steps: the statistics are given, so each channel's factor is formed, then all is applied\n"
        }
    }

    private func writeStores(to text: inout TextWriter) {
        text.append("stores: ")
        guard !call.written.isDisjoint(with: [.output, .gradInput]) else {
            text.append(call.written.isEmpty ? "none\n" : "ordinary\n")
            return
        }
        text.append(
            hasNontemporalStores
                ? "non-temporal, past the caches: the tensors do not fit together in L3 ("
                : "ordinary: the tensors fit together in L3, where the next operation finds the output (")
        text.append(binaryBytes: l3Bytes)
        text.append(" of it)\n")
    }

    /// What moves as many bytes and computes next to nothing.
    private func writeLimit(to text: inout TextWriter) {
        let moved = call.needed.union(call.written)
        switch (call.needed.tensors, call.written.tensors) {
        case (1, 1): text.append("a copy")
        case (2, 1): text.append("a triad")
        default:
            text.append("one sweep over ")
            text.append(moved.tensors, "tensor")
        }
        if !moved.isDisjoint(with: .allMasks) { text.append(", with masks") }
    }

    private func writeTraffic(_ read: Int, _ written: Int, to text: inout TextWriter) {
        text.append(" reads ")
        text.append(decimalBytes: read)
        text.append(" and writes ")
        text.append(decimalBytes: written)
    }
}

extension BatchNormOperation {
    fileprivate var name: StaticString {
        switch self {
        case .forwardTraining: "forward, training"
        case .forwardInference: "forward, inference"
        case .backward: "backward, batch statistics"
        case .backwardFrozen: "backward, frozen statistics"
        }
    }
}

extension TextWriter {
    /// "with slope 0.1", where the activation has one of the caller's.
    fileprivate mutating func append(slopeOf activation: Activation) {
        guard activation.takesSlope else { return }
        append(" with slope ")
        append(activation.negativeSlope)
    }

    /// "1 channel", "2 channels".
    fileprivate mutating func append(_ count: Int, _ noun: StaticString) {
        append(count)
        append(" ")
        append(noun)
        if count != 1 { append("s") }
    }

    /// As "1.50".
    fileprivate mutating func append(hundredths number: Int) {
        append(number / 100)
        append(".")
        append(UInt8(48 + number / 10 % 10))
        append(UInt8(48 + number % 10))
    }

    /// Tensors, in the powers of ten that memory's speed is told in: "401 KB", "25.7 MB".
    fileprivate mutating func append(decimalBytes bytes: Int) {
        append(bytes, base: 1000, units: ["B", "KB", "MB", "GB", "TB"])
    }

    /// Caches, in the powers of two that they come in: "512 KiB", "32 MiB".
    fileprivate mutating func append(binaryBytes bytes: Int) {
        append(bytes, base: 1024, units: ["B", "KiB", "MiB", "GiB", "TiB"])
    }

    /// With one decimal below 100, where that is not 0.
    private mutating func append(_ bytes: Int, base: Double, units: InlineArray<5, StaticString>) {
        var number = Double(bytes)
        var unit = 0
        while number >= base - 0.5, unit < 4 {
            number /= base
            unit &+= 1
        }
        let tenths = Int(number * 10 + 0.5)
        if tenths < 1000 {
            append(tenths / 10)
            if tenths % 10 != 0 {
                append(".")
                append(tenths % 10)
            }
        } else {
            append(Int(number + 0.5))
        }
        append(" ")
        append(units[unit])
    }
}
