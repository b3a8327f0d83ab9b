#!/usr/bin/env bash
# Wheel and source archive, each complete: the wheel, built from the archive, is installed into an empty environment and
# used from another folder. Usage: bash .ci/package.sh PYTHON (of an environment with pip)
set -euo pipefail
cd "$(dirname "$0")/.."
python="$(cd "$(dirname "$1")" && pwd)/$(basename "$1")"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
checkpoint="$PWD/tests/golden/first_release.safetensors"

git ls-files -z --cached | xargs -0 cp --parents -t "$work" # what is committed, without the leftovers of other builds
"$python" -m pip install --quiet --disable-pip-version-check build
cd "$work"
"$python" -m build --outdir dist > build.log 2>&1 || { tail -n 20 build.log >&2; exit 1; } # the wheel from the archive
"$python" -m venv empty
empty/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl
mkdir elsewhere && cd elsewhere
coupalign() { ../empty/bin/coupalign "$@"; }
coupalign --help > /dev/null
coupalign make-shapes --output shapes --train 2 --val 1 --testA 1 --testB 1 > /dev/null
coupalign describe --config refshapes_tiny | tail -n 1
coupalign predict --checkpoint "$checkpoint" --image "$(ls "$PWD"/shapes/images/refshapes/*.png | head -n 1)" \
  --text "the red circle" --output out
coupalign predict --model refshapes --image shapes/images/refshapes --text "the red circle" --output shipped
ls out/*_mask.png shipped/*_mask.png shipped/predictions.jsonl > /dev/null
echo "package: $(cd ../dist && ls -x) installed and used"
