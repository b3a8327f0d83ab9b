# Sourced. `launch_ranks WORKER_NUM COMMAND ...` runs `python -m mindspore_coupalign COMMAND ...` on that many devices, by msrun.
# Each rank's log and msrun's are in LOG_DIR (default runs/msrun_log); rank 0's output is also printed. A rank that dies or
# hangs ends the job, and the last line names it. After SIGTERM, SIGHUP or Ctrl-C to the script, all ranks save and stop; a
# second signal, more than 2 s later, kills those of this machine. Two jobs must not share a port.
# Several machines: run the script on each of them with WORKER_NUM the number of all devices and these variables:
#   LOCAL_WORKERS  devices of each machine, the same on all (default: WORKER_NUM, one machine)
#   NODE_RANK      0 on the machine that the others connect to, 1, 2, … on the others
#   MASTER_ADDR    address of machine 0;   MASTER_PORT  a free port there (default 8118)
#   CLUSTER_TIMEOUT  seconds in which all ranks must have started (default 60, on several machines 600)
#   LOG_DIR        a folder that all machines share; otherwise a rank that dies or hangs on another one is not named here
launch_ranks() {
  local workers="$1" logs="${LOG_DIR:-runs/msrun_log}" timeout=60 status=0 nodes=() msrun=(msrun)
  shift
  mkdir -p "$logs"
  exec 9>"$logs/lock-${NODE_RANK:-0}"
  if ! flock -n 9; then
    echo "error: $logs: another job has its logs here; set LOG_DIR and MASTER_PORT for this one" >&2
    return 2
  fi
  # files of an earlier job; on the other machines this job's own files may be here already
  if [ "${NODE_RANK:-0}" = 0 ]; then
    rm -f "$logs"/rank_*.json "$logs"/asked_to_stop*
  else
    find "$logs" -maxdepth 1 \( -name 'rank_*.json' -o -name 'asked_to_stop*' \) -mmin +1 -delete
  fi
  export COUPALIGN_RANKS="$logs" COUPALIGN_LOCAL_WORKERS="${LOCAL_WORKERS:-$workers}"
  if [ "$COUPALIGN_LOCAL_WORKERS" != "$workers" ]; then
    timeout=600
    nodes=(--master_addr="${MASTER_ADDR:?address of machine 0}" --node_rank="${NODE_RANK:?number of this machine}")
  fi
  command -v msrun > /dev/null || msrun=(python -m mindspore.parallel.cluster.run) # as after pip install --user
  # msrun kills its ranks when it is interrupted: it gets its own session, and the ranks are asked to save and stop
  setsid "${msrun[@]}" --worker_num="$workers" --local_worker_num="$COUPALIGN_LOCAL_WORKERS" ${nodes[@]+"${nodes[@]}"} \
    --master_port="${MASTER_PORT:-8118}" --join=True --cluster_time_out="${CLUSTER_TIMEOUT:-$timeout}" --log_dir="$logs" --tail_worker_log=0 \
    python -m mindspore_coupalign "$@" 2>"$logs/msrun${NODE_RANK:+_$NODE_RANK}.log" &
  local job=$!
  trap 'python -m mindspore_coupalign.distributed.launcher --stop "$logs" 15 || true' TERM
  trap 'python -m mindspore_coupalign.distributed.launcher --stop "$logs" 1 || true' HUP
  trap 'python -m mindspore_coupalign.distributed.launcher --stop "$logs" 2 || true' INT
  while :; do
    status=0
    wait "$job" || status=$?
    kill -0 "$job" 2>/dev/null || break # else a signal ended the wait
  done
  trap - TERM INT HUP
  wait "$job" && status=0 || status=$? # after a signal, the previous status is not that of the job
  python -m mindspore_coupalign.distributed.launcher "$logs" "$status"
}
