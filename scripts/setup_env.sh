#!/usr/bin/env bash
# Make the virtual environment VENV (default .venv) with the pinned packages of REQUIREMENTS (default requirements.txt).
# Sourced by the other scripts; needs a Python 3.10-3.12 (COUPALIGN_PYTHON names one, otherwise it is looked for).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV="${VENV:-.venv}"
REQUIREMENTS="${REQUIREMENTS:-requirements.txt}"
stamp="$VENV/.installed-$(cat requirements.txt "$REQUIREMENTS" | cksum | cut -d' ' -f1)"
if [ ! -e "$stamp" ]; then
  python=""
  for candidate in ${COUPALIGN_PYTHON:-} python3.11 python3.12 python3.10 python3 python; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null; then
      python="$candidate"
      break
    fi
  done
  if [ -z "$python" ]; then
    echo "error: no Python 3.10, 3.11 or 3.12 found; install one, or name it in COUPALIGN_PYTHON" >&2
    exit 2
  fi
  echo "Installing the pinned packages into $VENV with $("$python" --version) (MindSpore alone is about 400 MB)"
  "$python" -m venv "$VENV"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -r "$REQUIREMENTS"
  touch "$stamp"
fi
export PATH="$(cd "$VENV" && pwd)/bin:$PATH"
