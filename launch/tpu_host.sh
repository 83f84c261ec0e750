#!/usr/bin/env bash
# What tpu_vm.sh runs on the TPU machines: launch/tpu_host.sh train [TRAIN_FLAGS] | install_fuse
# The variables are described in launch/variables.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/variables.sh
source launch/variables.sh

install_fuse() {
  local key=/usr/share/keyrings/cloud.google.asc source=packages.cloud.google.com/apt
  # "Install Cloud Storage FUSE", Cloud Storage documentation.
  if command -v gcsfuse >/dev/null; then return; fi
  curl -fsS "https://$source/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] https://$source gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get update -q
  sudo apt-get install -q -y gcsfuse
}

# Sets WORKDIR to a folder of the bucket. Without caches, so that a host sees what another has just
# written; flat buckets rename a folder file by file, and only if told how many may be in it.
mount_bucket() {
  local bucket=${BUCKET#gs://} point=$HOME/bucket folder=""
  if [[ $bucket == */* ]]; then folder=/${bucket#*/}; fi
  mkdir -p "$point"
  mountpoint -q "$point" || gcsfuse --implicit-dirs --rename-dir-limit=100000 \
    --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "${bucket%%/*}" "$point"
  WORKDIR=$point$folder/$NAME
}

# What an earlier machine has saved; never over what this one has.
restore() {
  local complaint
  if [[ -d $WORKDIR && -n $(ls -A "$WORKDIR") ]]; then return; fi
  if ! complaint=$(gcloud storage ls "$BUCKET/$NAME/" 2>&1 >/dev/null); then
    if [[ $complaint == *"matched no objects"* ]]; then return; fi
    echo "$complaint" >&2
    return 1
  fi
  mkdir -p "$WORKDIR.part"
  gcloud storage rsync --recursive "$BUCKET/$NAME" "$WORKDIR.part" || return
  mkdir -p "$WORKDIR" && rmdir "$WORKDIR" && mv "$WORKDIR.part" "$WORKDIR"
}

# Copies a frozen view of the run directory to the bucket. The metrics go before the checkpoints and
# old files go last: wherever this is cut off, the newest checkpoint there can be resumed from.
save() (
  local view=$WORKDIR.view status=0
  local -a copy=(gcloud storage rsync --recursive "$view" "$BUCKET/$NAME")
  flock 9
  [[ -d $WORKDIR ]] || return 0
  rm -rf "$view"
  # Fails if a file goes while it copies; then the next time is soon enough.
  cp -al "$WORKDIR" "$view" || return 0
  find "$view" -name '*.orbax-checkpoint-tmp*' -prune -exec rm -rf {} +
  # The lock of this machine would keep another one from going on.
  find "$view" -name .lock -delete
  "${copy[@]}" --exclude='^(.*/)?checkpoints/.*' && "${copy[@]}" &&
    "${copy[@]}" --delete-unmatched-destination-objects || status=$?
  rm -rf "$view"
  return "$status"
) 9>"$HOME/$NAME.saving"

# Trains, and hands the exit status on: 75 if a signal has stopped it after a save.
train() {
  local saver="" status signalled=true
  local -a extra distributed=(--distributed=off)
  read -ra extra <<<"$EXTRA"
  exec 8>"$HOME/$NAME.running"
  flock --nonblock 8 || { echo "$NAME is running already" && return 0; }
  # Several hosts of a slice find each other by themselves: jax.distributed, JAX documentation.
  if ((HOSTS > 1)); then distributed=(--distributed=on); fi
  if [[ -n $BUCKET ]] && ((HOSTS > 1)); then
    mount_bucket
  elif [[ -n $BUCKET ]]; then
    restore || return
    while sleep "$SYNC_SECONDS"; do save || true; done 8>&- &
    saver=$!
  fi
  # There is one slice of this name: what a lost one has locked belongs to its successor.
  KERNSYM_JAX_JOB=${KERNSYM_JAX_JOB:-tpu_vm.sh $NAME} "${PYTHON:-.venv/bin/python}" \
    -m kernsym_jax.train --config="$CONFIG" --workdir="$WORKDIR" \
    "${distributed[@]}" "${extra[@]}" "$@" &
  local trainer=$!
  # A signal to this script ends the wait, not the training, which takes its time to save.
  # shellcheck disable=SC2064  # The number is that of now.
  trap "signalled=true; kill -TERM $trainer 2>/dev/null || true" TERM INT HUP
  while $signalled; do
    signalled=false status=0
    wait "$trainer" || status=$?
  done
  if [[ -n $saver ]]; then
    kill "$saver" 2>/dev/null || true
    save || { echo "$NAME: the last copy to $BUCKET failed" >&2 && status=1; }
  fi
  echo "$NAME: exit status $status"
  return "$status"
}

case ${1:-} in
  train | install_fuse) "$@" ;;
  *) usage_error "unknown command '${1:-}'; one of train install_fuse" ;;
esac
