#!/usr/bin/env bash
# Write a checkpoint as MINDIR. Usage: bash scripts/run_export.sh CHECKPOINT FILE.mindir [DEVICE_TARGET]
usage="usage: run_export.sh CHECKPOINT FILE.mindir [DEVICE_TARGET]"
checkpoint="${1:?$usage}"
file="${2:?$usage}"
device_target="${3:-auto}"
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
exec python -m mindspore_coupalign export --checkpoint "$checkpoint" --output "$file" --device-target "$device_target"
