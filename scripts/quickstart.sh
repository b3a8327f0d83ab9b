#!/usr/bin/env bash
# From a fresh clone to a trained CoupAlign: environment, RefShapes, training from scratch, scores, images, MINDIR, prediction.
# Writes to data/refshapes and runs/ of the current folder. About twelve minutes on two CPU cores after the installation.
# Usage: bash scripts/quickstart.sh [SEED] [key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
seed="${1:-0}"
[ $# -gt 0 ] && shift
data=data/refshapes
run="runs/quickstart-seed$seed"
coupalign() { python -m mindspore_coupalign "$@"; }
began=$SECONDS

echo "== 1/6 RefShapes: generate the data set"
coupalign make-shapes --output "$data"
echo "== 2/6 train from scratch"
resume=()
compgen -G "$run/last*.safetensors" > /dev/null && resume=(--resume "$run") # a second start resumes the first one
coupalign train --config "$root/configs/refshapes_tiny.yaml" --output "$run" ${resume[@]+"${resume[@]}"} train.seed="$seed" "$@"
# In parallel with the evaluation: loading and compiling use one core only
products() {
  echo "== 4/6 images of the best, worst and random predictions"
  coupalign show --checkpoint "$run/best.safetensors" --split val --samples 200 --overwrite --output "$run/pictures"
  echo "== 5/6 export"
  coupalign export --checkpoint "$run/best.safetensors" --output "$run/coupalign.mindir"
  echo "== 6/6 one prediction from the MINDIR file"
  # A sentence of val, of a category that ten minutes teach: corners, not "second from the left" (docs/results.md)
  coupalign predict --mindir "$run/coupalign.mindir" --image "$data/images/refshapes/val_000000.png" \
    --text "bottom left circle" --overwrite --output "$run/prediction"
}
echo "== 3/6 evaluate, val once more with the sentences shuffled among the samples (4 to 6 meanwhile)"
set -m # its own process group, to end all of it
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
