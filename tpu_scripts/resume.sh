#!/usr/bin/env bash
# Runs a tpt command to completion: creates the TPU, installs, launches, and starts over after each preemption.
#
#   tpu_scripts/resume.sh [--poll_seconds 60] [--max_failures 3] [--dry-run] -- run --config FILE --run_dir FOLDER
#
# Exits with 0 when the command is done, with 2 if tpt reports a user error, and with 1 after max_failures failures of
# tpt in a row or five failures of the steps here. If this script is interrupted, the command keeps running; start the
# script again at any time. FOLDER must outlive the VMs, as gs://BUCKET/runs/NAME does. --dry-run prints each step once.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"
begin "$@"
max_failures=3
take_option --poll_seconds POLL_SECONDS || true
take_option --max_failures max_failures || true
[[ $max_failures =~ ^[1-9][0-9]*$ ]] || usage_error "--max_failures ($max_failures) must be 1 or more"
no_arguments
need_command

show_log() { on_worker "$(first_slice)" 0 bash "$WORKER_SCRIPT" log 30 || true; }
create() { "$SCRIPT_DIR/create.sh" --poll_seconds "$POLL_SECONDS" && step_failures=0; }
launch() {
  launched=false
  "$SCRIPT_DIR/install.sh" && "$SCRIPT_DIR/launch.sh" -- "${COMMAND[@]}" && launched=true step_failures=0
}

if $DRY_RUN; then
  "$SCRIPT_DIR/create.sh" --dry-run
  "$SCRIPT_DIR/install.sh" --dry-run
  "$SCRIPT_DIR/launch.sh" --dry-run -- "${COMMAND[@]}"
  "$SCRIPT_DIR/status.sh" --dry-run
  "$SCRIPT_DIR/delete.sh" --yes --dry-run
  exit
fi

step_failures=0 # failed steps since the TPU was last ready, or the command last started or seen running
failures=0      # consecutive failed runs of tpt
launched=false  # by this script: an earlier failure may have been fixed since

# step MESSAGE COMMAND...: counts a failure; the next iteration checks the TPU again, since it may be gone.
step() {
  progress "$1"
  ! "${@:2}" || return 0
  ((++step_failures < 5)) || { progress "$1: failed five times; giving up" && exit 1; }
  progress "$1: failed, $step_failures of 5"
}

relaunch() { step "$1; installing and launching" launch; }

while true; do
  state=$(retry tpu_state) || exit
  case $state in
    none*) step "$NAME does not exist; creating it" create ;;
    waiting*) step "$NAME is $state; waiting" create ;;
    lost*)
      failures=0
      step "$NAME is $state; deleting it" "$SCRIPT_DIR/delete.sh" --yes
      ;;
    ready*)
      if ! states=$(worker_states "${COMMAND[@]}"); then
        step "the VMs do not answer" false
      else
        case $(run_state "$states") in
          running) step_failures=0 launched=true ;;
          'done') progress "done" && exit 0 ;;
          absent) relaunch "nothing is running" ;;
          interrupted) failures=0 && relaunch "the command was interrupted" ;;
          other) usage_error "another command is running on $NAME; see status.sh, or stop it with launch.sh --stop" ;;
          mistake)
            if $launched; then
              show_log
              usage_error "tpt reported a user error (exit status 2); see its log above"
            fi
            relaunch "an earlier launch ended with a user error"
            ;;
          failed)
            ! $launched || ((++failures < max_failures)) || {
              show_log
              progress "tpt failed $failures times in a row; giving up"
              exit 1
            }
            relaunch "the command failed ($failures of $max_failures)"
            ;;
        esac
      fi
      ;;
  esac
  sleep "$POLL_SECONDS"
done
