#!/usr/bin/env bash
# Deletes the TPU: its VMs with their disks, and its queued resource. Buckets are kept.
#
#   tpu_scripts/delete.sh [--yes] [--dry-run]      --yes skips the confirmation
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"
begin "$@"
yes=()
! take_option --yes || yes=(--quiet)
no_arguments

if queued; then
  # --force also deletes the VMs; without it only a request without VMs can be deleted.
  run gcloud compute tpus queued-resources delete "$NAME" "${LOCATION_FLAGS[@]}" --force "${yes[@]}"
else
  run gcloud compute tpus tpu-vm delete "$NAME" "${LOCATION_FLAGS[@]}" "${yes[@]}"
fi
