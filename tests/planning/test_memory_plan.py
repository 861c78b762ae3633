"""The table and its sums, by hand."""

from __future__ import annotations

from rlhf.planning.memory_plan import MemoryPlan, Term, readable


def term(owner: str, part: str, megabytes: float, *, offloaded: bool = False) -> Term:
    return Term(owner=owner, part=part, bytes=round(megabytes * 1e6), offloaded=offloaded)


def filled(device: str) -> MemoryPlan:
    plan = MemoryPlan(command="sft", ranks=2, device=device, notes=["a note"])
    weights, moments = term("actor", "weights", 100.0), term("actor", "moments", 200.0, offloaded=True)
    plan.add("load", [weights], on_host=True)
    plan.add("update", [weights, moments], [term("passes", "activations", 50.5), term("none", "at all", 0)])
    plan.add("step", [weights, moments])
    return plan


def test_on_a_cpu_everything_is_one_memory() -> None:
    plan = filled("cpu")
    assert (plan.peak, plan.fullest.name, plan.host_peak) == (350_500_000, "update", 0)
    assert plan.table() == (
        "rlhf sft: memory of each of 2 ranks, MB   load  update   step\n"
        "actor: weights                           100.0   100.0  100.0\n"
        "actor: moments (host)                            200.0  200.0\n"
        "passes: activations                               50.5\n"
        "in all                                   100.0   350.5  300.0\n"
        "a note\n"
        "peak: 350 MB on each rank, in update\n"
    )


def test_beside_a_gpu_what_is_offloaded_and_loaded_lies_in_host_memory() -> None:
    plan = filled("cuda")
    assert (plan.peak, plan.fullest.name) == (150_500_000, "update")
    assert plan.host_peak == 200_000_000
    sums = [line.split() for line in plan.table().splitlines() if line.startswith(("on the", "in host"))]
    assert sums == [
        ["on", "the", "GPU", "150.5", "100.0"],
        ["in", "host", "memory", "100.0", "200.0", "200.0"],
    ]
    assert plan.table().endswith("peak: 150 MB on each rank, in update, and 200 MB in host memory\n")


def test_sizes_for_people() -> None:
    sizes = [0, 999, 1500, 2_500_000, 81_234_000_000, 1_234_000_000_000]
    assert [readable(size) for size in sizes] == [
        "0 bytes",
        "999 bytes",
        "1.5 kB",
        "2.5 MB",
        "81.2 GB",
        "1,234 GB",
    ]
