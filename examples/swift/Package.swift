// swift-tools-version: 6.2
// A program that uses libbatchnorm. To copy it, replace the dependency's line by
//
//     .package(url: "https://github.com/libbatchnorm/libbatchnorm", from: "0.1.0"),
//
// Debian and Ubuntu need `apt-get install libomp-dev` once, for the OpenMP runtime.
import PackageDescription

let package = Package(
    name: "train",
    dependencies: [
        .package(name: "libbatchnorm", path: "../..")
    ],
    targets: [
        .executableTarget(
            name: "train",
            dependencies: [.product(name: "BatchNorm", package: "libbatchnorm")])
    ]
)
