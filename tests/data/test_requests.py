import json
from pathlib import Path

import pytest

from rlhf.data.requests import FORMS, main, requests


def test_every_form_meets_every_subject_once() -> None:
    found = requests()
    assert len(found) == len(set(found)) == 30 * len(FORMS)
    assert "Explain how bread is baked." in found
    assert "Describe a bicycle to a child." in found
    assert not any("  " in request or "{" in request for request in found)
    assert found != sorted(found)


def test_they_are_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "requests.jsonl"
    main([str(file)])
    assert [json.loads(line)["prompt"] for line in file.read_text().splitlines()] == requests()
    assert capsys.readouterr().out == f"{file}: 300 rows\n"
