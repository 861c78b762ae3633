"""``rlhf plan``: its table, what it refuses, and what a job that ran out of memory shows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.cli.out_of_memory import first_line, is_out_of_memory
from rlhf.cli.plan import PLANNED, plan, planned
from rlhf.planning.memory_plan import MemoryPlan
from rlhf.planning.roles import Machine

CPU = Machine(ranks=1, device="cpu")


def part(found: MemoryPlan, phase: str, name: str) -> int:
    (chosen,) = (each for each in found.phases if each.name == phase)
    return sum(term.bytes for term in chosen.terms if term.name == name)


def parameters(folder: Path) -> int:
    """Numbers in a folder's weights, by their header: eight bytes of length, then JSON."""
    raw = (folder / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    header.pop("__metadata__", None)
    return sum((entry["data_offsets"][1] - entry["data_offsets"][0]) // 4 for entry in header.values())


def lines(workspace: Any) -> dict[str, list[str]]:
    policy, data = f"model.path={workspace.sft}", f"data.path={workspace.pairs}"
    sizes = ["engine=plain", "micro_batch_size=4"]
    return {
        "sft": [*sizes, "model=pretrained", policy, f"data.path={workspace.demonstrations}", "batch_size=6"],
        "reward": [*sizes, policy, data, "batch_size=6"],
        "preference": [*sizes, policy, data, "batch_size=6"],
        "rl": [
            *sizes,
            f"actor.model.path={workspace.sft}",
            f"reward.path={workspace.reward}",
            f"prompts.path={workspace.prompts}",
            "rollout.prompts=4",
            "rollout.sampling.max_new_tokens=4",
        ],
        "generate": [
            "micro_batch_size=4",
            policy,
            f"prompts.path={workspace.prompts}",
            "decoding.max_new_tokens=4",
        ],
    }


@pytest.mark.parametrize("command", PLANNED)
def test_every_command_that_is_known_has_a_table(
    command: str, workspace: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(workspace.folder.rglob("*"))
    assert plan([command, *lines(workspace)[command]]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"rlhf {command}: memory, MB")
    assert printed.splitlines()[-1].startswith("peak: ")
    assert sorted(workspace.folder.rglob("*")) == before  # nothing was run


def test_weights_gradients_and_moments_are_those_of_the_file(workspace: Any) -> None:
    found = planned("sft", lines(workspace)["sft"], CPU)
    n = parameters(workspace.sft / "model")
    assert part(found, "update", "actor: gradients") == 4 * n
    assert part(found, "update", "actor: moments") == 8 * n
    buffers = part(found, "update", "actor: weights") - 4 * n
    assert 0 <= buffers < 100  # angles of the rotary positions


def test_ranks_share_what_the_stage_says(workspace: Any) -> None:
    n = parameters(workspace.sft / "model")
    words = [*lines(workspace)["sft"], "engine=zero2"]
    two = planned("sft", words, Machine(ranks=2, device="cpu"))
    assert part(two, "update", "actor: moments") == 4 * n
    assert part(two, "update", "actor: weights") == 4 * n
    split = planned("sft", [*words, "engine=zero3"], Machine(ranks=2, device="cpu"))
    assert part(split, "update", "actor: weights") == 2 * n


def test_an_optimiser_that_is_offloaded_lies_in_host_memory(workspace: Any) -> None:
    words = [*lines(workspace)["sft"], "engine=zero2", "engine.offload_optimizer=true"]
    found = planned("sft", words, Machine(ranks=1, device="cuda"))
    assert found.host_peak >= 12 * parameters(workspace.sft / "model")
    assert "actor: moments (host)" in found.table()
    assert found.peak < planned("sft", words, CPU).peak


def test_online_models_are_all_there(workspace: Any) -> None:
    found = planned("rl", lines(workspace)["rl"], CPU)
    weights = [
        name
        for name in ("actor", "critic", "reward", "reference")
        if part(found, "sample", f"{name}: weights")
    ]
    assert weights == ["actor", "critic", "reward", "reference"]
    less = ["algorithm=reinforce_plus_plus", "algorithm/kl=none", "measure_kl=false"]
    alone = planned("rl", [*lines(workspace)["rl"], *less], CPU)
    owners = {term.owner for phase in alone.phases for term in phase.terms}
    assert owners & {"actor", "critic", "reward", "reference"} == {"actor", "reward"}


def test_adapters_need_neither_a_reference_nor_moments_of_the_base(workspace: Any) -> None:
    pytest.importorskip("peft")
    words = lines(workspace)["rl"]
    whole = planned("rl", words, CPU)
    adapted = planned("rl", [*words, "actor/lora=adapter", "actor.lora.rank=1"], CPU)
    assert not part(adapted, "update", "reference: weights")
    assert part(adapted, "update", "actor: moments") < part(whole, "update", "actor: moments") / 4


def test_neither_weights_nor_data_need_be_there(workspace: Any, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(workspace.sft / "model" / "config.json", bare)
    words = ["engine=plain", "model=pretrained", f"model.path={bare}", "data.path=nowhere.jsonl"]
    found = planned("sft", [*words, "data.max_length=20", "batch_size=8", "micro_batch_size=4"], CPU)
    assert found.notes[0] == "nowhere.jsonl is not there: every row is taken to be as long as it may be"
    assert "80 tokens of 4 texts, in a step of 2 passes" in found.notes[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sft", "batch_sise=8"], "unknown key batch_sise; did you mean batch_size?"),
        (["rl", "actor.model.path=runs/none"], "runs/none does not exist: no such run or model folder"),
        (["sft", "--ranks", "3"], "batch_size=32 cannot be shared out equally over ranks=3"),
        (["generate", "--ranks", "2"], "rlhf generate runs as one process, not as 2 ranks"),
    ],
)
def test_wrong_input_ends_in_one_line(
    words: list[str], message: str, workspace: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *rest = words
    given = [word for word in lines(workspace)[command] if not rest[0].startswith(word.partition("=")[0])]
    if "--ranks" in rest:
        given = [word for word in given if "batch_size" not in word]
    assert plan([command, *given, *rest]) == 1
    assert message in capsys.readouterr().err.removesuffix("\n")


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        plan(["rank"])
    assert leaving.value.code == 2
    assert "rank" in capsys.readouterr().err


def test_only_a_failed_allocation_is_out_of_memory() -> None:
    cpu = (
        "[enforce fail at alloc_cpu.cpp:128] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
    )
    assert is_out_of_memory(RuntimeError(cpu))
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 …"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert first_line(RuntimeError(cpu)).startswith("DefaultCPUAllocator: can't")


def test_a_job_that_ran_out_of_memory_shows_its_plan(rlhf: Any, sft_arguments: list[str]) -> None:
    """A million numbers wide: each weight takes terabytes."""
    outcome = rlhf("sft", *sft_arguments, "model.hidden=1048576")
    assert outcome.status == 1
    first, *table = outcome.err[outcome.err.index("rlhf sft: out of memory") :].splitlines()
    assert first.startswith("rlhf sft: out of memory: DefaultCPUAllocator: ")
    assert table[0].startswith("rlhf sft: memory, GB")
    assert table[-1].startswith("peak: ")
    assert "Traceback" not in outcome.err
