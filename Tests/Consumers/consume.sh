#!/usr/bin/env bash
# Builds and runs one kind of consumer: consume.sh <way> <build folder> <folder to work in>.
# Called by ctest (CMakeLists.txt beside it), which sets CMAKE_COMMAND, LIBDIR and VERSION.
set -euo pipefail
way=$1 build=$2 folder=$3
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
examples=$root/examples/c
prefix=$folder/prefix

# Fails unless the command prints every given text: <text>… -- <command>…
expect() {
    local texts=() output
    while [ "$1" != -- ]; do texts+=("$1"); shift; done
    shift
    output=$("$@")
    printf '%s\n' "$output"
    local text
    for text in "${texts[@]}"; do
        grep -qF -- "$text" <<<"$output" ||
            { echo "expected in the output of $1: $text" >&2; return 1; }
    done
}

run_examples() { # <folder of the executables>
    expect "channel 0: mean   -0.000, standard deviation   1.000" -- "$1/normalize" ||
        expect "channel 0: mean    0.000, standard deviation   1.000" -- "$1/normalize"
    expect "bit for bit" -- "$1/train_layer"
    expect "nothing else has seen it: yes" -- "$1/fused_sequences"
}

case $way in
install)
    rm -rf "$folder/elsewhere" "$prefix"
    mkdir -p "$folder"
    "$CMAKE_COMMAND" --install "$build" --prefix "$folder/elsewhere"
    mv "$folder/elsewhere" "$prefix"
    # Until 1.0 a minor version may break what was there.
    case $VERSION in 0.*) soversion=${VERSION%.*} ;; *) soversion=${VERSION%%.*} ;; esac
    found=$(cd "$prefix" && find . ! -type d | LC_ALL=C sort)
    expected=$(LC_ALL=C sort <<LIST
./include/batchnorm.h
./include/batchnorm/module.modulemap
./$LIBDIR/cmake/BatchNorm/BatchNormConfig.cmake
./$LIBDIR/cmake/BatchNorm/BatchNormConfigVersion.cmake
./$LIBDIR/cmake/BatchNorm/BatchNormTargets-release.cmake
./$LIBDIR/cmake/BatchNorm/BatchNormTargets.cmake
./$LIBDIR/libbatchnorm.so
./$LIBDIR/libbatchnorm.so.$soversion
./$LIBDIR/libbatchnorm.so.$VERSION
./$LIBDIR/pkgconfig/batchnorm.pc
LIST
)
    diff <(echo "$expected") <(echo "$found")
    ;;
find_package)
    # gcc: a user's compiler need not be the one that built the library.
    rm -rf "$folder/find_package"
    "$CMAKE_COMMAND" -S "$examples" -B "$folder/find_package" -DCMAKE_PREFIX_PATH="$prefix" \
        -DCMAKE_C_COMPILER=gcc -DCMAKE_C_FLAGS="-Wall -Wextra -Werror" -DCMAKE_BUILD_TYPE=Release
    "$CMAKE_COMMAND" --build "$folder/find_package"
    run_examples "$folder/find_package"
    ;;
pkg_config)
    rm -rf "$folder/pkg_config"
    mkdir -p "$folder/pkg_config"
    export PKG_CONFIG_PATH="$prefix/$LIBDIR/pkgconfig"
    [ "$(pkg-config --modversion batchnorm)" = "$VERSION" ]
    make -C "$examples" BUILD="$folder/pkg_config" CFLAGS="-O2 -Wall -Wextra -Werror"
    run_examples "$folder/pkg_config"
    ;;
swift_package)
    # The working tree, committed and tagged in a repository of its own, as SwiftPM would fetch it.
    work=$folder/swift_package
    rm -rf "$work"
    mkdir -p "$work/libbatchnorm"
    git -C "$root" ls-files -z --cached --others --exclude-standard |
        (cd "$root" && while IFS= read -r -d '' file; do
            if [ -e "$file" ]; then cp --parents --no-dereference "$file" "$work/libbatchnorm"; fi
        done)
    repository() { git -C "$work/libbatchnorm" -c user.name=test -c user.email=test@localhost "$@"; }
    repository init --quiet
    repository add --all
    repository commit --quiet --message "$VERSION"
    repository tag "$VERSION"

    cp -r "$here/swift_package" "$work/consumer"
    sed -i "s|https://.*/libbatchnorm.git|file://$work/libbatchnorm|" "$work/consumer/Package.swift"
    grep -qF "file://$work/libbatchnorm" "$work/consumer/Package.swift"
    # Caches of its own: SwiftPM remembers what a version pointed to, and this tag moves at each run.
    expect "accepted" -- swift run --package-path "$work/consumer" --cache-path "$work/cache" \
        --config-path "$work/config" --security-path "$work/security" consumer
    ;;
*)
    echo "unknown way '$way', expected install, find_package, pkg_config or swift_package" >&2
    exit 2
    ;;
esac
