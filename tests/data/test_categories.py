from typing import Any

import pytest

from rlhf.data.categories import Categories


def rows(*subsets: str | None, **others: list[Any]) -> list[tuple[dict[str, Any], str]]:
    columns = [{} if name is None else {"subset": name} for name in subsets]
    for name, values in others.items():
        for column, value in zip(columns, values, strict=True):
            column[name] = value
    return [(column, f"rows.jsonl:{number}") for number, column in enumerate(columns, 1)]


def test_rows_are_divided_by_their_category_and_each_is_a_section() -> None:
    found = Categories().of(rows("b", "a", "b"))
    assert found is not None
    assert found.members == {"b": [0, 2], "a": [1]}
    assert found.sections == {"b": ["b"], "a": ["a"]}
    assert (found.weight("a"), found.weight("b")) == (1, 2)


def test_sections_come_from_a_column_or_from_the_configuration() -> None:
    given = rows("b", "a", "c", section=["x", "y", "x"])
    found = Categories().of(given)
    assert found is not None
    assert found.sections == {"x": ["b", "c"], "y": ["a"]}
    chosen = Categories(sections={"all": ["a", "b", "c"], "none": ["d"]}, weights={"d": 3.0, "a": 5.0}).of(
        given
    )
    assert chosen is not None
    assert chosen.sections == {"all": ["a", "b", "c"]}
    assert chosen.weight("a") == 5.0


def test_rows_without_categories_are_not_divided() -> None:
    assert Categories().of(rows(None, None)) is None
    other = Categories(category_field="kind").of(rows(None, kind=["x"]))
    assert other is not None
    assert other.members == {"x": [0]}


@pytest.mark.parametrize(
    ("categories", "given", "message"),
    [
        ({}, rows("a", None), "rows.jsonl:2: no field 'subset', which other rows have"),
        ({}, rows("a", subset=[3]), "rows.jsonl:1: field 'subset' is 3, expected text"),
        ({}, rows("a", "a", section=["x", "y"]), "the category 'a' lies in several sections: x, y"),
        ({"sections": {"x": ["b"]}}, rows("a"), "categories.sections has no section for the category 'a'"),
        ({"weights": {"b": 1.0}}, rows("a"), "categories.weights names 'b'; categories are a"),
        ({"weights": {"b": 1.0}}, rows(None), "need a field 'subset', which no row has"),
    ],
)
def test_rows_that_cannot_be_divided_are_refused(
    categories: dict[str, Any], given: list[Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Categories(**categories).of(given)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": {"a": 0.0}}, "Categories.weights must be positive and finite, got 0.0 for a"),
        (
            {"sections": {"x": ["a"], "y": ["a"]}},
            "Categories.sections must name a category once, got a twice",
        ),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Categories(**fields)
