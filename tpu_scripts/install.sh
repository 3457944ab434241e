#!/usr/bin/env bash
# Installs REPOSITORY at REF on every VM of the TPU, and checks that JAX sees the chips of all hosts and slices.
#
#   tpu_scripts/install.sh [--dry-run]
#
# Run it again to update the VMs to the current REF.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"
begin "$@"
no_arguments

# Rerunning these commands completes an interrupted clone. The worker.sh in the clone does the rest.
# shellcheck disable=SC2016
CLONE='set -eu; git init --quiet tpt_jax; cd tpt_jax; git fetch --quiet --depth=1 "$1" "$2"
git checkout --quiet --force --detach FETCH_HEAD; exec bash tpu_scripts/worker.sh install'

require_idle
on_all_workers bash -c "${CLONE//$'\n'/; }" install "$REPOSITORY" "$REF"
on_all_workers bash "$WORKER_SCRIPT" check "$NUM_SLICES"
