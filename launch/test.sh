#!/usr/bin/env bash
# All set-up and the tests: lint, types, then pytest. Arguments go to pytest, e.g. -m slow or -k resume.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
install_rlhf "[dev,tasks]"

ruff format --check --quiet . || { echo "ruff format would change files: run 'ruff format .'"; exit 1; }
ruff check --quiet .
mypy
exec python -m pytest -q "$@"
