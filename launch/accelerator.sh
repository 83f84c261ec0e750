#!/usr/bin/env bash
# Settles what only an accelerator can tell, within 11 minutes, and leaves a folder of results:
#   launch/accelerator.sh --out=docs/results/accelerator/h100
#   launch/accelerator.sh --only=bench,parity --budget=300
# PYTHON names the interpreter that has JAX for the accelerator (.venv or python3 by default), WHEELS
# a folder of wheels of what that one lacks. launch/accelerator.py has the flags.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-}
if [[ -z $python ]]; then
  python=python3
  [[ ! -x .venv/bin/python ]] || python=.venv/bin/python
fi
path=$PWD
if [[ -n ${WHEELS:-} ]]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile \
    --target "$site" "$WHEELS"/*.whl
  path=$path:$site
fi
export PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
# PyTorch needs its part of the memory.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.5}
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}
"$python" launch/accelerator.py "$@"
