#!/usr/bin/env bash
# From nothing to a tested checkout: makes the environment with the test packages, then runs lint and the whole suite.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh test
ruff check .
ruff format --check .
exec pytest --numprocesses 2 "$@"
