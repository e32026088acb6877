// swift-tools-version: 6.2
// The Swift package: `import BatchNorm`. The C library is built from the same sources by CMakeLists.txt.
import Foundation
import PackageDescription

// Debian and Ubuntu (libomp-dev) put LLVM's OpenMP runtime on the linker's path as libomp5, others as libomp.
let debianFolders = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"]
let hasDebianName = debianFolders.contains {
    FileManager.default.fileExists(atPath: $0 + "/libomp5.so")
}

let package = Package(
    name: "libbatchnorm",
    products: [
        .library(name: "BatchNorm", targets: ["BatchNorm"])
    ],
    traits: [
        .trait(
            name: "Foundation", description: "Errors conform to LocalizedError; on Apple's platforms they always do.")
    ],
    targets: [
        .target(
            name: "CBatchNormKernels",
            cSettings: [
                // Contraction is off because every fma is written out: the same bits on every instruction set.
                .unsafeFlags(["-fopenmp", "-ffp-contract=off"])
            ],
            linkerSettings: [.linkedLibrary(hasDebianName ? "omp5" : "omp"), .linkedLibrary("m")]),
        .target(
            name: "BatchNorm", dependencies: ["CBatchNormKernels"],
            // For properties that are spans.
            swiftSettings: [.enableExperimentalFeature("Lifetimes")]),

        // The C interface. Nobody imports it from Swift; it is here so that the compiler holds batchnorm.h and its
        // implementation together in every build, and for the tests.
        .systemLibrary(name: "CBatchNorm", path: "include"),
        .target(name: "BatchNormABI", dependencies: ["BatchNorm", "CBatchNorm"]),

        .testTarget(
            name: "BatchNormTests",
            dependencies: ["BatchNorm", "BatchNormABI", "CBatchNorm"]),
    ],
    cLanguageStandard: .c11
)
