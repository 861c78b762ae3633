#!/usr/bin/env bash
# Several machines with one file system, named in a hostfile: "NAME slots=GPUS", a line each.
# From any of them, where they reach each other by ssh and have pdsh:
#     HOSTFILE=hostfile bash launch/multi_node.sh rl name=my/rl engine=zero3 …
# Else on each of them, with its number in the hostfile, from 0:
#     HOSTFILE=hostfile NODE_RANK=0 bash launch/multi_node.sh rl name=my/rl engine=zero3 …
# MASTER_ADDR and MASTER_PORT are where the ranks meet: by default the first machine, port 29500.
set -euo pipefail
hostfile="$(realpath "${HOSTFILE:-hostfile}")"
if [ ! -f "$hostfile" ]; then
    echo "launch/multi_node.sh: $hostfile does not exist; HOSTFILE must name a file of lines 'NAME slots=GPUS'" >&2
    exit 1
fi
source "$(dirname "$0")/environment.sh"
install_rlhf ""
first="$(awk '!/^#/ && NF {print $1; exit}' "$hostfile")"
address="${MASTER_ADDR:-$first}"
port="${MASTER_PORT:-29500}"
if [ -z "${NODE_RANK:-}" ]; then
    exec deepspeed --hostfile "$hostfile" --master_port "$port" --no_local_rank --log_level error --module rlhf "$@"
fi
exec deepspeed --hostfile "$hostfile" --no_ssh --node_rank "$NODE_RANK" --master_addr "$address" \
    --master_port "$port" --no_local_rank --log_level error --module rlhf "$@"
