# Sourced by the other scripts: makes .venv in the repository and installs dclr into it, once.
# Usage: root and extras set by the caller; afterwards "$python" is the environment's interpreter.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$root/.venv/bin/python"

install_dclr() {
    local extras="$1" stamp="$root/.venv/installed-${1:-none}" wanted
    wanted="$(cat "$root/setup.py" "$root/constraints.txt" | cksum)"
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
