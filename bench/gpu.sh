#!/usr/bin/env bash
# A GPU, measured from the source tree: bash bench/gpu.sh [check|kernels|engine|peers]... [--results DIR]
# Needs Python with torch >= 2.11, triton and numpy (peers: transformers); installs and downloads nothing.
# It is python3, or .venv of `make up` where that has no torch; PYTHON names another.
# HEADRACE_COMMIT names the commit where the tree is no checkout.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export COLUMNS="${COLUMNS:-160}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
for python in "${PYTHON:-python3}" "${PYTHON:-.venv/bin/python}"; do
  if "$python" -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("torch"))' 2>/dev/null; then
    exec "$python" -m bench.gpu "$@"
  fi
done
echo "bench/gpu.sh: ${PYTHON:-python3} has no torch; PYTHON=… names a Python that has" >&2
exit 2
