#!/usr/bin/env bash
# Fetches, into the ignored folder .whl/, the packages that a GPU machine without a network lacks: what dclr needs beyond
# PyTorch, Triton, numpy and pytest, and the peers of the benchmarks. For Python 3.12 on x86-64 Linux.
# There: python3 -m pip install --no-index --no-deps --target SITE .whl/*.whl
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
limit_mib=60

platforms=()
for glibc in 2_28 2_27 2_24 2_17 2_12 2_5; do
    platforms+=(--platform "manylinux_${glibc}_x86_64")
done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
fetch() {
    "${PYTHON:-python3}" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --python-version 3.12 --implementation cp "${platforms[@]}" --dest .whl "$@"
}

rm -rf .whl
mkdir .whl
fetch av==18.1.0 kornia==0.9.0 kornia_rs==0.2.0 nvtx==0.2.17 tyro==1.0.17 docstring_parser typeguard
for peer in memeff==0.3.1 siglip-kernel==0.1.2 inf-cl==1.2.1 triton-augment lightly lightly_utils aenum \
    pytorch-metric-learning flashlib; do
    fetch "$peer" || echo "gpu_wheels: $peer cannot be fetched as a wheel; its rows will say so" >&2
done
size=$(($(git ls-files -z | xargs -0 du -ck | tail -n 1 | cut -f 1) + $(du -sk .whl | cut -f 1)))
echo "$(ls .whl | wc -l) wheels; with the tracked files $((size / 1024)) MiB of $limit_mib" >&2
[ "$size" -le $((limit_mib * 1024)) ] || { echo "gpu_wheels: over $limit_mib MiB" >&2; exit 1; }
