#!/usr/bin/env bash
# Checks and measures on this machine's GPU, in order of worth, within a limit of seconds.
# Usage: [DCLR_PYTHON=PYTHON] scripts/gpu_check.sh --stage correct|measure|train [--seconds N] [--output FOLDER]
#   DCLR_PYTHON: an interpreter that has dclr with its extras `test` and `bench`; default: .venv, made here.
#   --device cpu rehearses the stage at its smallest, without a GPU.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

no_gpu() {
    echo "gpu_check: needs a GPU, and $1 (--device cpu rehearses without one)" >&2
    exit 1
}

rehearsal="$(case " $* " in *" --device cpu "*) echo yes ;; esac)"
if [ -z "$rehearsal" ] && [ -z "${DCLR_PYTHON:-}" ]; then
    compgen -G '/dev/nvidia[0-9]*' >/dev/null || [ -e /dev/kfd ] || [ -e /dev/dxg ] || no_gpu "there is none in /dev"
fi
install_dclr "test,bench"
cd "$root"
unset TRITON_INTERPRET
if [ -z "$rehearsal" ]; then
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
        no_gpu "torch.cuda.is_available() is not True in $python"
fi
PATH="$PATH:/usr/local/cuda/bin"
exec "$python" -m benchmarks.card "$@"
