#!/usr/bin/env bash
# Train on one device. Usage: bash scripts/run_standalone_train.sh CONFIG [DEVICE_TARGET] [train options and key=value ...]
# Example: bash scripts/run_standalone_train.sh configs/refcoco_swin_b.yaml GPU data.root=/data/refer
config="${1:?usage: run_standalone_train.sh CONFIG [DEVICE_TARGET] [key=value ...]}"
device_target="${2:-auto}"
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
shift $(($# > 1 ? 2 : 1))
exec python -m mindspore_coupalign train --config "$config" --device-target "$device_target" "$@"
