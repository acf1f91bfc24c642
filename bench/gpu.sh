#!/usr/bin/env bash
# A GPU, measured from the source tree: bash bench/gpu.sh [check|kernels|engine|peers]... [--results DIR]
# Needs Python with torch >= 2.11, triton and numpy (peers: transformers); installs and downloads nothing.
# PYTHON names another interpreter, HEADRACE_COMMIT the commit where the tree is no checkout.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export COLUMNS="${COLUMNS:-160}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
exec "${PYTHON:-python3}" -m bench.gpu "$@"
