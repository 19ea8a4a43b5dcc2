#!/usr/bin/env bash
# Check style and run the tests. Further arguments go to pytest, for instance: bash scripts/test.sh -m slow
set -euo pipefail
cd "$(dirname "$0")/.."
requirements=requirements-dev.txt
. scripts/setup.sh

style=0
ruff check . || style=$?
python -m pytest -n 2 "$@"
exit "$style"
