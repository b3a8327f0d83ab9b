#!/usr/bin/env bash
# Sourced by the other scripts: puts a `python` with the pinned packages and mindspore_coupalign on the PATH. The current
# folder does not change, so that relative paths stay valid. Environment variables:
#   VENV              virtual environment to make or use (default: .venv in the clone); none: use the Python that has
#                     MindSpore already, as on a server with CANN, and install nothing
#   COUPALIGN_PYTHON  the Python to use, or to make the environment with (default: searched for)
#   REQUIREMENTS      file of the packages to install (default: requirements.txt of the clone; requirements-gpu.txt if
#                     a script is called with GPU and CUDA_HOME is not set)
#   WHEELS            folder of wheels to install from, without a network (docs/ascend.md says how to fill it)
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

find_python() {
  local candidate
  for candidate in ${COUPALIGN_PYTHON:-} "$@"; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return
    fi
  done
  echo "error: no Python 3.10, 3.11 or 3.12 found; install one, or name it in COUPALIGN_PYTHON" >&2
  return 2
}

# Use a Python unchanged. msrun starts `python`, which not every one is called, and a link would not find its packages
take_python() {
  local python place
  python="$(find_python python python3 python3.11 python3.12 python3.10)" || return
  "$python" -m mindspore_coupalign.doctor.machine || return
  place="${XDG_CACHE_HOME:-$HOME/.cache}/mindspore_coupalign/python-$(cksum <<< "$python" | cut -d' ' -f1)"
  mkdir -p "$place"
  printf '#!/bin/sh\nexec "%s" "$@"\n' "$python" > "$place/python.$$"
  chmod +x "$place/python.$$"
  mv "$place/python.$$" "$place/python"
  PATH="$place:$(dirname "$python"):$PATH"
}

make_environment() {
  local requirements="${REQUIREMENTS:-}" venv="${VENV:-$root/.venv}" stamp python packages offline=()
  if [ -z "$requirements" ]; then
    requirements=requirements.txt
    if [ "${device_target:-}" = GPU ] && [ -z "${CUDA_HOME:-}" ]; then requirements=requirements-gpu.txt; fi
  fi
  [ -e "$requirements" ] && [ -n "${REQUIREMENTS:-}" ] || requirements="$root/$requirements"
  stamp="$venv/.installed-$(cat "$root/requirements.txt" "$requirements" | cksum | cut -d' ' -f1)"
  if [ ! -e "$stamp" ]; then
    if [ -n "${WHEELS:-}" ]; then
      [ -d "$WHEELS" ] || { echo "error: WHEELS=$WHEELS: no such folder" >&2; return 2; }
      offline=(--no-index --find-links "$WHEELS")
    fi
    python="$(find_python python3.11 python3.12 python3.10 python3 python)" || return
    echo "Installing the pinned packages into $venv with $("$python" --version) (MindSpore alone is about 400 MB)"
    "$python" -m venv "$venv" || return
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check ${offline[@]+"${offline[@]}"} -r "$requirements" || return
    packages="$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    [ -d "$packages" ] && echo "$root" > "$packages/mindspore_coupalign.pth" # importable from every folder once activated
    touch "$stamp"
  fi
  PATH="$(cd "$venv" && pwd)/bin:$PATH"
}

if [ "${VENV:-}" = none ]; then take_python; else make_environment; fi
export PATH
cuda="$(python -c 'from mindspore_coupalign import cuda; cuda.main()')" # CUDA's libraries from pip, where they are installed
eval "$cuda"
