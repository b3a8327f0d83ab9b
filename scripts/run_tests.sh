#!/usr/bin/env bash
# Set up everything and run the tests. Usage: bash scripts/run_tests.sh [pytest options]
REQUIREMENTS=requirements-test.txt source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
exec python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
