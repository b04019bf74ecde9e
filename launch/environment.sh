# Sourced by the other scripts, or by you: makes (once) the virtual environment with the pinned packages and puts it
# first on PATH.
# usage: source launch/environment.sh [extra]     from the checkout's root
# extra: test, parquet, peers, prepare, targets, cuda or tpu
# PYTHON chooses the interpreter (3.11 or newer), PRIVIMAGE_VENV the folder of the environment.

privimage_environment() {
  local python=${PYTHON:-python3} venv=${PRIVIMAGE_VENV:-.venv} extra=${1:-}
  local stamp="$venv/.installed-${extra:-plain}"

  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "privimage needs Python 3.11 or newer; set PYTHON to one, as in PYTHON=python3.12 launch/quickstart.sh" >&2
    return 2
  fi
  if [ ! -e "$stamp" ] || [ setup.py -nt "$stamp" ] || [ constraints.txt -nt "$stamp" ]; then
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv" || return 2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
      --constraint constraints.txt --editable ".${extra:+[$extra]}" || return 2
    touch "$stamp"
  fi
  PATH="$(cd "$venv/bin" && pwd):$PATH"
  export PATH
}

privimage_environment "${1:-}"
