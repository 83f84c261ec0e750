#!/usr/bin/env bash
# Trains on Cloud TPU machines, one or a slice of several hosts.
#
#   PROJECT=p ZONE=us-east5-b launch/tpu_vm.sh up                       one v6e host, 4 chips
#   TPU_API=queued ACCELERATOR=v6e-16 HOSTS=4 BUCKET=gs://b … launch/tpu_vm.sh up
#   ACCELERATOR=tpu7x-standard-4t TOPOLOGY=2x2x2 HOSTS=2 SPOT=1 BUCKET=gs://b … launch/tpu_vm.sh up
#
# Usage: launch/tpu_vm.sh create|setup|run|up|status|fetch|delete [--dry_run] [-- TRAIN_FLAGS]
#   create  makes the machines and waits for them; those that were preempted are made anew
#   setup   brings the commit that is checked out here to every host, and installs it
#   run     starts the training on every host, or goes on with it; returns at once
#   up      create, setup, run. Again after a preemption: the run goes on
#   status  the state of the machines and the last lines of every host's log
#   fetch   copies the run directory to this machine
#   delete  removes what create has made, and nothing else. What is in BUCKET stays
# --dry_run prints the commands instead: they can be pasted. Nothing is asked of Google Cloud.
# The variables are described in launch/variables.sh.
#
# Results: kernsym_jax writes to folders, not to gs:// addresses. A single host therefore trains on
# its own disk and copies the run directory to BUCKET every SYNC_SECONDS and when it is stopped; a
# new machine copies it back first. Several hosts have to share the run directory: there BUCKET is
# mounted with Cloud Storage FUSE; a bucket with hierarchical namespace renames folders at once.
#
# Where the facts come from (Google Cloud documentation, read in 2026):
#   "Cloud TPU resources in Compute Engine": the Cloud TPU API, with its queued resources, gets fixes
#     only; from TPU7x on machines are made through Compute Engine. A slice of several hosts is a
#     managed instance group whose workload policy has the topology.
#   "TPU machines in accelerator-optimized machine family": TPU v5p, v6e and TPU7x; the number before
#     the t of ct5p-hightpu-4t, ct6e-standard-4t, tpu7x-standard-4t is that of the chips.
#   "Use a custom OS image": Google's images are TPU-optimized Ubuntu. Their families are named here
#     as SkyPilot's GCP catalogue has them; RUNTIME_VERSION takes another.
#   "Request TPU Spot VMs": a preempted machine or group cannot be started again, only replaced; its
#     templates have --maintenance-policy=TERMINATE, and STOP as the action for groups.
#   "Manage queued resources": the states of a request.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/variables.sh
source "$here/variables.sh"

marker="made by kernsym-jax launch/tpu_vm.sh"
checkout=kernsym-jax
dry_run=false

# ---- names that follow from the variables

settle() {
  local family
  require TPU_API 'compute|queued' 'compute or queued'
  require PROJECT '[a-z0-9.:-]+' 'the id of a Google Cloud project'
  require ZONE '[a-z0-9]+-[a-z0-9]+-[a-z0-9]+' 'a zone such as us-east5-b'
  require HOSTS '[1-9][0-9]*' 'a number of machines'
  require SPOT '0|1' '0 or 1'
  require DISK_GB '[1-9][0-9]*' 'a number'
  require SYNC_SECONDS '[1-9][0-9]*' 'a number'
  EXTRAS=${EXTRAS:-tpu}
  require EXTRAS '[a-z]+(,[a-z]+)*' 'extras of the package, such as tpu'
  require TOPOLOGY '([0-9]+x[0-9]+(x[0-9]+)?)?' 'such as 4x4 or 2x2x2'
  if [[ $TPU_API == compute ]]; then ACCELERATOR=${ACCELERATOR:-ct6e-standard-4t}; fi
  ACCELERATOR=${ACCELERATOR:-v6e-4}
  case $TPU_API-$ACCELERATOR in
    compute-tpu7x-*) family=ubuntu-accel-2404-amd64-tpu-tpu7x ;;
    compute-*) family=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e ;;
    queued-v6e-*) family=v2-alpha-tpuv6e ;;
    queued-v5p-*) family=v2-alpha-tpuv5 ;;
    queued-v5litepod-*) family=v2-alpha-tpuv5-lite ;;
    *) family=tpu-ubuntu2204-base ;;
  esac
  RUNTIME_VERSION=${RUNTIME_VERSION:-$family}
  region=${ZONE%-*}
  place=(--project="$PROJECT" --zone="$ZONE")
  read -ra create_flags <<<"$CREATE_FLAGS"
  read -ra ssh_flags <<<"$SSH_FLAGS"
  spot=()
  if [[ $TPU_API == compute ]]; then settle_compute; elif ((SPOT)); then spot=(--spot); fi
  if [[ -z $BUCKET ]] && ((SPOT)); then
    usage_error "SPOT=1 needs BUCKET: what is on a preempted machine is lost"
  fi
  if [[ -z $BUCKET && $WORKDIR != /* ]] && ((HOSTS > 1)); then
    usage_error "HOSTS=$HOSTS needs BUCKET, or a WORKDIR with a leading / that all hosts share"
  fi
}

settle_compute() {
  local per_host chips=1 side
  [[ $ACCELERATOR =~ -([0-9]+)t$ ]] ||
    usage_error "ACCELERATOR='$ACCELERATOR' is not a TPU machine type such as ct6e-standard-4t"
  per_host=${BASH_REMATCH[1]}
  if ((SPOT)); then
    # The members of a group stop, as "Request TPU Spot VMs" has it; a lone machine goes by itself.
    spot=(--provisioning-model=SPOT --instance-termination-action=DELETE)
    if ((HOSTS > 1)); then spot[1]=--instance-termination-action=STOP; fi
  fi
  if ((HOSTS == 1)); then return; fi
  for side in ${TOPOLOGY//x/ }; do chips=$((chips * side)); done
  ((chips == HOSTS * per_host)) || usage_error \
    "TOPOLOGY='$TOPOLOGY' has $chips chips, HOSTS=$HOSTS of $ACCELERATOR have $((HOSTS * per_host))"
}

# The kinds of things that were made, in the order of making.
resources() {
  if [[ $TPU_API == queued ]]; then
    echo queued
  elif ((HOSTS == 1)); then
    echo instance
  else
    echo policy template group
  fi
}

# Sets `command` to what gcloud calls the kind, `where` to the flags that find it.
address() {
  where=("${place[@]}")
  case $1 in
    queued) command=(gcloud compute tpus queued-resources) ;;
    instance) command=(gcloud compute instances) ;;
    group) command=(gcloud compute instance-groups managed) ;;
    template) command=(gcloud compute instance-templates) where=(--project="$PROJECT") ;;
    policy)
      command=(gcloud compute resource-policies) where=(--project="$PROJECT" --region="$region")
      ;;
  esac
}

# ---- running and printing

act() {
  if $dry_run; then quoted "$@"; else "$@"; fi
}

# Sets `answer` to a value of a thing; false if there is no such thing.
ask() {
  local kind=$1 format=$2 complaint
  local -a command where
  address "$kind"
  complaint=$(mktemp)
  if answer=$("${command[@]}" describe "$NAME" "${where[@]}" --format="value($format)" \
    2>"$complaint"); then
    rm -f "$complaint"
    return 0
  fi
  if ! grep -qiE 'not found|not_found' "$complaint"; then
    cat "$complaint" >&2
    rm -f "$complaint"
    exit 1
  fi
  rm -f "$complaint"
  return 1
}

description_of() {
  if [[ $1 == queued ]]; then echo 'tpu.nodeSpec[0].node.description'; else echo description; fi
}

# False if there is no such thing; ends the script if it was not made here.
is_ours() {
  ask "$1" "$(description_of "$1")" || return 1
  if [[ $answer != "$marker" ]]; then
    echo "${0##*/}: the $1 $NAME was not made by this script; it is left alone" >&2
    exit 1
  fi
}

# ---- create

create_command() {
  local -a template=(
    --machine-type="$ACCELERATOR" --image-family="$RUNTIME_VERSION"
    --image-project=ubuntu-os-accelerator-images --boot-disk-size="${DISK_GB}GB"
    --maintenance-policy=TERMINATE --scopes=cloud-platform
    "${spot[@]}" "${create_flags[@]}"
  )
  local -a described=(--description="$marker")
  case $1 in
    queued)
      made=(--node-id="$NAME" --accelerator-type="$ACCELERATOR"
        --runtime-version="$RUNTIME_VERSION" --scopes=https://www.googleapis.com/auth/cloud-platform
        "${spot[@]}" "${create_flags[@]}" "${described[@]}")
      ;;
    instance | template) made=("${template[@]}" "${described[@]}") ;;
    policy)
      made=(--type=HIGH_THROUGHPUT --accelerator-topology="$TOPOLOGY" "${described[@]}")
      ;;
    group)
      made=(--template="$NAME" --size="$HOSTS" --default-action-on-vm-failure=do-nothing
        --workload-policy="projects/$PROJECT/regions/$region/resourcePolicies/$NAME"
        "${described[@]}")
      ;;
  esac
}

create() {
  local kind
  local -a command where made
  if ! $dry_run; then remove_if_preempted; fi
  for kind in $(resources); do
    address "$kind"
    create_command "$kind"
    local -a verb=(create "$NAME")
    if [[ $kind == policy ]]; then verb=(create workload-policy "$NAME"); fi
    if $dry_run; then
      printf '%s ||\n  ' "$(quoted "${command[@]}" describe "$NAME" "${where[@]}")"
    elif is_ours "$kind"; then
      echo "the $kind $NAME is there already"
      continue
    fi
    act "${command[@]}" "${verb[@]}" "${where[@]}" "${made[@]}"
  done
  wait_for_machines
}

# A preempted machine cannot be started again, so it has to make way for a new one.
remove_if_preempted() {
  local kind state gone=false
  kind=$(resources)
  kind=${kind##* }
  is_ours "$kind" || return 0
  case $kind in
    queued)
      ask queued state.state || return 0
      state=$answer
      case $state in SUSPENDING | SUSPENDED | FAILED) gone=true ;; esac
      ;;
    instance)
      ask instance status || return 0
      state=$answer
      case $state in STOPPING | STOPPED | TERMINATED | SUSPENDING | SUSPENDED) gone=true ;; esac
      ;;
    group)
      state=$(gcloud compute instance-groups managed list-instances "$NAME" "${place[@]}" \
        --format='value(instanceStatus)')
      case $state in *STOPPING* | *STOPPED* | *TERMINATED* | *SUSPEND*) gone=true ;; esac
      state=${state//$'\n'/ }
      ;;
  esac
  if $gone; then
    echo "$NAME was preempted or has failed ($state); making it anew"
    delete
  fi
}

wait_for_machines() {
  local -a state=(gcloud compute tpus queued-resources describe "$NAME" "${place[@]}"
    --format='value(state.state)')
  if [[ $TPU_API == compute ]]; then
    if ((HOSTS > 1)); then
      act gcloud compute instance-groups managed wait-until "$NAME" --stable "${place[@]}"
    fi
  elif $dry_run; then
    # shellcheck disable=SC2016  # It is printed, to be expanded by whoever pastes it.
    printf 'until [[ $(%s) == ACTIVE ]]; do sleep 30; done\n' "$(quoted "${state[@]}")"
  else
    local now=""
    while now=$("${state[@]}") && [[ $now != ACTIVE ]]; do
      case $now in
        FAILED | SUSPENDING | SUSPENDED)
          echo "${0##*/}: the request for $NAME ended as $now; create starts a new one" >&2
          exit 1
          ;;
      esac
      echo "$NAME: $now"
      sleep "${POLL_SECONDS:-30}"
    done
  fi
}

# ---- hosts

# The machines of a group have names of their own; the other kinds are called NAME.
hosts() {
  if [[ $TPU_API == compute ]] && ((HOSTS > 1)); then
    gcloud compute instance-groups managed list-instances "$NAME" "${place[@]}" \
      --format='value(instance.basename())'
  else
    echo "$NAME"
  fi
}

# Runs a gcloud command for every host; {host} in it stands for the host's name.
on_each_host() {
  local host names pid status=0
  local -a pids=()
  if $dry_run; then
    print_for_each_host "$@"
    return
  fi
  names=$(hosts) || return
  if [[ -z $names ]]; then
    echo "${0##*/}: $NAME has no machines" >&2
    return 1
  fi
  for host in $names; do
    "${@//\{host\}/$host}" &
    pids+=("$!")
  done
  for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
  return "$status"
}

print_for_each_host() {
  local list command
  if [[ $TPU_API == queued ]] || ((HOSTS == 1)); then
    quoted "${@//\{host\}/$NAME}"
    return
  fi
  list=$(quoted gcloud compute instance-groups managed list-instances "$NAME" "${place[@]}" \
    --format='value(instance.basename())')
  command=$(quoted "${@//\{host\}/@host@}")
  # shellcheck disable=SC2016  # It is printed, to be expanded by whoever pastes it.
  printf 'for host in $(%s); do\n  %s\ndone\n' "$list" "${command//@host@/'$host'}"
}

on_hosts() {
  local -a ssh=(gcloud compute ssh "{host}")
  local -a every=()
  if [[ $TPU_API == queued ]]; then
    ssh=(gcloud compute tpus tpu-vm ssh "{host}") every=(--worker=all)
  fi
  on_each_host "${ssh[@]}" --quiet "${place[@]}" "${every[@]}" "${ssh_flags[@]}" --command="$1"
}

to_hosts() {
  local -a scp=(gcloud compute scp)
  local -a every=()
  if [[ $TPU_API == queued ]]; then scp=(gcloud compute tpus tpu-vm scp) every=(--worker=all); fi
  on_each_host "${scp[@]}" --quiet "$1" "{host}:$2" "${place[@]}" "${every[@]}" "${ssh_flags[@]}"
}

# A new machine takes a while until it lets anyone in.
wait_for_ssh() {
  local attempt
  if $dry_run; then
    echo "# again until it succeeds:"
    on_hosts true
    return
  fi
  for ((attempt = 1; attempt <= 20; attempt++)); do
    if on_hosts true; then return; fi
    sleep "${POLL_SECONDS:-15}"
  done
  echo "${0##*/}: no connection to $NAME" >&2
  return 1
}

# ---- setup

setup() {
  local bundle=.cache/$NAME.bundle install
  if ! $dry_run; then
    cd "$here/.."
    mkdir -p .cache
    git diff --quiet HEAD || echo "setup: changes that are not committed stay behind" >&2
  else
    quoted mkdir -p .cache
  fi
  act git bundle create "$bundle" HEAD
  wait_for_ssh
  to_hosts "$bundle" "$NAME.bundle"
  # Ubuntu 22.04 comes with a Python that is too old, so uv fetches one.
  install="set -e; git init -q $checkout; cd $checkout; git fetch -q ../$NAME.bundle HEAD"
  install+="; git checkout -q -f FETCH_HEAD; sudo apt-get update -q"
  install+="; sudo apt-get install -q -y python3-venv"
  install+="; [ -x .venv/bin/python ] || { python3 -m venv ../.uv; ../.uv/bin/pip install -q uv"
  install+="; ../.uv/bin/uv venv -q --seed --python 3.12 .venv; }"
  install+="; bash -c \". launch/environment.sh && prepare_environment $EXTRAS\""
  if [[ -n $BUCKET ]] && ((HOSTS > 1)); then install+="; bash launch/tpu_host.sh install_fuse"; fi
  on_hosts "$install"
}

# ---- run

# The same command on every host; it outlives the connection.
run() {
  local start
  start="cd $checkout && { nohup env $(quoted NAME="$NAME" CONFIG="$CONFIG" WORKDIR="$WORKDIR" \
    BUCKET="$BUCKET" HOSTS="$HOSTS" SYNC_SECONDS="$SYNC_SECONDS" EXTRA="$EXTRA" \
    bash launch/tpu_host.sh train "$@")"
  on_hosts "$start </dev/null >>../$NAME.log 2>&1 & }"
}

status() {
  local kind state
  kind=$(resources)
  kind=${kind##* }
  state=status
  if [[ $kind == queued ]]; then state=state.state; fi
  if [[ $kind == group ]]; then state='status.isStable.yesno(yes=stable, no=changing)'; fi
  if $dry_run; then
    local -a command where
    address "$kind"
    quoted "${command[@]}" describe "$NAME" "${where[@]}" --format="value($state)"
  elif ask "$kind" "$state"; then
    echo "$NAME: ${answer:-unknown}"
  else
    echo "$NAME: not there"
    return
  fi
  on_hosts "hostname; tail -n 5 $NAME.log || true"
}

fetch() {
  local -a scp=(gcloud compute scp)
  local from=$WORKDIR first=$NAME
  if [[ -n $BUCKET ]]; then
    act mkdir -p "$WORKDIR"
    act gcloud storage rsync --recursive "$BUCKET/$NAME" "$WORKDIR"
    return
  fi
  if [[ $WORKDIR != /* ]]; then from=$checkout/$WORKDIR; fi
  if [[ $TPU_API == queued ]]; then scp=(gcloud compute tpus tpu-vm scp); fi
  if ! $dry_run; then read -r first < <(hosts); fi
  act mkdir -p "$(dirname "$WORKDIR")"
  act "${scp[@]}" --recurse "$first:$from" "$(dirname "$WORKDIR")" "${place[@]}" "${ssh_flags[@]}"
}

# ---- delete

delete() {
  local kind kinds=""
  local -a command where force
  for kind in $(resources); do kinds="$kind $kinds"; done
  for kind in $kinds; do
    address "$kind"
    force=(--quiet)
    # A queued resource that still has its machines is deleted only with force.
    if [[ $kind == queued ]]; then force=(--force --quiet); fi
    if $dry_run; then
      # shellcheck disable=SC2016  # It is printed, to be expanded by whoever pastes it.
      printf '[[ $(%s) == %s ]] &&\n  ' "$(quoted "${command[@]}" describe "$NAME" "${where[@]}" \
        --format="value($(description_of "$kind"))")" "$(quoted "$marker")"
    elif ! is_ours "$kind"; then
      echo "the $kind $NAME is not there"
      continue
    fi
    act "${command[@]}" delete "$NAME" "${where[@]}" "${force[@]}"
  done
}

usage() {
  # The comment at the top of this file is its manual.
  sed -n '2,/^set -/{/^#/{s/^# \{0,1\}//;p}}' "${BASH_SOURCE[0]}"
}

main() {
  local action=${1:-help}
  local -a train_flags=()
  if (($#)); then shift; fi
  while (($#)); do
    case $1 in
      --dry_run) dry_run=true ;;
      --)
        train_flags=("${@:2}")
        break
        ;;
      *) usage_error "unknown argument '$1'; train flags come after --" ;;
    esac
    shift
  done
  case $action in
    help | --help | -h) usage ;;
    create | setup | status | fetch | delete) settle && "$action" ;;
    run) settle && run "${train_flags[@]}" ;;
    up)
      settle
      create
      setup
      run "${train_flags[@]}"
      ;;
    *) usage_error "unknown command '$action'; one of create setup run up status fetch delete" ;;
  esac
}

main "$@"
