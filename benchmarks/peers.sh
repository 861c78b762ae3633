#!/usr/bin/env bash
# The peers' environment, build/peers, from PyPI; nothing of it is ever installed beside rlhf.
# verl and OpenRLHF come without most of their own requirements (vLLM): their pure-torch parts are called.
# What cannot be installed is said, and printed as missing by the benchmarks. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ ! -x build/peers/bin/python ]; then
    "${PYTHON:-python3}" -m venv build/peers
fi
install() {
    build/peers/bin/python -m pip install --quiet --disable-pip-version-check "$@" \
        || echo "not installed: $*" >&2
}

# The torch of our own environment where there is one, so that both sides run the same library.
ours=.venv/bin/python
[ -x "$ours" ] || ours="${PYTHON:-python3}"
install "torch==$("$ours" -c 'import torch; print(torch.__version__)' 2>/dev/null || echo '2.13.*')"
install trl==1.16.0
# PPO left TRL with 1.13; the last release that has it lies in a folder of its own.
install --no-deps --target build/peers_ppo trl==1.12.0
install triton deepspeed tensordict ray hydra-core codetiming orjson  # what the files that are called import
for peer in liger-kernel==0.8.5 cut-cross-entropy==25.1.1 verl==0.9.1 openrlhf==0.11.2; do
    install --no-deps "$peer"
done
build/peers/bin/python -m pip list --disable-pip-version-check 2>/dev/null \
    | grep -i -E '^(torch|trl|liger|cut|verl|openrlhf|transformers) *' || true
