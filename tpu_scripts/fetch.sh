#!/usr/bin/env bash
# Copies a run folder to this machine.
#
#   tpu_scripts/fetch.sh RUN_DIR [FOLDER] [--checkpoints] [--dry-run]      into FOLDER, by default runs/
#
# RUN_DIR is the run's --run_dir: gs://BUCKET/runs/NAME, or a folder on worker 0. From a bucket, only changed files are
# copied, and checkpoints only with --checkpoints.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"
begin "$@"
exclude=('--exclude=^checkpoints/.*|.*/training/.*')
! take_option --checkpoints || exclude=()
((${#ARGUMENTS[@]} >= 1)) || usage_error "no run folder; give RUN_DIR, see --help"
source=${ARGUMENTS[0]%/} folder=${ARGUMENTS[1]-runs}
ARGUMENTS=("${ARGUMENTS[@]:2}")
no_arguments
[[ $source != -* && $folder != -* ]] || usage_error "unknown argument $source; see --help"

case $source in
  gs://*)
    target=$folder/${source##*/}
    run mkdir -p "$target"
    run gcloud storage rsync "--project=$PROJECT" --recursive "${exclude[@]}" "$source" "$target"
    ;;
  *)
    # A relative --run_dir is relative to the clone, where tpt was started.
    [[ $source == /* ]] || source=tpt_jax/$source
    run mkdir -p "$folder"
    run gcloud compute tpus tpu-vm scp "$(first_slice):$source" "$folder" \
      "${LOCATION_FLAGS[@]}" --quiet --worker=0 --recurse
    ;;
esac
