"""Files written one tensor at a time, as safetensors itself reads them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhf.tensor_file import DTYPES, Kind, TensorFile, TensorStream

TENSORS = {
    "one": torch.tensor([True]),  # one byte before tensors of eight
    **{f"of {name}": torch.arange(6).view(2, 3).to(dtype) for dtype, name in DTYPES.items()},
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 3),
    "turned": torch.arange(6.0).view(2, 3).t(),
    'a "name" with ü': torch.ones(3),
}


def write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    stream = TensorStream.of(tensors)
    with TensorFile(path, stream.kinds) as file:
        for name, tensor in stream:
            file.add(name, tensor)


def test_safetensors_reads_what_was_written(tmp_path: Path) -> None:
    write(tmp_path / "file", TENSORS)
    found = load_file(tmp_path / "file")
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_the_bytes_are_those_of_the_format(tmp_path: Path) -> None:
    write(tmp_path / "file", {"a": torch.tensor([1.0, -2.0])})
    data = (tmp_path / "file").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    header = {"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    assert json.loads(data[8 : 8 + length]) == header
    assert data[8 + length :].hex() == "0000803f" + "000000c0"  # IEEE 754, little-endian


@pytest.mark.parametrize(
    ("name", "tensor"), [("b", torch.ones(2)), ("a", torch.ones(3)), ("a", torch.ones(2).half())]
)
def test_another_tensor_than_the_announced_one_is_refused(
    name: str, tensor: torch.Tensor, tmp_path: Path
) -> None:
    file = TensorFile(tmp_path / "file", {"a": Kind.of(torch.ones(2))})
    with pytest.raises(ValueError, match=r"the next tensor must be a \(.*\), got "):
        file.add(name, tensor)


def test_a_tensor_that_never_came_is_named(tmp_path: Path) -> None:
    kinds = {name: Kind.of(torch.ones(2)) for name in ("a", "b")}
    with (
        pytest.raises(ValueError, match="b was announced and never came"),
        TensorFile(tmp_path / "file", kinds) as file,
    ):
        file.add("a", torch.ones(2))
