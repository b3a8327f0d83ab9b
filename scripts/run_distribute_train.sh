#!/usr/bin/env bash
# Train on WORKER_NUM devices of this machine, started by msrun.
# Usage: bash scripts/run_distribute_train.sh WORKER_NUM CONFIG [DEVICE_TARGET] [train options and key=value ...]
# MASTER_PORT (default 8118) must be free; each rank's log is in LOG_DIR (default runs/msrun_log), rank 0's on the screen.
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
usage="usage: run_distribute_train.sh WORKER_NUM CONFIG [DEVICE_TARGET] [key=value ...]"
workers="${1:?$usage}"
config="${2:?$usage}"
target="${3:-auto}"
shift $(($# > 2 ? 3 : 2))
exec msrun --worker_num="$workers" --local_worker_num="$workers" --master_port="${MASTER_PORT:-8118}" --join=True \
  --cluster_time_out=60 --log_dir="${LOG_DIR:-runs/msrun_log}" \
  python -m mindspore_coupalign train --config "$config" --device-target "$target" "$@"
