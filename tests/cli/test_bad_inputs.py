"""Bad inputs end in one line that names the thing and what was needed, and overwrite nothing."""
from __future__ import annotations
import pytest
from pathlib import Path

def test_try(rlhf, workspace, sft_arguments, rl_arguments, tmp_path):
    print(rlhf("rl", *rl_arguments))
    for name, extra in [
      ("sft", ["optimizer.lrr=1"]), ("sft", ["optimizer.lr=fast"]), ("sft", ["optimizer.lr=-1"]),("sft",["batch_size=0"]),("sft",["epochs=-1"]),
      ("sft", ["+new.key=1"]),("sft", ["+optimizer.new=1"]),("sft", ["engine=zero9"]),("sft", ["engin=zero1"]),("sft", ["engine/x=zero1"]),("sft", ["enginee.stage=1"]),
      ("sft", ["cadence.every=1"]), ("sft", ["engine.precision=int8"]), ("sft", ["schedule.final=0.1", "schedule=linear"]), ("sft", ["data.path=null"]), ("sft", ["model=pretrained"]), ("sft",["name=???"]), ("sft",["batch_size"]), ("sft",["=3"]), ("sft",["batch_size=[1"]),
      ("sft",["data.max_length=1"]), ("sft", ["data.limit=2.5"]), ("sft", ["~optimizer"]), ("sft", ["optimizer=null"]), ("sft", ["optimizer.lr=null"]), ("sft", ["data=x"]),
      ("sft", ["experiment=none"]), ("sft", ["experiment=quickstart/sfft"]), ("sft", ["--cfg"]), ("sft", ["--cgf","job"]),
    ]:
        o = rlhf(name, *sft_arguments, *extra)
        print(extra, o.status, o.err, o.out)
    for extra in [
      ["algorithm.advantage.lamb=1"], ["algorithm/advantage=leave_one_out"], ["algorithm/advantage=leave_one_out", "algorithm.value_loss=null", "algorithm.advantage.lam=0.9"], ["algorithm=pppo"], ["algorithm/kl=inreward"], ["algorithm.advantage.lam=2"], ["algorithm.minibatches=3"], ["rollout.prompts=0"], ["rollout.samples=0"], ["rollouts=0"], ["reward=none"], ["algorithm=grpo"], ["kl.coef=1"], ["algorithm.value_loss=null"],["algorithm.aggregation=constant_length"],["reward.path=null"]
    ]:
        o = rlhf("rl", *rl_arguments, *extra)
        print(extra, o.status, o.err, o.out)
