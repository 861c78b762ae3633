# Sourced by the scripts of several stages, after $runs, the folder that everything lands in.

# How a stage is started, on every GPU or core.
count_processes
launcher=(deepspeed --no_local_rank --num_gpus "$processes" --log_level error --module rlhf)

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

fresh() {  # fresh STAGE FILE: whether it is still to be done; removes what an interrupted one left
    if [ -e "$runs/$1/$2" ]; then
        echo "$runs/$1/$2 is there already; remove $runs/$1 to make it again"
        return 1
    fi
    rm -rf "${runs:?}/$1"
}

stage() {  # stage NAME TITLE COMMAND…: training that leaves $runs/NAME/model, continued where it was interrupted
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
    "${@:3}" "resume=$resume"
}
