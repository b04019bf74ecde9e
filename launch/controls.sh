#!/usr/bin/env bash
# The quickstart beside three controls at equal settings, each one flag away; prints one table. About half an hour on two cores.
# Anything after the script's name is passed on to all four runs: settings that each of them reads, such as --config.data.path.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh ""
source launch/one_device_per_core.sh

control() { # control NAME [FLAG ...]: one run that shares the quickstart's query network
  local name=$1
  shift
  privimage run --config configs/quickstart.py --workdir "runs/controls/$name" \
    --config.query_net.workdir=runs/quickstart "$@"
}

privimage run --config configs/quickstart.py --workdir runs/quickstart "$@"
control no_pretraining --config.pretrain.steps=0 "$@"
control random_selection --config.selection.method=random "$@"
control no_finetuning --config.finetune.enabled=False "$@"

python - <<'PYTHON'
import json

RUNS = {
    "PrivImage (`configs/quickstart.py`)": "quickstart",
    "no pre-training (`--config.pretrain.steps=0`)": "controls/no_pretraining",
    "random selection (`--config.selection.method=random`)": "controls/random_selection",
    "no DP fine-tuning (`--config.finetune.enabled=False`)": "controls/no_finetuning",
}
print("| run | FID | precision | recall | accuracy, trained on synthetic | accuracy, trained on real |")
print("| --- | --- | --- | --- | --- | --- |")
for name, run in RUNS.items():
    with open(f"runs/{run}/internal/evaluation.json", encoding="utf-8") as file:
        e = json.load(file)
    numbers = [f"{e['fid']:.2f}"] + [f"{e[key]:.3f}" for key in ("precision", "recall")]
    numbers += [f"{100 * e[key]:.1f}%" for key in ("accuracy_synthetic", "accuracy_real")]
    print(f"| {name} | {' | '.join(numbers)} |")
PYTHON
