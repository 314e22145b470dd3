#!/usr/bin/env bash
# Checks and measures the kernels on this machine's GPU, in under 10 minutes after the installation: their tests,
# compute-sanitizer, the card's ceilings and the benchmarks, with the peers that are installed. A table comes last; the
# numbers go to benchmarks/results/DEVICE/DATE.json.
# Usage: [DCLR_PYTHON=PYTHON] [SECONDS_IN_ALL=560] scripts/gpu_check.sh
#   DCLR_PYTHON: an interpreter that has dclr with its extras `test` and `bench`; default: .venv, made here.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

no_gpu() {
    echo "gpu_check: needs a GPU, and $1" >&2
    exit 1
}

if [ $# -gt 0 ]; then
    echo "gpu_check: got $*, expected no arguments" >&2
    exit 2
fi
if [ -z "${DCLR_PYTHON:-}" ]; then
    compgen -G '/dev/nvidia[0-9]*' >/dev/null || [ -e /dev/kfd ] || [ -e /dev/dxg ] || no_gpu "there is none in /dev"
fi
install_dclr "test,bench"
cd "$root"
unset TRITON_INTERPRET
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    no_gpu "torch.cuda.is_available() is not True in $python"

logs="$(mktemp -d)"
steps="$logs/steps.tsv"
end=$((SECONDS + ${SECONDS_IN_ALL:-560}))

# step NAME LIMIT COMMAND...: runs it for LIMIT seconds at most, or what is left, and notes how it went.
step() {
    local name="$1" limit="$2" begin=$SECONDS status=0 result=passed
    shift 2
    limit=$((limit < end - begin ? limit : end - begin))
    echo "== $name"
    # An interrupt, so that pytest still writes what it has.
    timeout --signal INT --kill-after 15 "$((limit > 1 ? limit : 1))" "$@" 2>&1 | tee "$logs/$name.log" || status=$?
    case $status in
        0) ;;
        124 | 137) result="stopped after $limit s" ;;
        *) result="failed, exit status $status" ;;
    esac
    # The last line of a log has pytest's counts, or the sanitizer's.
    printf '%s\t%s\t%s\t%s\n' "$name" "$result" "$((SECONDS - begin))" "$(tail -n 1 "$logs/$name.log")" >>"$steps"
}

left_out() {
    printf '%s\tleft out\t0\t%s\n' "$1" "$2" >>"$steps"
}

tests=("$python" -m pytest tests/kernels/test_gpu.py)
step tests 150 "${tests[@]}" -n 8 -k "not past"
step past-2-to-the-31 60 "${tests[@]}" -k past

PATH="$PATH:/usr/local/cuda/bin"
sanitizer=(compute-sanitizer --tool memcheck --error-exitcode 1)
if ! command -v compute-sanitizer >/dev/null; then
    left_out sanitizer "compute-sanitizer is not installed"
elif ! timeout 60 "${sanitizer[@]}" "$python" -c 'import torch; torch.ones(1, device="cuda").cpu()' >/dev/null 2>&1; then
    left_out sanitizer "compute-sanitizer does not run on this machine"
else
    # Without the caching allocator every tensor has its own bounds.
    step sanitizer 120 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "${sanitizer[@]}" "${tests[@]}" -k "values and bfloat16"
fi

# The loader runs on the CPU alone; the whole step compiles for longer than the rest takes, so it is a run of its own.
step benchmarks 560 "$python" -m pytest benchmarks/ --benchmark --seconds 0.3 --ignore benchmarks/bench_loader.py \
    --ignore benchmarks/bench_step.py --results "$logs/results.json"

"$python" - "$steps" "$logs/results.json" <<'PYTHON'
import json
import sys
from pathlib import Path

from benchmarks import harness

lines = [line.split("\t", 3) for line in Path(sys.argv[1]).read_text().splitlines()]
measured = Path(sys.argv[2])
report = json.loads(measured.read_text()) if measured.exists() else harness.environment("cuda") | {"rows": []}
report["command"] = "scripts/gpu_check.sh"
report["checks"] = {
    name: {"result": result, "seconds": int(seconds), "detail": detail} for name, result, seconds, detail in lines
}
path = harness.results_path("cuda")
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text(json.dumps(report, indent=1) + "\n")

print(f"\n== {report['device']}, commit {report['commit'][:12]}{' (modified)' if report['dirty'] else ''}")
for name, result, seconds, detail in lines:
    print(f"{name:<20}{seconds:>5} s  {result}: {detail}")
rates = "".join(f", {name} {rate / 1e12:.0f} TFLOP/s" for name, rate in report["ceilings"]["matmul_flops"].items())
print(f"ceilings: copy {report['ceilings']['copy_bytes'] / 1e12:.2f} TB/s{rates}")
print(harness.summary(report["rows"]))
print(f"written: {path}; logs: {measured.parent}")
sys.exit(any(result not in ("passed", "left out") for _, result, *_ in lines))
PYTHON
