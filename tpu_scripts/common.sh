# shellcheck shell=bash
# Shared by the scripts: settings, --help and --dry-run, commands on the VMs, the state of the TPU and of the run.
# Each script sources this file and then calls `begin "$@"`.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "bash 4.4 or newer is needed; this is $BASH_VERSION" >&2
  exit 2
fi

SCRIPT_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
WORKER_SCRIPT=tpt_jax/tpu_scripts/worker.sh # relative to the home folder on a VM
REQUIRED_KEYS=(PROJECT ZONE NAME ACCELERATOR_TYPE RUNTIME_VERSION NUM_SLICES PROVISIONING BUCKET REPOSITORY REF)
DRY_RUN=false
POLL_SECONDS=60     # between two checks of the TPU
ARGUMENTS=() # the arguments before --, without --help and --dry-run
COMMAND=()   # the arguments after --
exec 3>&1    # stdout for --dry-run, also inside $(...)

# key, pattern, description of a valid value
RULES='
PROJECT          ^([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]$ the id of a Google Cloud project, like my-project-123
ZONE             ^[a-z]+-[a-z]+[0-9]+-[a-z]$                   a zone that has the chips, like us-central2-b
NAME             ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$             a name of lowercase letters, digits and hyphens, like tpt
ACCELERATOR_TYPE ^v[0-9]+[a-z]*-[0-9]+$                        a chip type and a size, like v5litepod-16 or v6e-8
RUNTIME_VERSION  ^(v[0-9]|tpu-)[a-z0-9.-]+$                    the image of the VMs, like v2-alpha-tpuv5-lite
NUM_SLICES       ^[1-9][0-9]*$                                 a number of slices, 1 or more
PROVISIONING     ^(on-demand|spot|queued|queued-spot)$         on-demand, spot, queued or queued-spot
BUCKET           ^gs://[a-z0-9][a-z0-9._-]+[a-z0-9]$           a bucket, like gs://my-bucket
REPOSITORY       ^(https://|ssh://|git@)[^[:space:]]+$         a URL to clone, like https://github.com/NAME/tpt_jax
REF              ^[A-Za-z0-9][A-Za-z0-9._/-]*$                 a branch, a tag or a full commit id, like main
CLUSTER          ^[a-z][a-z0-9-]*$                             the name of a GKE cluster, like my-cluster
IMAGE            ^[a-z0-9][A-Za-z0-9._/:@-]*$                  an image with Python 3.11 to 3.13, like python:3.12
'

progress() { $DRY_RUN || printf '%(%T)T %s\n' -1 "$*" >&2; }

# Reports a user error in one line, without characters that a terminal would obey.
usage_error() {
  local message="${0##*/}: $*"
  printf '%s\n' "${message//[[:cntrl:]]/?}" >&2
  exit 2
}

# Quotes words for a shell, only where needed. More readable than %q, which is used only for control characters, since
# single quotes cannot keep those on one line.
quote() {
  local word line='' apostrophe="'\\''"
  for word in "$@"; do
    case $word in
      *[[:cntrl:]]*) printf -v word %q "$word" ;;
      '' | *[!A-Za-z0-9_./:=@%+,-]*) word="'${word//"'"/"$apostrophe"}'" ;;
    esac
    line+="$word "
  done
  printf %s "${line% }"
}

# Runs a command, or with --dry-run prints it in shell syntax.
run() {
  if $DRY_RUN; then printf '%s\n' "$(quote "$@")" >&3; else "$@"; fi
}

# begin "$@": handles the options common to all scripts, and sets the validated settings as variables.
begin() {
  while (($#)); do
    case $1 in
      --help)
        sed -n '/^#!/d; /^#/!q; s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
      --dry-run) DRY_RUN=true ;;
      --)
        COMMAND=("${@:2}")
        break
        ;;
      *) ARGUMENTS+=("$1") ;;
    esac
    shift
  done
  read_settings "${TPU_ENV:-$SCRIPT_DIR/tpu.env}"
  COMMAND=("${COMMAND[@]//gs:\/\/BUCKET/$BUCKET}") # bucket names are lowercase, so this cannot match part of one
  ARGUMENTS=("${ARGUMENTS[@]//gs:\/\/BUCKET/$BUCKET}")
  LOCATION_FLAGS=("--project=$PROJECT" "--zone=$ZONE")
  STDERR_FILE=$(mktemp) # gcloud's stderr; its last line is shown if gcloud fails
  trap 'rm -f "$STDERR_FILE"' EXIT
}

read_settings() {
  local file=$1 line key value rule hint known=()
  [[ -f $file ]] ||
    usage_error "$file not found; copy $SCRIPT_DIR/tpu.env.example to it and fill it in, or set TPU_ENV=FILE"
  while read -r key rule hint; do
    [[ -z $key ]] || known+=("$key")
  done <<<"$RULES"
  unset "${known[@]}" # settings come from the file only, not from the environment
  while IFS= read -r line || [[ -n $line ]]; do
    [[ ! $line =~ ^[[:space:]]*(#|$) ]] || continue
    [[ $line =~ ^([A-Za-z_]+)=(.*)$ ]] || usage_error "$file: '$line' is not KEY=VALUE"
    key=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
    [[ " ${known[*]} " == *" $key "* ]] || usage_error "$file: unknown key $key; known are ${known[*]}"
    value=${value%"${value##*[![:space:]]}"}
    [[ ! $value =~ ^\"(.*)\"$|^\'(.*)\'$ ]] || value=${BASH_REMATCH[1]}${BASH_REMATCH[2]}
    printf -v "$key" %s "$value"
  done <"$file"
  while read -r key rule hint; do
    [[ " ${REQUIRED_KEYS[*]} " == *" $key "* ]] || continue
    value=${!key-}
    [[ -n $value ]] || usage_error "$file: $key is missing; set $key= to $hint"
    [[ $value != *YOUR_* ]] || usage_error "$file: $key ($value) is still the template's placeholder; write $hint"
    [[ $value =~ $rule ]] || usage_error "$file: $key ($value) is malformed; write $hint"
  done <<<"$RULES"
  [[ " ${REQUIRED_KEYS[*]} " != *" PROVISIONING "* || $NUM_SLICES == 1 || $PROVISIONING == queued* ]] ||
    usage_error "$file: PROVISIONING ($PROVISIONING) allows one slice, not $NUM_SLICES; write queued or queued-spot"
}

# take_option --option [VARIABLE]: removes the option from ARGUMENTS and, given VARIABLE, stores the number after it.
# Returns 1 if the option is not there.
take_option() {
  local index
  for index in "${!ARGUMENTS[@]}"; do
    [[ ${ARGUMENTS[index]} == "$1" ]] || continue
    if (($# == 2)); then
      [[ ${ARGUMENTS[index + 1]-} =~ ^[0-9]+(\.[0-9]+)?$ ]] ||
        usage_error "$1 (${ARGUMENTS[index + 1]-}) must be a number"
      printf -v "$2" %s "${ARGUMENTS[index + 1]}"
      unset 'ARGUMENTS[index + 1]'
    fi
    unset 'ARGUMENTS[index]'
    ARGUMENTS=("${ARGUMENTS[@]}")
    return
  done
  return 1
}

no_arguments() {
  ((${#ARGUMENTS[@]} == 0)) || usage_error "unknown argument ${ARGUMENTS[0]}; see --help"
}

need_command() {
  ((${#COMMAND[@]})) || usage_error "no command; give tpt's arguments after --, as in: ${0##*/} -- run --config FILE"
}

queued() { [[ $PROVISIONING == queued* ]]; }

# The names of the TPU VMs, one per slice. With a node prefix the API numbers them from 0 (tpu v2, MultisliceParams).
slices() {
  local index
  if ((NUM_SLICES == 1)); then echo "$NAME"; else
    for ((index = 0; index < NUM_SLICES; index++)); do echo "$NAME-$index"; done
  fi
}

first_slice() { slices | head -n 1; }

# on_worker SLICE WORKER WORD...: runs the words as one command on the VM; special characters are quoted.
on_worker() {
  run gcloud compute tpus tpu-vm ssh "$1" "${LOCATION_FLAGS[@]}" --quiet --worker="$2" --command="$(quote "${@:3}")"
}

# Runs a command on every worker of every slice at the same time: libtpu waits until all of them have started.
on_all_workers() {
  local slice pid pids=() status=0
  for slice in $(slices); do
    on_worker "$slice" all "$@" &
    pids+=($!)
    ! $DRY_RUN || wait $! # so that a dry run prints the commands in order
  done
  for pid in "${pids[@]}"; do
    wait "$pid" || status=$?
  done
  return "$status"
}

# describe KIND NAME FIELD: prints the field or NOT_FOUND; on failure, reports the error and returns 1.
describe() {
  if ! run gcloud compute tpus "$1" describe "$2" "${LOCATION_FLAGS[@]}" "--format=value($3)" 2>"$STDERR_FILE"; then
    grep -q NOT_FOUND "$STDERR_FILE" || { progress "gcloud: $(tail -n 1 "$STDERR_FILE")" && return 1; }
    echo NOT_FOUND
  fi
}

# retry COMMAND...: tries up to five times, POLL_SECONDS apart; the command reports its own error.
retry() {
  local attempt
  for attempt in 1 2 3 4 5; do
    ! "$@" || return 0
    progress "attempt $attempt of 5 failed"
    sleep "$POLL_SECONDS"
  done
  return 1
}

# The state of the TPU in two words: ready, waiting, lost or none, then gcloud's state.
tpu_state() {
  local slice state
  if queued; then
    state=$(describe queued-resources "$NAME" state.state) || return
    case $state in
      ACTIVE | '') ;; # '' in a dry run
      NOT_FOUND) echo "none $state" && return ;;
      FAILED | SUSPENDED) echo "lost $state" && return ;;
      *) echo "waiting $state" && return ;;
    esac
  fi
  for slice in $(slices); do
    state=$(describe tpu-vm "$slice" state) || return
    case $state in
      READY | '') ;;
      NOT_FOUND) if queued; then echo "lost $state"; else echo "none $state"; fi && return ;;
      PREEMPTED | TERMINATED | STOPPED | HIDDEN) echo "lost $state" && return ;;
      *) echo "waiting $state" && return ;;
    esac
  done
  echo "ready READY"
}

# One line per worker with the state of the given command, or of any command if none is given: see worker.sh.
# shellcheck disable=SC2120
worker_states() {
  local script="test -f $WORKER_SCRIPT && exec bash $WORKER_SCRIPT status \"\$@\"; echo \"worker \$(hostname) absent\""
  on_all_workers bash -c "$script" status "$@" 2>"$STDERR_FILE" || {
    progress "ssh: $(tail -n 1 "$STDERR_FILE")"
    return 1
  }
}

# Summarizes all workers' lines in one word: other, running, done, mistake, interrupted, failed or absent. A lost host
# takes the others down with arbitrary exit statuses, so those count only if every host has one.
run_state() {
  local states
  states=$(awk '$1 == "worker" { printf " %s ", $3 }' <<<"$1")
  case $states in
    *' other '*) echo other ;;
    *' running '*) echo running ;;
    *' exited:2 '*) echo mistake ;;
    *' exited:75 '* | *' died '*) echo interrupted ;;
    *' exited:'*' absent '* | *' absent '*' exited:'*) echo interrupted ;;
    *' absent '* | '') echo absent ;;
    *' exited:'[1-9]*) echo failed ;;
    *) echo 'done' ;;
  esac
}

require_idle() {
  local states
  # shellcheck disable=SC2119
  states=$(worker_states) || exit
  [[ $(run_state "$states") != running ]] ||
    usage_error "a command is already running on $NAME; see status.sh, or stop it with launch.sh --stop"
}
