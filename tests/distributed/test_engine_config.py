import sys
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from rlhf.distributed import deepspeed_engine
from rlhf.distributed.engine import TorchEngine
from rlhf.distributed.engine_config import Plain, Precision, ZeRO


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": 4}, r"ZeRO\.stage must be 0, 1, 2 or 3, got 4"),
        ({"clip": 0.0}, r"ZeRO\.clip must be positive or null, got 0\.0"),
        ({"stage": 0, "offload_optimizer": True}, r"ZeRO\.offload_optimizer must be false at stage 0"),
        ({"stage": 2, "offload_parameters": True}, r"ZeRO\.offload_parameters must be false at stage 2"),
        ({"stage": 3, "nvme_path": "/nvme"}, r"ZeRO\.nvme_path must be null where nothing is offloaded"),
        ({"nvme_path": "/nvme", "offload_optimizer": True}, r"ZeRO\.nvme_path must be null where"),
        (
            {"stage": 3, "nvme_path": "/nvme", "offload_parameters": True},
            r"ZeRO\.precision must be bfloat16 for parameters on nvme_path, got float32",
        ),
        ({"persistence_threshold": -1}, r"ZeRO\.persistence_threshold must be at least 0, got -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ZeRO(**options)


def test_plain_refuses_a_negative_clip() -> None:
    with pytest.raises(ValueError, match=r"Plain\.clip must be positive or null, got -1"):
        Plain(clip=-1)


def test_omegaconf_builds_the_component() -> None:
    merged = OmegaConf.merge(OmegaConf.structured(ZeRO), {"stage": 3, "precision": "bfloat16", "clip": None})
    built = OmegaConf.to_object(merged)
    assert built == ZeRO(stage=3, precision=Precision.bfloat16, clip=None)


def test_plain_trains_in_float32() -> None:
    module = nn.Linear(2, 1).double()
    engine = Plain().train(module, torch.optim.AdamW(module.parameters()), "actor")
    assert isinstance(engine, TorchEngine)
    assert module.weight.dtype == torch.float32


@pytest.mark.parametrize("config", [Plain(), ZeRO(stage=2), ZeRO(stage=0)])
def test_frozen_module_takes_no_gradient_and_is_in_eval_mode(config: Plain | ZeRO) -> None:
    module = nn.Linear(2, 1)
    frozen = config.inference(module, "reference")
    x = torch.ones(1, 2, requires_grad=True)
    out = frozen(x)
    torch.testing.assert_close(out, x @ module.weight.T + module.bias)
    assert not out.requires_grad
    assert not any(parameter.requires_grad for parameter in frozen.module.parameters())
    assert not frozen.module.training


def test_bfloat16_inference_keeps_buffers_in_float32() -> None:
    module = nn.BatchNorm1d(3)
    frozen = ZeRO(stage=2, precision=Precision.bfloat16).inference(module, "reward model")
    assert frozen.module.weight.dtype == torch.bfloat16
    assert frozen.module.running_mean.dtype == torch.float32


def test_released_weights_take_no_memory() -> None:
    frozen = Plain().inference(nn.BatchNorm1d(3), "reference")
    frozen.release()
    assert sum(tensor.untyped_storage().nbytes() for tensor in frozen.module.state_dict().values()) == 0


def test_nvme_without_libaio_is_refused_in_one_line(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda self, verbose: False)
    config = ZeRO(stage=3, offload_optimizer=True, nvme_path="/nvme")
    with pytest.raises(ValueError, match=r"nvme_path needs libaio and its headers \(Debian: libaio-dev\)"):
        config.inference(nn.Linear(2, 2), "reference")


def test_libaio_is_looked_for_with_real_standard_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's probe compiles a program and mutes the compiler by its file descriptors."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    def probe(self: AsyncIOBuilder, name: str, libraries: tuple[str]) -> bool:
        return sys.stdout.fileno() > 0 and sys.stderr.fileno() > 0

    monkeypatch.setattr(AsyncIOBuilder, "has_function", probe)
    assert deepspeed_engine.has_libaio()


def test_nvme_takes_the_place_of_cpu_memory_for_what_is_offloaded() -> None:
    module = nn.Linear(3, 5)
    for path, device in ((None, "cpu"), ("/nvme", "nvme")):
        config = ZeRO(
            stage=3,
            offload_optimizer=True,
            offload_parameters=True,
            nvme_path=path,
            precision=Precision.bfloat16,
        )
        found = deepspeed_engine._settings(module, config, trains=True)["zero_optimization"]
        for part in ("offload_optimizer", "offload_param"):
            assert found[part]["device"] == device
            assert found[part].get("nvme_path") == path
