from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from rlhf.data.sources import read_rows


def test_json_lines_keep_their_order_and_line_numbers(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"x": 1}\n\n{"x": "\u2028"}\n', encoding="utf-8")
    rows = read_rows(str(file))
    assert [row.values for row in rows] == [{"x": 1}, {"x": "\u2028"}]
    assert [row.where for row in rows] == [f"{file}:1", f"{file}:3"]


def test_parquet_rows_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"prompt": ["p", "q"], "n": [1, None]}), file)
    rows = read_rows(str(file))
    assert [row.values for row in rows] == [{"prompt": "p", "n": 1}, {"prompt": "q", "n": None}]
    assert rows[1].where == f"{file} row 1"


def test_a_folder_is_read_by_split(tmp_path: Path) -> None:
    (tmp_path / "train-1.jsonl").write_text('{"x": 2}\n')
    (tmp_path / "train-0.jsonl").write_text('{"x": 1}\n')
    (tmp_path / "test.jsonl").write_text('{"x": 3}\n')
    (tmp_path / "training.jsonl").write_text('{"x": 4}\n')
    assert [row.values["x"] for row in read_rows(str(tmp_path))] == [1, 2]
    assert [row.values["x"] for row in read_rows(str(tmp_path), "test")] == [3]
    with pytest.raises(ValueError, match="no file is named for the split 'dev', it holds test"):
        read_rows(str(tmp_path), "dev")


def test_a_saved_dataset_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"x": [1, 2]})
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=data, test=data.select([1])).save_to_disk(tmp_path / "two")
    assert [row.values for row in read_rows(str(tmp_path / "one"))] == [{"x": 1}, {"x": 2}]
    test = read_rows(str(tmp_path / "two"), "test")
    assert [(row.values, row.where) for row in test] == [({"x": 2}, f"{tmp_path / 'two'}[test] row 0")]
    with pytest.raises(ValueError, match="no split 'dev', only train, test"):
        read_rows(str(tmp_path / "two"), "dev")


def test_a_folder_of_other_files_goes_to_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.csv").write_text("prompt\nhello\n")
    rows = read_rows(str(folder))
    assert rows[0].values == {"prompt": "hello"}
    assert rows[0].where == f"{folder}[train] row 0"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no rows"),
        (b"\n \n", "holds no rows"),
        (b'{"x": 1}\n{"x": }\n', ":2: broken JSON at column 7"),
        (b'{"x": 1}\n[1]\n', ":2: is a JSON list, every line must be an object"),
        (b'{"x": 1}\n{"x": "\xff"}\n', ":2: byte 8 is not UTF-8"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_rows(str(file))
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_a_torn_parquet_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "bad.parquet"
    file.write_bytes(b"PAR1 torn")
    with pytest.raises(ValueError, match=r"bad\.parquet: cannot be read as Parquet"):
        read_rows(str(file))


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.txt"
    file.write_text("x")
    with pytest.raises(ValueError, match=r"has the suffix '\.txt', expected one of \.jsonl"):
        read_rows(str(file))


@pytest.mark.parametrize("path", ["rows.jsonl", "/nowhere/set", "./nowhere", "a/b/c"])
def test_a_missing_file_is_named(path: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"^{path}: no such file or folder$"):
        read_rows(path)


def test_a_hub_name_that_cannot_be_loaded_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach it\nand more")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(ValueError) as caught:
        read_rows("nobody/nothing", "test")
    assert str(caught.value) == "nobody/nothing[test]: cannot be loaded: Couldn't reach it"


def test_reading_json_lines_does_not_import_datasets(write_jsonl: Callable[..., str]) -> None:
    code = (
        "import sys; from rlhf.data.sources import read_rows; read_rows(sys.argv[1]);"
        "sys.exit('datasets' in sys.modules or 'pyarrow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, write_jsonl({"x": 1})], check=False).returncode == 0


def test_csv_is_read_with_the_line_of_every_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text('prompt,n\n"two\nlines",1\n\nb,2\n')
    rows = read_rows(str(file))
    assert [row.values for row in rows] == [{"prompt": "two\nlines", "n": "1"}, {"prompt": "b", "n": "2"}]
    assert [row.where for row in rows] == [f"{file}:3", f"{file}:5"]
    (tmp_path / "rows.tsv").write_text("a\tb\n1,5\t2\n")
    assert read_rows(str(tmp_path / "rows.tsv"))[0].values == {"a": "1,5", "b": "2"}


def test_csv_with_a_field_too_many_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("a,b\n1,2\n1,2,3\n")
    with pytest.raises(ValueError, match=r"rows\.csv:3: has 3 fields, the first line has 2"):
        read_rows(str(file))
    file.write_text('a,b\n1,"2\n')
    with pytest.raises(ValueError, match=r"rows\.csv:2: broken CSV"):
        read_rows(str(file))
