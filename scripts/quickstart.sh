#!/usr/bin/env bash
# From nothing to a trained CoupAlign: environment, RefShapes, training from scratch, scores, pictures, MINDIR, prediction.
# All of it lands in data/refshapes and runs/ of the current folder. About twelve minutes on two CPU cores after the install.
# Usage: bash scripts/quickstart.sh [SEED] [key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
seed="${1:-0}"
[ $# -gt 0 ] && shift
data=data/refshapes
run="runs/quickstart-seed$seed"
coupalign() { python -m mindspore_coupalign "$@"; }
began=$SECONDS

echo "== 1/6 RefShapes: draw the embedded data set"
coupalign make-shapes --output "$data"
echo "== 2/6 train from scratch"
resume=()
compgen -G "$run/last*.safetensors" > /dev/null && resume=(--resume "$run") # a second start goes on where the first one stopped
coupalign train --config "$root/configs/refshapes_tiny.yaml" --output "$run" ${resume[@]+"${resume[@]}"} train.seed="$seed" "$@"
# Side by side with the scores: what loads and compiles on one core leaves the other idle
products() {
  echo "== 4/6 pictures of the best, worst and random predictions"
  coupalign show --checkpoint "$run/best.safetensors" --split val --samples 200 --overwrite --output "$run/pictures"
  echo "== 5/6 export"
  coupalign export --checkpoint "$run/best.safetensors" --output "$run/coupalign.mindir"
  echo "== 6/6 one prediction from the MINDIR file"
  # A sentence of val, of a category that ten minutes teach: corners, not "second from the left" (docs/results.md)
  coupalign predict --mindir "$run/coupalign.mindir" --image "$data/images/refshapes/val_000000.png" \
    --text "bottom left circle" --overwrite --output "$run/prediction"
}
echo "== 3/6 evaluate, val once more with the sentences shuffled among the samples (4 to 6 meanwhile)"
set -m # a process group of its own, to end all of it
products > "$run/products.txt" 2>&1 &
set +m
trap 'kill -- -$! 2> /dev/null || true' EXIT
coupalign evaluate --checkpoint "$run/best.safetensors" --split val testA testB --shuffled val --output "$run/results.json"
status=0
wait $! || status=$?
trap - EXIT
cat "$run/products.txt"
[ "$status" = 0 ] || exit "$status"
echo "Done in $(((SECONDS - began) / 60)) min $(((SECONDS - began) % 60)) s after the install. Look into $run"
