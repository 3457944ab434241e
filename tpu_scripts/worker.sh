#!/usr/bin/env bash
# Runs on each TPU VM, in the clone created by install.sh; the other scripts call it over ssh.
#
#   worker.sh install            creates a virtual environment with the TPU build of JAX
#   worker.sh check NUM_SLICES   checks that JAX sees the chips of all hosts; runs on all hosts at once
#   worker.sh start WORD...      starts `tpt WORD...`, which keeps running when the connection ends
#   worker.sh status [WORD...]   prints `worker HOST STATE`; STATE is running, exited:STATUS, died or absent. A command
#                                other than WORD... counts as `other` while it runs, and as absent once it has ended
#   worker.sh stop               sends SIGTERM: tpt saves and exits
#   worker.sh log LINES          shows the end of the log
#   worker.sh follow             shows the log until the command ends; exits with its status
set -euo pipefail
cd "$(dirname "$0")/.."

STATE=$HOME/tpt_run

install() {
  # The VM's Python may be too old or lack venv; uv needs neither.
  python3 -m pip install --quiet --user uv 2>/dev/null ||
    python3 -m pip install --quiet --user --break-system-packages uv
  local uv
  uv=$(python3 -m site --user-base)/bin/uv
  "$uv" venv --quiet --allow-existing --python '>=3.11,<3.14' .venv
  "$uv" pip install --quiet --python .venv -e '.[tpu]'
}

check() {
  timeout 600 .venv/bin/python - "$1" <<'PYTHON'
import sys

import jax

jax.distributed.initialize()
devices = jax.devices()
if devices[0].platform != "tpu":
    sys.exit(f"no TPU: JAX sees {devices}")
slices = len({getattr(device, "slice_index", 0) for device in devices})
if slices != int(sys.argv[1]):
    sys.exit(f"JAX sees {slices} of {sys.argv[1]} slices; were they created together, by create.sh?")
print(
    f"host {jax.process_index()}: {jax.local_device_count()} of {len(devices)} chips of kind {devices[0].device_kind}, "
    f"{slices} slices"
)
PYTHON
}

# Checks that the recorded process is still this script: process ids are reused after a reboot.
running() {
  [[ -f $STATE/pid ]] && tr '\0' ' ' 2>/dev/null <"/proc/$(<"$STATE/pid")/cmdline" | grep -q 'worker\.sh supervise'
}

same_command() { [[ ! -f $STATE/command || "$(printf '%q ' "$@")" == "$(<"$STATE/command")" ]]; }

status() {
  local state=died same=true
  (($# == 0)) || same_command "$@" || same=false
  if running; then
    state=running
    $same || state=other
  elif [[ ! -f $STATE/pid ]] || ! $same; then
    state=absent
  elif [[ -s $STATE/exit_status ]]; then
    state=exited:$(<"$STATE/exit_status")
  fi
  echo "worker $(hostname) $state"
}

start() {
  if running; then
    # If ssh loses its connection just after a start, gcloud repeats the command.
    ! same_command "$@" || return 0
    echo "another command is running: $(<"$STATE/command")" >&2
    return 3
  fi
  mkdir -p "$STATE"
  rm -f "$STATE/exit_status"
  printf '%q ' "$@" >"$STATE/command"
  echo "--- $(date -Is) tpt $(<"$STATE/command")" >>"$STATE/log"
  setsid nohup bash tpu_scripts/worker.sh supervise "$@" </dev/null >>"$STATE/log" 2>&1 &
  echo $! >"$STATE/pid"
  # `running` is false until setsid has executed worker.sh.
  until running || [[ -s $STATE/exit_status ]] || ! kill -0 $! 2>/dev/null; do sleep 0.01; done
}

supervise() {
  local code=0
  trap : TERM # a VM shutdown signals every process: outlive tpt, to record its exit status
  .venv/bin/tpt "$@" || code=$?
  echo "$code" >"$STATE/exit_status"
}

stop() {
  ! running || pkill -TERM --parent "$(<"$STATE/pid")" # only tpt, which still needs its child processes
}

log() { [[ ! -f $STATE/log ]] || tail -n "$1" "$STATE/log"; }

follow() {
  [[ -f $STATE/pid ]] || { echo "nothing was started on this VM" >&2 && return 1; }
  tail -n 20 --follow --sleep-interval 0.1 --pid="$(<"$STATE/pid")" "$STATE/log"
  [[ ! -s $STATE/exit_status ]] || return "$(<"$STATE/exit_status")"
}

"$@"
