#!/usr/bin/env bash
# Score a checkpoint, on WORKER_NUM devices (environment, default 1).
# Usage: bash scripts/run_eval.sh CHECKPOINT "SPLIT ..." [DEVICE_TARGET] [evaluate options and key=value ...]
# Example: bash scripts/run_eval.sh runs/refcoco_swin_b/best.safetensors "val testA testB" GPU --output results.json
usage='usage: run_eval.sh CHECKPOINT "SPLIT ..." [DEVICE_TARGET] [key=value ...]'
checkpoint="${1:?$usage}"
read -ra splits <<< "${2:?$usage}"
device_target="${3:-auto}"
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
source "$root/scripts/launch_ranks.sh"
shift $(($# > 2 ? 3 : 2))
command=(evaluate --checkpoint "$checkpoint" --device-target "$device_target" "$@" --split "${splits[@]}")
if [ "${WORKER_NUM:-1}" != 1 ]; then
  launch_ranks "$WORKER_NUM" "${command[@]}"
else
  exec python -m mindspore_coupalign "${command[@]}"
fi
