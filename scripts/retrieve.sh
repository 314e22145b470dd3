#!/usr/bin/env bash
# `dclr retrieve ARGUMENTS`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_dclr ""
exec "$python" -m dclr retrieve "$@"
