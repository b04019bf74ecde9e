#!/usr/bin/env bash
# From nothing to a tested checkout: makes the environment with the test packages and the browser that the pages are
# tested in (on Debian, as root; elsewhere it says what to install), then runs lint, the type checker and the suite.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh test
if ! command -v chromedriver >/dev/null; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null ||
    ! { apt-get update && apt-get install --yes --no-install-recommends chromium chromium-driver; } >/dev/null 2>&1; then
    echo "the pages are not tested in a browser; install chromium and its driver, as by: apt-get install chromium chromium-driver" >&2
  fi
fi
ruff check .
ruff format --check .
mypy
exec pytest --numprocesses 2 --dist worksteal "$@"  # a file stays with one process, until the other has nothing left
