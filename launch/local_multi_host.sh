#!/usr/bin/env bash
# Trains with several processes on this machine's CPU, joined over loopback as hosts would be:
#
#   CONFIG=configs/digits.py NAME=two launch/local_multi_host.sh
#   launch/local_multi_host.sh --dry_run      prints the commands and runs nothing
#
# NAME, CONFIG, WORKDIR, EXTRA and PYTHON are described in launch/variables.sh; flags of
# kernsym_jax.train may follow --. HOSTS is the number of processes, 2 unless set; DEVICES how many
# devices each pretends to have, 1 unless set; PORT that of process 0, a free one unless set.
set -euo pipefail
HOSTS=${HOSTS:-2}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/variables.sh
source launch/variables.sh
DEVICES=${DEVICES:-1}
PORT=${PORT:-0}
require HOSTS '[1-9][0-9]?' 'a number of processes'
require DEVICES '[1-9][0-9]?' 'a number of devices'
require PORT '[0-9]{1,5}' 'a port'

dry_run=false
if [[ ${1:-} == --dry_run ]]; then dry_run=true && shift; fi
if [[ ${1:-} == -- ]]; then shift; elif (($#)); then usage_error "flags of train come after --"; fi
read -ra extra <<<"$EXTRA"
python=${PYTHON:-.venv/bin/python}

if ! $dry_run && [[ -z ${PYTHON:-} ]]; then
  # shellcheck source=launch/environment.sh
  source launch/environment.sh
  prepare_environment
fi
if ! $dry_run && ((PORT == 0)); then
  PORT=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])')
fi

devices=--xla_force_host_platform_device_count=$DEVICES
settings=(JAX_PLATFORMS=cpu "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }$devices")
train=("$python" -m kernsym_jax.train --config="$CONFIG" --workdir="$WORKDIR"
  --coordinator="127.0.0.1:$PORT" --processes="$HOSTS")
if $dry_run; then
  for ((index = 0; index < HOSTS; index++)); do
    echo "$(quoted env "${settings[@]}" "${train[@]}" --process="$index" "${extra[@]}" "$@") &"
  done
  exit
fi

pids=()
# A signal to this script is passed on; the processes agree at which step they save and stop.
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
for ((index = 0; index < HOSTS; index++)); do
  env "${settings[@]}" "${train[@]}" --process="$index" "${extra[@]}" "$@" &
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
