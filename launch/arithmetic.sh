#!/usr/bin/env bash
# SFT → GRPO on sums that a program checks, from nothing: some minutes on one core.
# The teacher leaves more than half of its sums open, and the model learns that too. GRPO practises on the
# same sums and some more, with the task's scorer as reward. Both are tested on sums that neither has seen.
# Everything lands in runs/arithmetic, or with SEED=1 in runs/arithmetic_1. A finished stage is kept.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
install_rlhf "[tasks]"

seed="${SEED:-0}"
runs="runs/arithmetic"
if [ "$seed" != 0 ]; then
    runs="runs/arithmetic_$seed"
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
started=$SECONDS
source launch/stages.sh

if [ ! -e "$runs/data/practice.jsonl" ]; then
    say "0. Sums of three one-digit numbers, no sum in two of the files"
    # problem i has the seed seed + i, so seeds further apart than the problems share none by construction
    python -m rlhf.data.reasoning_gym chain_sum "$runs/data" min_terms=3 max_terms=3 min_digits=1 max_digits=1 \
        --prompt '{metadata[expression]} =' --test 300 --supervised 3000 --prompts 600 --unanswered 0.55 \
        --seed "${seed}00000"
    cat "$runs/data/supervised.jsonl" "$runs/data/prompts.jsonl" >"$runs/data/practice.jsonl"
fi
if fresh sft model; then
    say "1. A small language model of the teacher's answers (SFT)"
    rlhf sft experiment=arithmetic/sft "name=${runs#runs/}/sft" "seed=$seed" \
        "data.path=$runs/data/supervised.jsonl" "test_data.path=$runs/data/test.jsonl"
fi
if fresh rl model; then
    say "2. GRPO with the task's scorer as reward"
    rlhf rl experiment=arithmetic/rl "name=${runs#runs/}/rl" "seed=$seed" "actor.model.path=$runs/sft" \
        "prompts.path=$runs/data/practice.jsonl" "test_prompts.path=$runs/data/test.jsonl"
fi
say "3. Both on unseen sums, sampled and greedy"
for policy in sft rl; do
    for decoding in sampling greedy; do
        rm -rf "$runs/${policy}_$decoding"
        rlhf generate "name=${runs#runs/}/${policy}_$decoding" "decoding=$decoding" decoding.max_new_tokens=6 \
            reward=reasoning_gym "model.path=$runs/$policy" "prompts.path=$runs/data/test.jsonl" "seed=$seed" \
            micro_batch_size=300
    done
done
python - "$runs" <<'PY'
import json
import sys
from pathlib import Path

from rlhf.evaluation.pairs import wilson_interval
from rlhf.evaluation.report import markdown

runs = Path(sys.argv[1])


def rows(file):
    return [json.loads(line) for line in (runs / file).read_text(encoding="utf-8").splitlines()]


sums = {name: {row["prompt"] for row in rows(f"data/{name}.jsonl")} for name in ("test", "supervised", "practice")}
assert not sums["test"] & (sums["supervised"] | sums["practice"]), "a tested sum was trained on"
table = [["policy", "decoding", "unseen sums", "solved", "95 % interval"]]
for policy, label in {"sft": "after SFT", "rl": "after GRPO"}.items():
    for decoding in ("sampling", "greedy"):
        scores = [row["score"] for row in rows(f"{policy}_{decoding}/responses.jsonl")]
        solved = int(sum(scores))
        low, high = wilson_interval(solved, len(scores))
        share = f"{solved / len(scores):.1%}"
        table.append([label, decoding, str(len(scores)), share, f"{low:.1%} – {high:.1%}"])
print(f"\n{markdown(table)}")
PY
say "$runs, $((SECONDS - started)) s after installation; curves: $runs/*/curves.png"
