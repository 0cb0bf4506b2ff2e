#!/usr/bin/env bash
# Set up what is needed and run the tests.
#
#   bash scripts/test.sh                  the default tier (a fixed sample of each long list)
#   bash scripts/test.sh --exhaustive     all tests, full counts
#
# Further arguments go to pytest, e.g. bash scripts/test.sh tests/utils -k config
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh --dev
export HF_HUB_OFFLINE=1
if [ "${1:-}" = --exhaustive ]; then
    shift
    exec .venv/bin/python -m pytest --run-exhaustive "$@"
fi
exec .venv/bin/python -m pytest "$@"
