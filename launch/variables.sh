# shellcheck shell=bash
# shellcheck disable=SC2034  # They are read by the scripts that source this file.
# Sourced by tpu_vm.sh and slurm.sbatch; skypilot.yaml has the same names under `envs`. Each is taken
# from the environment: NAME=resnet CONFIG=configs/cifar10_resnet20.py launch/tpu_vm.sh up
#
# What is trained
#   NAME             of the run, and of the machines: small letters, digits, hyphens
#   CONFIG           a config file of this repository
#   WORKDIR          run directory; one with a leading / is taken to be shared by all hosts
#   EXTRA            more flags for kernsym_jax.train, separated by spaces; those that hold spaces
#                    come after -- on the command line
#   BUCKET           gs://bucket or gs://bucket/folder; the run is kept in BUCKET/NAME. TPU, SkyPilot
#   EXTRAS           extras of the package to install: tpu, cuda
#   PYTHON           an interpreter that has the package, instead of .venv. Slurm, SkyPilot
# Where (tpu_vm.sh)
#   TPU_API          compute: Compute Engine; queued: queued resources of the Cloud TPU API
#   PROJECT, ZONE    of Google Cloud
#   ACCELERATOR      compute: a machine type, ct6e-standard-4t; queued: an accelerator type, v6e-4
#   HOSTS            machines in the slice
#   TOPOLOGY         of the chips if there are several hosts, 4x4; compute only
#   RUNTIME_VERSION  compute: an image family; queued: a TPU software version
#   SPOT             1: cheaper, and may be taken away at any time
#   DISK_GB          boot disk; compute only
#   CREATE_FLAGS     more flags for creating machines, as --subnet=… or --reservation=…
#   SSH_FLAGS        more flags for gcloud's ssh and scp, as --tunnel-through-iap
#   SYNC_SECONDS     how often a single host copies its run to BUCKET
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "${0##*/}: bash $BASH_VERSION is too old, 4.4 is needed" >&2
  exit 2
fi

NAME=${NAME:-kernsym}
CONFIG=${CONFIG:-configs/cifar10_resnet20.py}
WORKDIR=${WORKDIR:-runs/$NAME}
EXTRA=${EXTRA:-}
BUCKET=${BUCKET:-}
BUCKET=${BUCKET%/}
TPU_API=${TPU_API:-compute}
PROJECT=${PROJECT:-}
ZONE=${ZONE:-}
HOSTS=${HOSTS:-1}
TOPOLOGY=${TOPOLOGY:-}
SPOT=${SPOT:-0}
DISK_GB=${DISK_GB:-200}
CREATE_FLAGS=${CREATE_FLAGS:-}
SSH_FLAGS=${SSH_FLAGS:-}
SYNC_SECONDS=${SYNC_SECONDS:-60}

usage_error() {
  echo "${0##*/}: $1" >&2
  exit 2
}

require() {
  local name=$1 pattern=$2 wanted=$3
  [[ ${!name} =~ ^($pattern)$ ]] || usage_error "$name='${!name}' is not $wanted"
}

# Prints a command so that it can be pasted; what the shell would take apart is quoted.
quoted() {
  local word line=""
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=@,+%-]+$ ]]; then line+=" $word"; else line+=" ${word@Q}"; fi
  done
  printf '%s\n' "${line# }"
}

require NAME '[a-z]([a-z0-9-]{0,38}[a-z0-9])?' 'at most 40 small letters, digits and hyphens'
require BUCKET '(gs://[a-z0-9][a-z0-9._-]{2,61}(/[A-Za-z0-9._-]+)*)?' 'gs://bucket or gs://bucket/folder'
[[ $WORKDIR != gs://* ]] ||
  usage_error "WORKDIR='$WORKDIR': training writes to folders only; set BUCKET, not WORKDIR"
