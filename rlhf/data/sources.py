"""Where rows come from: JSON lines, Parquet, CSV, a folder of the former, or anything ``datasets`` loads.

Every row remembers where it stood, so that a later complaint about it can say so.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson", ".jsonlines")
SUFFIXES = (*JSON_SUFFIXES, ".parquet")
CSV_SEPARATORS = {".csv": ",", ".tsv": "\t"}
FILE_SUFFIXES = (*SUFFIXES, *CSV_SEPARATORS)


@dataclass(kw_only=True, slots=True)
class Row:
    """One row as it was stored, unchecked."""

    values: dict[str, Any]
    where: str
    """``file.jsonl:17`` (lines count from 1) or ``name[train] row 17`` (rows count from 0)."""


def read_rows(path: str, split: str = "train", *, config: str | None = None) -> list[Row]:
    """All rows of a data set, in their stored order.

    Args:
        path: a ``.jsonl`` or ``.parquet`` file, or a ``.csv`` file, in which every value is text; a folder
            with JSON or Parquet files named for their split
            (``train.jsonl``, ``test-00000.parquet``); a folder written by ``datasets.save_to_disk``; or
            a folder or hub name for ``datasets.load_dataset``.
        split: which part to read; a single file is read whole.
        config: the configuration for ``datasets.load_dataset``.

    Raises:
        FileNotFoundError: ``path`` looks like a file and there is none.
        ValueError: no row, a row that is no object, broken JSON, or a name that cannot be loaded.
    """
    source = Path(path)
    if source.is_file():
        rows = _file_rows(source)
    elif source.is_dir():
        rows = _folder_rows(source, split, config)
    elif source.suffix in FILE_SUFFIXES or path.startswith(("/", ".", "~")) or path.count("/") > 1:
        raise FileNotFoundError(f"{path}: no such file or folder")
    else:
        rows = _named_rows(path, split, config)
    if not rows:
        raise ValueError(f"{path}: holds no rows")
    return rows


def _file_rows(file: Path) -> list[Row]:
    if file.suffix == ".parquet":
        return _parquet_rows(file)
    if file.suffix in JSON_SUFFIXES:
        return list(_json_rows(file))
    if file.suffix in CSV_SEPARATORS:
        return list(_csv_rows(file))
    raise ValueError(f"{file}: has the suffix {file.suffix!r}, expected one of {', '.join(FILE_SUFFIXES)}")


def _json_rows(file: Path) -> Iterator[Row]:
    with file.open("rb") as lines:  # bytes: only \n ends a line, U+2028 inside a string does not
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{file}:{number}"
                yield Row(values=_json_object(line, where), where=where)


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: broken JSON at column {error.pos + 1}: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: byte {error.start + 1} is not UTF-8") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where}: is a JSON {type(value).__name__}, every line must be an object")
    return value


def _csv_rows(file: Path) -> Iterator[Row]:
    """Rows by the names in the first line; a quoted field may hold line breaks."""
    with file.open(encoding="utf-8-sig", newline="") as text:
        lines = csv.reader(text, delimiter=CSV_SEPARATORS[file.suffix], strict=True)
        try:
            names = next(lines, [])
            for values in lines:
                where = f"{file}:{lines.line_num}"
                if values and len(values) != len(names):
                    raise ValueError(f"{where}: has {len(values)} fields, the first line has {len(names)}")
                if values:
                    yield Row(values=dict(zip(names, values, strict=True)), where=where)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{file}:{lines.line_num}: broken CSV: {error}") from None


def _parquet_rows(file: Path) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        values = parquet.ParquetFile(file).read().to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file}: cannot be read as Parquet: {_first_line(error)}") from None
    return [Row(values=value, where=f"{file} row {number}") for number, value in enumerate(values)]


def _folder_rows(folder: Path, split: str, config: str | None) -> list[Row]:
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return _saved_rows(folder, split)
    files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES and file.is_file())
    if config is not None or not files:
        return _named_rows(str(folder), split, config)
    chosen = [file for file in files if re.match(rf"{re.escape(split)}(?![A-Za-z0-9])", file.name)]
    if not chosen:
        names = ", ".join(file.name for file in files)
        raise ValueError(f"{folder}: no file is named for the split {split!r}, it holds {names}")
    return [row for file in chosen for row in _file_rows(file)]


def _saved_rows(folder: Path, split: str) -> list[Row]:
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(str(folder))
    except Exception as error:  # the library raises many kinds for a damaged folder
        raise ValueError(f"{folder}: cannot be loaded: {_first_line(error)}") from None
    if not isinstance(saved, DatasetDict):
        return _dataset_rows(saved, str(folder))
    if split not in saved:
        raise ValueError(f"{folder}: has no split {split!r}, only {', '.join(map(str, saved))}")
    return _dataset_rows(saved[split], f"{folder}[{split}]")


def _named_rows(name: str, split: str, config: str | None) -> list[Row]:
    from datasets import load_dataset

    try:
        loaded = load_dataset(name, config, split=split)
    except Exception as error:  # network, name, split, configuration: each has its own exception type
        raise ValueError(f"{name}[{split}]: cannot be loaded: {_first_line(error)}") from None
    return _dataset_rows(loaded, f"{name}[{split}]")


def _dataset_rows(dataset: Any, name: str) -> list[Row]:
    return [Row(values=values, where=f"{name} row {number}") for number, values in enumerate(dataset)]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
