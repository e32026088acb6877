// The error as Foundation's, so that `localizedDescription` is its sentence. On Apple's platforms always; elsewhere with
// the package's trait `Foundation`, without which nobody links Foundation for it.

#if !hasFeature(Embedded) && (canImport(Darwin) || Foundation)
    #if canImport(FoundationEssentials)
        import FoundationEssentials
    #else
        import Foundation
    #endif

    extension BatchNormError: LocalizedError {
        /// The sentence of `description`.
        public var errorDescription: String? { description }
    }
#endif
