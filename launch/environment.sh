# Sourced by the other scripts: a Python environment in .venv with this checkout installed in it.
# PYTHON names the interpreter (3.11 or 3.12). Installed again only when setup.cfg has changed.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

install_rlhf() {  # install_rlhf EXTRAS, e.g. "" or "[dev]"
    local mark=".venv/.installed$1"
    if [ ! -x .venv/bin/python ]; then
        "${PYTHON:-python3}" -m venv .venv
    fi
    export PATH="$PWD/.venv/bin:$PATH"
    if [ ! -e "$mark" ] || [ setup.cfg -nt "$mark" ]; then
        echo "installing rlhf$1 into .venv, a minute or more …"
        python -m pip install --quiet --disable-pip-version-check --editable ".$1"
        touch "$mark"
    fi
}

count_processes() {  # sets processes: $GPUS, else one for each GPU, else two with a core each
    if command -v nvidia-smi >/dev/null; then
        processes="${GPUS:-$(nvidia-smi --list-gpus | wc -l)}"
    else
        local cores
        cores=$(nproc)
        processes="${GPUS:-$((cores < 2 ? 1 : 2))}"
        export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}"
    fi
}

# Threads that wait by spinning slow each other down wherever the cores are shared.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"

# Without a GPU DeepSpeed asks itself what to run on, and says so each time.
if ! command -v nvidia-smi >/dev/null; then
    export DS_ACCELERATOR="${DS_ACCELERATOR:-cpu}"
fi
