#!/usr/bin/env bash
# All set-up and the tests: lint, types, then pytest. Arguments go to pytest, e.g. -m slow or -k resume.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
install_rlhf "[dev,tasks]"

ruff format --check --quiet . || { echo "ruff format would change files: run 'ruff format .'"; exit 1; }
ruff check --quiet .
mypy
# A process a core, each with whole files: what a file makes once is made once.
exec python -m pytest -q -n logical --maxprocesses 8 --dist loadfile "$@"
