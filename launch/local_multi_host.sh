#!/usr/bin/env bash
# Trains with two processes on this machine's CPU, joined over loopback as two hosts would be:
#   launch/local_multi_host.sh --config=configs/digits.py --workdir=runs/two
# Takes the flags of kernsym_jax.train. PROCESSES and PORT may be set, DEVICES is per process.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

processes=${PROCESSES:-2}
python=${PYTHON:-.venv/bin/python}
if [[ -z ${PYTHON:-} ]]; then
  prepare_environment
fi
port=${PORT:-$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])')}
export JAX_PLATFORMS=cpu
export XLA_FLAGS="--xla_force_host_platform_device_count=${DEVICES:-1}"

pids=()
# A signal to this script is passed on; the processes agree at which step they save and stop.
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
for ((index = 0; index < processes; index++)); do
  "$python" -m kernsym_jax.train --coordinator="127.0.0.1:$port" \
    --processes="$processes" --process="$index" "$@" &
  pids+=("$!")
done

status=0
for pid in "${pids[@]}"; do
  code=0
  wait "$pid" || code=$?
  # Above 128 it was this script that a signal woke up: the process is still at work.
  while ((code > 128)) && kill -0 "$pid" 2>/dev/null; do
    code=0
    wait "$pid" || code=$?
  done
  ((code == 0)) || status=$code
done
exit "$status"
