#!/usr/bin/env bash
# Installs what the tests need and runs them: once plain, then the kernels again through the Triton interpreter.
# Arguments go to pytest of the first run alone, e.g. `scripts/test.sh tests/methods`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_dclr "test"
cd "$root"

if [ $# -gt 0 ]; then
    exec "$python" -m pytest "$@"
fi
export OMP_NUM_THREADS=1
"$python" -m pytest -n auto
if "$python" -c 'import triton' 2>/dev/null; then
    TRITON_INTERPRET=1 "$python" -m pytest -n auto tests/kernels
fi
