#!/usr/bin/env bash
# Starts a tpt command on every VM of the TPU; it keeps running when the connection ends.
#
#   tpu_scripts/launch.sh [--follow] [--dry-run] -- run --config FILE --run_dir gs://BUCKET/runs/NAME
#   tpu_scripts/launch.sh --follow      shows worker 0's log until the command ends; exits with its status
#   tpu_scripts/launch.sh --stop        sends SIGTERM to tpt on every VM: it saves and exits with 75
#
# The arguments after -- are tpt's; gs://BUCKET in them stands for the bucket in tpu.env. Only one command can run at a
# time. Its log is ~/tpt_run/log on each VM.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"
begin "$@"
follow=false
! take_option --follow || follow=true
if take_option --stop; then
  no_arguments
  on_all_workers bash "$WORKER_SCRIPT" stop
  exit
fi
no_arguments
$follow || need_command

if ((${#COMMAND[@]})); then
  require_idle
  if ! on_all_workers bash "$WORKER_SCRIPT" start "${COMMAND[@]}"; then
    progress "could not start on every VM, stopping it on the others; has install.sh been run?"
    on_all_workers bash "$WORKER_SCRIPT" stop || true
    exit 1
  fi
  progress "started on $NAME"
fi
! $follow || on_worker "$(first_slice)" 0 bash "$WORKER_SCRIPT" follow
