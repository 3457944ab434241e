#!/usr/bin/env bash
# Runs a tpt command on a GKE cluster through xpk, as a workload called NAME.
#
#   tpu_scripts/gke.sh create [--built] [--dry-run] -- run --config FILE --run_dir gs://BUCKET/runs/NAME
#   tpu_scripts/gke.sh list [--dry-run]
#   tpu_scripts/gke.sh delete [--yes] [--dry-run]      --yes skips the confirmation
#
# --built: IMAGE was built from Dockerfile, so has tpt and configs/; without it xpk adds this clone to IMAGE.
#
# Uses PROJECT, ZONE, NAME, ACCELERATOR_TYPE, NUM_SLICES, BUCKET, CLUSTER and IMAGE from tpu.env, and needs a cluster
# created with `xpk cluster create`. The cluster restarts the workload after a preemption.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"
REQUIRED_KEYS=(PROJECT ZONE NAME ACCELERATOR_TYPE NUM_SLICES BUCKET CLUSTER IMAGE)
begin "$@"
yes=()
! take_option --yes || yes=(--force)
image=("--base-docker-image=${IMAGE-}" "--script-dir=$(dirname "$SCRIPT_DIR")")
install="pip install --quiet -e '.[tpu]' && "
! take_option --built || { image=("--docker-image=${IMAGE-}") && install=; }
verb=${ARGUMENTS[0]-}
ARGUMENTS=("${ARGUMENTS[@]:1}")
no_arguments
cluster_flags=("--cluster=$CLUSTER" "${LOCATION_FLAGS[@]}")

case $verb in
  create)
    need_command
    # exec: xpk sends SIGTERM to the process that it started, which must be tpt. xpk always restarts on exit statuses 42
    # and 127 to 255; 75 is tpt's "resume with the same command".
    run xpk workload create "${cluster_flags[@]}" "--workload=$NAME" \
      "--tpu-type=$ACCELERATOR_TYPE" "--num-slices=$NUM_SLICES" \
      "${image[@]}" \
      --max-restarts=100 --restart-on-exit-codes=75 --termination-grace-period-seconds=120 \
      "--command=${install}exec $(quote tpt "${COMMAND[@]}")"
    ;;
  list) run xpk workload list "${cluster_flags[@]}" "--filter-by-job=$NAME" ;;
  delete) run xpk workload delete "${cluster_flags[@]}" "--workload=$NAME" "${yes[@]}" ;;
  *) usage_error "unknown verb '$verb'; give create, list or delete, see --help" ;;
esac
