#!/usr/bin/env bash
# Imitation from language feedback on small programming tasks, from nothing: some minutes on one core.
# A teacher half of whose answers are wrong teaches a tiny model. In two rounds the model's responses run
# against their unit tests in the sandbox, those that fail are revised from feedback in words by a refiner
# that is right in two cases of three, and the model learns the revisions that pass. Tested on other tasks.
# Everything lands in runs/language_feedback, or with SEED=1 in runs/language_feedback_1. A finished stage is kept.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
install_rlhf ""

seed="${SEED:-0}"
runs="runs/language_feedback"
if [ "$seed" != 0 ]; then
    runs="runs/language_feedback_$seed"
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
started=$SECONDS
source launch/stages.sh

if [ ! -e "$runs/data/prompts.jsonl" ]; then
    say "0. One-line programs, no task in two of the files"
    python -m rlhf.data.programs "$runs/data" --test 180 --supervised 350 --prompts 350 --wrong 0.5 --seed "$seed"
fi
if fresh sft model; then
    say "1. A tiny language model of the teacher's answers (SFT)"
    rlhf sft experiment=language_feedback/sft "name=${runs#runs/}/sft" "seed=$seed" \
        "data.path=$runs/data/supervised.jsonl" "test_data.path=$runs/data/test.jsonl"
fi
say "2. Two rounds of generate, refine, score, select, sft"
rlhf recipe recipe=language_feedback "name=${runs#runs/}/rounds" "seed=$seed" \
    "settings.prompts=$runs/data/prompts.jsonl" "start.sft=$runs/sft"
say "3. All three on unseen tasks, sampled and greedy"
declare -A policies=([before]="$runs/sft" [once]="$runs/rounds/round_1/sft" [twice]="$runs/rounds/round_2/sft")
for policy in before once twice; do
    for decoding in sampling greedy; do
        rm -rf "$runs/${policy}_$decoding"
        rlhf generate "name=${runs#runs/}/${policy}_$decoding" "decoding=$decoding" decoding.max_new_tokens=24 \
            reward=unit_tests reward.with_prompt=true "model.path=${policies[$policy]}" \
            "prompts.path=$runs/data/test.jsonl" "seed=$seed" micro_batch_size=180
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


tasks = {name: {row["prompt"] for row in rows(f"data/{name}.jsonl")} for name in ("test", "supervised", "prompts")}
assert not tasks["test"] & (tasks["supervised"] | tasks["prompts"]), "a tested task was trained on"
table = [["policy", "decoding", "unseen tasks", "pass", "95 % interval"]]
for policy, label in {"before": "SFT", "once": "1 round", "twice": "2 rounds"}.items():
    for decoding in ("sampling", "greedy"):
        scores = [row["score"] for row in rows(f"{policy}_{decoding}/responses.jsonl")]
        solved = int(sum(scores))
        low, high = wilson_interval(solved, len(scores))
        share = f"{solved / len(scores):.1%}"
        table.append([label, decoding, str(len(scores)), share, f"{low:.1%} – {high:.1%}"])
print(f"\n{markdown(table)}")
PY
say "$runs, $((SECONDS - started)) s after installation"
