#!/usr/bin/env bash
# Profiles a few steps of a pretraining run and prints the top kernels and the share of each phase.
# Usage: scripts/profile.sh nsys|ncu|torch ARGUMENTS, those of `dclr pretrain`, and --steps N
#   nsys    Nsight Systems: kernels and NVTX ranges over time; report in profile.nsys-rep
#   ncu     Nsight Compute: the counters of every kernel of one step; report in profile.ncu-rep
#   torch   torch.profiler, on CPUs too; Chrome trace in trace.json
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

tool="${1:-}"
case "$tool" in
    nsys | ncu)
        PATH="$PATH:/usr/local/cuda/bin"
        if ! command -v "$tool" >/dev/null; then
            echo "profile: $tool is not installed; expected it on PATH or in /usr/local/cuda/bin" >&2
            exit 1
        fi
        ;;
    torch) ;;
    *)
        echo "profile: got '$tool', expected nsys, ncu or torch, and then the arguments of dclr pretrain" >&2
        exit 2
        ;;
esac
shift
install_dclr ""

profile=("$python" -m dclr profile "$@")
case "$tool" in
    nsys)
        nsys profile --capture-range cudaProfilerApi --capture-range-end stop --trace cuda,nvtx,osrt \
            --force-overwrite true --output profile "${profile[@]}" --nsight
        nsys stats --force-export true --report nvtx_gpu_proj_sum --report cuda_gpu_kern_sum profile.nsys-rep
        ;;
    ncu)
        ncu --profile-from-start off --clock-control none --nvtx --set basic --force-overwrite --export profile \
            "${profile[@]}" --steps 1 --nsight
        ncu --import profile.ncu-rep --print-summary per-kernel --page details
        ;;
    torch)
        exec "${profile[@]}"
        ;;
esac
