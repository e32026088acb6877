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
