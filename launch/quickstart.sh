#!/usr/bin/env bash
# Trains a small network on real digits, follows its symmetry and writes a report. About a minute.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

prepare_environment
.venv/bin/python -m kernsym_jax.train --config=configs/digits.py --workdir=runs/digits
.venv/bin/python -m kernsym_jax.analyze runs/digits --out=runs/digits/report
echo "open $PWD/runs/digits/report/report.html"
