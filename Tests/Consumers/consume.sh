#!/usr/bin/env bash
# Builds and runs one kind of consumer: consume.sh <way> <build folder> <folder to work in>.
# Environment: CMAKE_COMMAND, LIBDIR and VERSION, as CMakeLists.txt beside it sets them.
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
    output=$("$@" 2>&1)
    printf '%s\n' "$output"
    local text
    for text in "${texts[@]}"; do
        grep -qF -- "$text" <<<"$output" ||
            { echo "expected in the output of $1: $text" >&2; return 1; }
    done
}

# Fails unless the command fails and prints the text: <text> -- <command>…
expect_failure() {
    local text=$1 output
    shift 2
    if output=$("$@" 2>&1); then
        printf '%s\nexpected to fail: %s\n' "$output" "$*" >&2
        return 1
    fi
    # CMake breaks its messages into lines.
    output=$(tr -s ' \n' ' ' <<<"$output")
    [[ $output == *"$text"* ]] ||
        { printf '%s\nexpected in the output of %s: %s\n' "$output" "$1" "$text" >&2; return 1; }
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
./share/doc/batchnorm/LICENSE
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
components)
    # A project that asks for the components given: required, then optional.
    project() {
        rm -rf "$folder/components"
        mkdir -p "$folder/components"
        cat >"$folder/components/CMakeLists.txt" <<LINES
cmake_minimum_required(VERSION 3.25)
project(consumer LANGUAGES C)
find_package(BatchNorm $*)
message(STATUS "found: \${BatchNorm_FOUND}")
LINES
        "$CMAKE_COMMAND" -S "$folder/components" -B "$folder/components/build" \
            -DCMAKE_PREFIX_PATH="$prefix"
    }
    expect_failure "no component 'cuda': it is one library, BatchNorm::batchnorm" -- \
        project REQUIRED COMPONENTS cuda
    expect "found: 0" -- project COMPONENTS cuda
    expect "found: 1" -- project REQUIRED OPTIONAL_COMPONENTS cuda
    ;;
refusals)
    configure() {
        rm -rf "$folder/refusals"
        "$CMAKE_COMMAND" -S "$root" -B "$folder/refusals" "$@" 2>&1
    }
    expect_failure "BUILD_SHARED_LIBS is OFF, but libbatchnorm is a shared library only" -- \
        configure -DBUILD_SHARED_LIBS=OFF
    expect_failure "The kernels are written for clang" -- configure -DCMAKE_C_COMPILER=gcc
    export CC=gcc
    expect "CC=gcc is passed over" "The C compiler identification is Clang" -- configure
    ;;
subproject)
    # Of a project with another compiler, another generator, flags that would change results, and a
    # wish for static libraries: the code is the very one that this build has made.
    rm -rf "$folder/subproject" "$folder/subproject-installed"
    expect "BUILD_SHARED_LIBS is OFF; libbatchnorm is a shared library all the same" -- \
        "$CMAKE_COMMAND" -S "$here/subproject" -B "$folder/subproject" -G "Unix Makefiles" \
        -DLIBBATCHNORM="$root" -DCMAKE_C_COMPILER=gcc -DCMAKE_C_FLAGS=-ffast-math -DBUILD_SHARED_LIBS=OFF
    "$CMAKE_COMMAND" --build "$folder/subproject" --parallel "$(nproc)"
    expect "standard deviation   1.000" -- "$folder/subproject/normalize"
    "$CMAKE_COMMAND" --install "$folder/subproject" --prefix "$folder/subproject-installed"
    for each in "$prefix" "$folder/subproject-installed"; do
        objcopy --dump-section .text="$each/code" "$each/$LIBDIR/libbatchnorm.so" /dev/null
    done
    cmp "$folder/subproject-installed/code" "$prefix/code"
    diff <(cd "$prefix" && find . | sort) <(cd "$folder/subproject-installed" && find . | sort)
    rm "$prefix/code"
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
    echo "unknown way '$way', expected one of those in CMakeLists.txt" >&2
    exit 2
    ;;
esac
