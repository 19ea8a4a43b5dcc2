#!/usr/bin/env bash
# Check the style and run the tests. Arguments are passed to pytest, for example: bash scripts/test.sh -m slow
[ -n "${BASH_VERSION:-}" ] || { echo "This script needs bash. Run: bash $0" >&2; exit 2; }
set -euo pipefail
cd "$(dirname "$0")/.."
requirements=requirements-dev.txt
. scripts/setup.sh

style=0
ruff check . || style=$?
# One worker takes a whole file, so that what its tests share is made once.
python -m pytest -n 2 --dist loadfile "$@"
exit "$style"
