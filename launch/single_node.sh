#!/usr/bin/env bash
# One machine, a process for each GPU: bash launch/single_node.sh rl name=my/rl engine=zero3 …
# GPUS=N starts N; without a GPU two by default, a core each.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
install_rlhf ""
count_processes
exec deepspeed --no_local_rank --num_gpus "$processes" --master_port "${MASTER_PORT:-29500}" --log_level error \
    --module rlhf "$@"
