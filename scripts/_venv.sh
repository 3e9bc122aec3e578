# Sourced by the scripts: makes .venv and keeps it in step with pyproject.toml.
#
# venv_ready EXTRAS   e.g. venv_ready dev,documents

# The distribution's interpreter comes first: it is built with profile-guided optimisation, which
# takes an eighth off all that swarmd does; one that was built by hand seldom is.
venv_python() {
    local candidate needs
    for needs in "ensurepip, sys, venv" "sys"; do
        for candidate in "${PYTHON:-}" /usr/bin/python3 python3 python3.13 python3.12 python3.11; do
            [ -n "$candidate" ] || continue
            if "$candidate" -c "import $needs; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then
                echo "$candidate"
                return 0
            fi
        done
    done
    echo "swarmd needs Python 3.11 or newer; none was found (set PYTHON=/path/to/python3)" >&2
    return 1
}

venv_ready() {
    local extras="$1" root python stamp want
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    VENV="${DEV_VENV:-$root/.venv}"
    stamp="$VENV/.swarmd-$extras"
    want="$root $(cat "$root/pyproject.toml" "$root/constraints.txt" | cksum)"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && [ -x "$VENV/bin/swarmd" ]; then
        return 0
    fi
    python="$(venv_python)" || return 1
    if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        echo "$python has no venv module: install the package python3-venv (Debian, Ubuntu:" \
            "apt install python3-venv) and run this again" >&2
        return 1
    fi
    echo "preparing $VENV (once; later runs reuse it)" >&2
    [ -x "$VENV/bin/python" ] || "$python" -m venv "$VENV"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
        --constraint "$root/constraints.txt" --editable "$root[$extras]"
    echo "$want" >"$stamp"
}
