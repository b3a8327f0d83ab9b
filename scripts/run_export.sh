#!/usr/bin/env bash
# Write a checkpoint as MINDIR. Usage: bash scripts/run_export.sh CHECKPOINT FILE.mindir [DEVICE_TARGET]
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
usage="usage: run_export.sh CHECKPOINT FILE.mindir [DEVICE_TARGET]"
exec python -m mindspore_coupalign export --checkpoint "${1:?$usage}" --output "${2:?$usage}" --device-target "${3:-auto}"
