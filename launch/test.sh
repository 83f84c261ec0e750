#!/usr/bin/env bash
# Runs the whole suite; arguments are passed on to pytest.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

prepare_environment test
exec .venv/bin/python -m pytest --numprocesses="${TEST_PROCESSES:-2}" --dist=loadfile "$@"
