#!/usr/bin/env bash
# Run once on a Cloud TPU VM, in a clone: a virtual environment with the TPU build in .venv, and a look at the chips.
set -euo pipefail
cd "$(dirname "$0")/.."

python3 -m venv .venv
# shellcheck disable=SC1091
source .venv/bin/activate
pip install --quiet -e '.[tpu]'
python - <<'EOF'
import sys

import jax

devices = jax.devices()
if devices[0].platform != "tpu":
    sys.exit(f"no TPU here: JAX sees {devices}; run this on a Cloud TPU VM")
print(f"{len(devices)} chips of kind {devices[0].device_kind}, {jax.local_device_count()} of them on this host")
EOF
echo "ready: source .venv/bin/activate, then tpt run --config configs/gemma2_2b_gsm8k.yaml --model.path FOLDER"
