#!/usr/bin/env bash
# Runs the whole suite; arguments are passed on to pytest.
# --lowest comes first: the suite runs with the lowest versions that requirements.txt and setup.py
# allow, in an environment of its own, .venv-lowest.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

venv=.venv
if [[ ${1:-} == --lowest ]]; then
  shift
  venv=.venv-lowest
  prepare_lowest test
  # XLA of JAX 0.10.0 prints a line for every program that it takes from the cache.
  export JAX_ENABLE_COMPILATION_CACHE=0
  # Old releases meet newer libraries of others, which warn them; orbax 0.11 leaves sockets open.
  set -- -W ignore::DeprecationWarning -W ignore::ResourceWarning "$@"
else
  prepare_environment test,docs
fi
exec "$venv"/bin/python -m pytest --numprocesses="${TEST_PROCESSES:-2}" \
  --dist=loadfile --no-loadscope-reorder "$@"
