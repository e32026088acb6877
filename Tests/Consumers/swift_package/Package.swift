// swift-tools-version: 6.2
// A user's package: libbatchnorm by URL and version. The test puts a local URL in its place.
import PackageDescription

let package = Package(
    name: "consumer",
    dependencies: [
        .package(url: "https://example.org/libbatchnorm.git", from: "0.1.0", traits: ["Foundation"])
    ],
    targets: [
        .target(name: "Drawing"),
        .executableTarget(
            name: "consumer",
            dependencies: [.product(name: "BatchNorm", package: "libbatchnorm"), "Drawing"]),
    ]
)
