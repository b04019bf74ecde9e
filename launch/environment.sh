# Sourced by the other scripts, or by you: makes (once) the virtual environment with the pinned packages and puts it
# first on PATH.
# usage: source launch/environment.sh [extra]     from anywhere: the checkout is the one that this file lies in
# extra: test, parquet, peers, prepare, targets, cuda or tpu
# PYTHON chooses the interpreter (3.11 or newer), PRIVIMAGE_VENV the folder of the environment (the checkout's .venv).

privimage_environment() { # privimage_environment FILE [EXTRA]: FILE is this one
  local root python=${PYTHON:-python3} extra=${2:-}
  root=$(CDPATH='' cd -- "$(dirname -- "$1")/.." && pwd) || return 2
  local venv=${PRIVIMAGE_VENV:-$root/.venv}
  local stamp="$venv/.installed-${extra:-plain}"

  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "privimage needs Python 3.11 or newer; set PYTHON to one, as in PYTHON=python3.12 launch/quickstart.sh" >&2
    return 2
  fi
  if [ ! -e "$stamp" ] || [ "$root/setup.py" -nt "$stamp" ] || [ "$root/constraints.txt" -nt "$stamp" ]; then
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv" || return 2
    # With --use-pep517 pip itself makes the script privimage: that of older setuptools fails where a path has a space.
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --use-pep517 \
      --constraint "$root/constraints.txt" --editable "$root${extra:+[$extra]}" || return 2
    touch "$stamp"
  fi
  PATH="$(CDPATH='' cd -- "$venv/bin" && pwd):$PATH"
  export PATH
}

if [ -n "${ZSH_VERSION:-}" ]; then
  eval 'privimage_environment "${(%):-%x}" "${1:-}"' # as zsh, and no other shell, spells it
else
  privimage_environment "${BASH_SOURCE:-launch/environment.sh}" "${1:-}"
fi
