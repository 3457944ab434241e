#!/usr/bin/env bash
# Creates the TPU that tpu.env describes and waits until its VMs are ready.
#
#   tpu_scripts/create.sh [--poll_seconds 60] [--dry-run]
#
# on-demand and spot create the VMs at once or fail. queued and queued-spot wait in the queue: if this script is
# interrupted, the request stays queued, and the same command continues to wait.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"
begin "$@"
take_option --poll_seconds POLL_SECONDS || true
no_arguments

create() {
  local options=("${LOCATION_FLAGS[@]}" --quiet "--accelerator-type=$ACCELERATOR_TYPE") nodes=("--node-id=$NAME")
  [[ $PROVISIONING != *spot ]] || options+=(--spot)
  if ! queued; then
    run gcloud compute tpus tpu-vm create "$NAME" "${options[@]}" "--version=$RUNTIME_VERSION"
    return
  fi
  # Slices find each other through MEGASCALE_COORDINATOR_ADDRESS, MEGASCALE_NUM_SLICES, MEGASCALE_SLICE_ID (and
  # MEGASCALE_PORT). A queued resource with several nodes sets them in its VMs' tpu-env metadata, where libtpu and JAX
  # read them (jax/_src/clusters/cloud_tpu_cluster.py, get_tpu_env_value; AI-Hypercomputer/maxtext issue 30). Slices
  # created one by one lack them.
  ((NUM_SLICES == 1)) || nodes=("--node-count=$NUM_SLICES" "--node-prefix=$NAME")
  run gcloud compute tpus queued-resources create "$NAME" \
    "${options[@]}" "--runtime-version=$RUNTIME_VERSION" "${nodes[@]}"
}

if $DRY_RUN; then
  create
  tpu_state >/dev/null
  exit
fi
previous=''
while true; do
  state=$(retry tpu_state) || exit
  [[ $state == "$previous" ]] || progress "$NAME is $state"
  previous=$state
  case $state in
    none*) create ;;
    ready*) exit 0 ;;
    lost*)
      progress "$NAME cannot recover; run delete.sh, then create.sh again"
      exit 1
      ;;
  esac
  sleep "$POLL_SECONDS"
done
