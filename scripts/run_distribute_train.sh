#!/usr/bin/env bash
# Train on WORKER_NUM devices of one machine, or of several: scripts/launch_ranks.sh says how.
# Usage: bash scripts/run_distribute_train.sh WORKER_NUM CONFIG [DEVICE_TARGET] [train options and key=value ...]
usage="usage: run_distribute_train.sh WORKER_NUM CONFIG [DEVICE_TARGET] [key=value ...]"
workers="${1:?$usage}"
config="${2:?$usage}"
device_target="${3:-auto}"
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
source "$root/scripts/launch_ranks.sh"
shift $(($# > 2 ? 3 : 2))
launch_ranks "$workers" train --config "$config" --device-target "$device_target" "$@"
