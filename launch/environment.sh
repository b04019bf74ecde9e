# Sourced by the other scripts: makes (once) the virtual environment with the pinned packages and puts it first on PATH.
# usage: source launch/environment.sh [extras]     e.g. "test" or "cuda"
# PYTHON chooses the interpreter (3.11 or newer), PRIVIMAGE_VENV the folder of the environment.

PYTHON=${PYTHON:-python3}
PRIVIMAGE_VENV=${PRIVIMAGE_VENV:-.venv}
extras=${1:-}

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "privimage needs Python 3.11 or newer; set PYTHON to one, e.g. PYTHON=python3.12 $0" >&2
  exit 2
}
stamp="$PRIVIMAGE_VENV/.installed-${extras:-plain}"
if [ ! -e "$stamp" ] || [ setup.py -nt "$stamp" ] || [ constraints.txt -nt "$stamp" ]; then
  [ -x "$PRIVIMAGE_VENV/bin/python" ] || "$PYTHON" -m venv "$PRIVIMAGE_VENV"
  "$PRIVIMAGE_VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt --editable ".${extras:+[$extras]}"
  touch "$stamp"
fi
PATH="$(cd "$PRIVIMAGE_VENV/bin" && pwd):$PATH"
export PATH
