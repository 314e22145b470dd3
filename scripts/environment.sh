# Sourced by the other scripts: makes .venv in the repository and installs dclr into it, once.
# Afterwards "$python" is the environment's interpreter, or DCLR_PYTHON where that names one that has dclr already.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${DCLR_PYTHON:-$root/.venv/bin/python}"

install_dclr() {
    local extras="$1" stamp="$root/.venv/installed-${1:-none}" wanted
    wanted="$(cat "$root/setup.py" "$root/constraints.txt" | cksum)"
    if [ -n "${DCLR_PYTHON:-}" ]; then
        return
    fi
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        return
    fi
    if [ ! -x "$python" ]; then
        "${PYTHON:-python3}" -c 'import sys; v = sys.version_info[:2]; sys.exit(
            None if (3, 10) <= v < (3, 14) else f"dclr needs Python 3.10 to 3.13, this is {v[0]}.{v[1]}; set PYTHON=")'
        echo "Making $root/.venv" >&2
        "${PYTHON:-python3}" -m venv "$root/.venv"
    fi
    echo "Installing dclr${extras:+ with [$extras]} (once)" >&2
    "$python" -m pip install --quiet --disable-pip-version-check \
        --constraint "$root/constraints.txt" --editable "$root${extras:+[$extras]}"
    printf '%s' "$wanted" >"$stamp"
}

# run_on_all_gpus VERB ARGUMENTS...: `dclr VERB`, under torchrun where there are several GPUs.
run_on_all_gpus() {
    local gpus
    gpus="$("$python" -c 'import torch; print(torch.cuda.device_count())')"
    if [ "$gpus" -gt 1 ]; then
        exec "$python" -m torch.distributed.run --standalone --nproc-per-node "$gpus" -m dclr "$@"
    fi
    exec "$python" -m dclr "$@"
}
