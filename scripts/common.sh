# What the scripts share: sourced, never run. Sets root, venv, python, jobs and moves to the root.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

venv=$root/.venv
python=$venv/bin/python
build=$root/build
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
    "$1" -m pip install --progress-bar off "torch==2.13.0+cpu" ||
        "$1" -m pip install --progress-bar off "torch>=2.6"
}
