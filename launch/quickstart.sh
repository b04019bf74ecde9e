#!/usr/bin/env bash
# From nothing to a private synthetic set: makes the environment, then runs the quickstart into runs/quickstart.
# Anything after the script's name is passed on, e.g. launch/quickstart.sh --config.privacy.epsilon=5
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh ""
source launch/one_device_per_core.sh
privimage run --config configs/quickstart.py --workdir runs/quickstart "$@"
echo "open runs/quickstart/release/report.html"
