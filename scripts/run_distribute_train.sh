#!/usr/bin/env bash
# Train on WORKER_NUM devices of one machine, or of several: scripts/launch_ranks.sh says how.
# Usage: bash scripts/run_distribute_train.sh WORKER_NUM CONFIG [DEVICE_TARGET] [train options and key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
source scripts/launch_ranks.sh
usage="usage: run_distribute_train.sh WORKER_NUM CONFIG [DEVICE_TARGET] [key=value ...]"
workers="${1:?$usage}"
config="${2:?$usage}"
target="${3:-auto}"
shift $(($# > 2 ? 3 : 2))
launch_ranks "$workers" train --config "$config" --device-target "$target" "$@"
