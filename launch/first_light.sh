#!/usr/bin/env bash
# The first minutes on a new machine: does it compute what it should, and how fast? One JSON file and one page of it.
# usage: launch/first_light.sh [OUT_DIR] [flags of privimage first-light]; the same command goes on where it stopped.
# PRIVIMAGE_INSTALLED=1 takes the packages of PYTHON as they are, where nothing can be installed.
set -euo pipefail
out=""
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
  out=$(realpath -m "$1")
  shift
fi
cd "$(dirname "$0")/.."
out=${out:-runs/first_light}

extra="" config=(--config configs/cifar10.py)
if nvidia-smi -L >/dev/null 2>&1; then
  extra=cuda
elif compgen -G "/dev/accel*" >/dev/null || compgen -G "/dev/vfio/[0-9]*" >/dev/null; then
  extra=tpu
else
  echo "no GPU or TPU was found; a small network is tried on the CPU" >&2
  config=(--config configs/quickstart.py --batch_sizes 64 --noise_multiplicities 4 --precisions float32)
fi
case " $* " in *" --config "* | *" --config="*) config=() ;; esac

if [ "${PRIVIMAGE_INSTALLED:-}" ]; then
  PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
  export PYTHONPATH
  command=("${PYTHON:-python3}" -m privimage_jax.main)
else
  # shellcheck source=launch/environment.sh
  source launch/environment.sh "$extra"
  command=(privimage)
fi
"${command[@]}" first-light ${config[@]+"${config[@]}"} --out "$out" "$@"
echo "open $out/first_light.html"
