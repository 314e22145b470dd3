#!/usr/bin/env bash
# `dclr finetune ARGUMENTS`, under torchrun where there are several GPUs.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_dclr ""
run_on_all_gpus finetune "$@"
