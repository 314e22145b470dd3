#!/usr/bin/env bash
# Without arguments: the demo. With arguments: `dclr pretrain ARGUMENTS`, under torchrun where there are several GPUs.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_dclr ""

if [ $# -eq 0 ]; then
    exec "$python" -m dclr demo
fi
gpus="$("$python" -c 'import torch; print(torch.cuda.device_count())')"
if [ "$gpus" -gt 1 ]; then
    exec "$python" -m torch.distributed.run --standalone --nproc-per-node "$gpus" -m dclr pretrain "$@"
fi
exec "$python" -m dclr pretrain "$@"
