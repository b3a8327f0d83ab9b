#!/usr/bin/env bash
# Set up everything and run the tests. Usage: bash scripts/run_tests.sh [pytest options]
REQUIREMENTS=requirements-test.txt source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
tests=("$root/tests")
for argument in "$@"; do # pytest takes the configured folder only where it is started in the clone
  if [ -e "${argument%%::*}" ]; then tests=(); fi
done
exec python -m pytest -c "$root/pyproject.toml" -n 2 --dist loadfile --no-loadscope-reorder "$@" ${tests[@]+"${tests[@]}"}
