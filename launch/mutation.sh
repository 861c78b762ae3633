#!/usr/bin/env bash
# Mutates rlhf/ops and rlhf/algorithms and asks their tests to notice (docs/mutation.md); minutes.
# Works on a copy in runs/mutation, where `mutmut show NAME` and `mutmut browse` look at single mutants.
# PROCESSES=N tries N mutants at a time, by default one a core. Fails when fewer than 95 % are killed.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
install_rlhf "[dev,mutation]"
export OMP_NUM_THREADS=1

copy=runs/mutation
rm -rf "$copy"
mkdir -p "$copy"
cp -R rlhf tests setup.cfg "$copy"
cd "$copy"

nice mutmut run --max-children "${PROCESSES:-$(nproc)}" >mutmut.log 2>&1 || { tail -n 40 mutmut.log; exit 1; }
mutmut export-cicd-stats >/dev/null

mutmut results | sed -n 's/^ *\(.*\): \(.*\)$/\1 \2/p' | while read -r name status; do
    printf '\n%s: %s\n' "$status" "$name"
    mutmut show "$name" | grep -E '^[-+] ' || true
done
python - mutants/mutmut-cicd-stats.json <<'PY'
import json
import sys

counts = json.load(open(sys.argv[1]))
killed = counts["killed"] + counts["timeout"]
print(f"\n{killed} of {counts['total']} mutants killed, {killed / counts['total']:.1%}")
sys.exit(killed < 0.95 * counts["total"])
PY
