#!/usr/bin/env bash
# Shows the state of the TPU, of the command on each VM, and of the run as a whole.
#
#   tpu_scripts/status.sh [--logs] [--dry-run]      --logs adds the end of worker 0's log
#
# The state on a VM is running, exited:STATUS, died (no exit status) or absent (nothing was started). The state of the
# run is running, done, interrupted (resume it with the same command), mistake (exit status 2: a user error), failed or
# absent.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"
begin "$@"
logs=false
! take_option --logs || logs=true
no_arguments

state=$(tpu_state) || exit
$DRY_RUN || echo "$NAME: $state"
[[ $state == ready* ]] || exit 0
# shellcheck disable=SC2119
states=$(worker_states) || exit
$DRY_RUN || printf '%s\n' "$states" "run: $(run_state "$states")"
! $logs || on_worker "$(first_slice)" 0 bash "$WORKER_SCRIPT" log 100
