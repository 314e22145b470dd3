#!/usr/bin/env bash
# Without arguments: the demo. With arguments: `dclr pretrain ARGUMENTS`, under torchrun where there are several GPUs.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_dclr ""

if [ $# -eq 0 ]; then
    exec "$python" -m dclr demo
fi
run_on_all_gpus pretrain "$@"
