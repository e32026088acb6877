# What the scripts share: sourced, never run. Answers --help, sets root, venv, python, jobs and moves
# to the root.
set -euo pipefail

# A script's help is its header comment. Before anything else: help needs nothing and changes nothing.
for argument in "$@"; do
    case $argument in
    -h | --help)
        sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
        exit
        ;;
    esac
done

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

venv=$root/.venv
python=$venv/bin/python
build=$root/build
library=$build/libbatchnorm.so
programs=$root/build-bench # the benchmark's
jobs=$(nproc)

heading() { printf '\n==> %s\n' "$*"; }
fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Installs PyTorch with this interpreter's pip: its CPU build where pip is set up to find it; PyPI's
# own brings CUDA, gigabytes of it, and works as well.
install_torch() {
    local any
    any=$(grep '^torch' "$root/scripts/requirements-torch.txt")
    "$1" -m pip install --progress-bar off "torch==2.13.0+cpu" ||
        "$1" -m pip install --progress-bar off "$any"
}
