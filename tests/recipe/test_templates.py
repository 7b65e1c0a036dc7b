"""A text may be made of several columns: all of them are read, by the data and by the templates."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from llama_peft import data
from llama_peft.data import FieldsExample, TextExample
from llama_peft.errors import UserError
from llama_peft.recipe import (
    Parts,
    Prompt,
    Recipe,
    dump_recipe,
    load_recipe,
    strict_yaml,
    templates,
)
from tests.support.tables import make, refusal, train_of, whole, write

PAIR = {"text": ["premise", "hypothesis"]}
LINES = "premise: {premise}\nhypothesis: {hypothesis}"


def rows(count: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {"premise": f"p {n}", "hypothesis": f"h {n}", "label": "xy"[n % 2]} | more
        for n in range(count)
    ]


def test_all_columns_of_a_list_are_parts_of_a_text(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", rows(2))
    assert train_of(whole(file, columns=PAIR)) == [
        FieldsExample(
            id=f"train-{n + 1}",
            text=f"premise: p {n}\nhypothesis: h {n}",
            label=n,
            fields=(("premise", f"p {n}"), ("hypothesis", f"h {n}")),
        )
        for n in range(2)
    ]
    turned = train_of(whole(file, columns={"text": ["hypothesis", "premise"]}))[0]
    assert list(turned.values) == ["hypothesis", "premise"], "in the order of the recipe"
    file = write(tmp_path / "a.json", rows(2, third="z"))
    three = train_of(whole(file, columns={"text": ["third", "premise", "hypothesis"]}))[0]
    assert three.values == {"third": "z", "premise": "p 0", "hypothesis": "h 0"}


def test_one_column_of_a_list_is_the_text(tmp_path: Path) -> None:
    """The list then holds other names for the same column."""
    file = write(tmp_path / "a.json", rows(2))
    recipe = whole(file, columns={"text": ["body", "premise"]})
    assert train_of(recipe)[1] == TextExample(id="train-2", text="p 1", label=1)
    assert data.with_fields(recipe, data.load(recipe)) == recipe


def test_some_columns_of_a_list_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", rows(2))
    message = refusal(whole(file, columns={"text": ["premise", "hypothesis", "other"]}))
    assert message == (
        f"{file}: dataset.columns.text names premise, hypothesis, other, but the data have no column "
        "named other: name the columns of one text, all of which the data have; the columns are: "
        "premise, hypothesis, label"
    )
    prompt = {"template": "{premise} and {gone}"}
    recipe = whole(file, columns={"text": ["premise", "gone"]})
    recipe = recipe.changed(prompt=Prompt.model_validate(prompt))
    assert "the data have no column named gone" in refusal(recipe), "the template needs both"


def test_a_text_has_the_same_columns_in_every_part(tmp_path: Path) -> None:
    """One part would be learned as one text, and another read as a pair."""
    both = write(tmp_path / "a.json", rows(4))
    one = write(tmp_path / "b.json", [{**row, "id": f"b{n}"} for n, row in enumerate(rows(4))])
    one.write_text(one.read_text().replace("hypothesis", "note"))
    for train, test in ((both, one), (one, both)):
        recipe = whole(train, columns=PAIR, validation_size=0.0)
        parts = Parts(train=str(train), test=str(test))
        message = refusal(recipe.changed(dataset={"parts": parts}))
        assert "part has premise, hypothesis, but the t" in message and "only one" in message


def test_every_field_must_hold_text(tmp_path: Path) -> None:
    bad = [*rows(2), rows(1)[0] | {"hypothesis": " "}, rows(1)[0] | {"premise": 5}]
    file = write(tmp_path / "a.json", bad)
    message = refusal(whole(file, columns=PAIR))
    assert "1 row: empty hypothesis (first: row 3)" in message
    assert "1 row: premise is not text (first: row 4: 5)" in message


def test_without_templates_each_field_has_a_line(tmp_path: Path) -> None:
    recipe = whole(write(tmp_path / "a.json", rows(2)), columns=PAIR)
    prompt = data.with_fields(recipe, data.load(recipe)).prompt
    assert prompt.template == LINES
    assert prompt.zero_shot == f"{LINES}\nLabel:"
    several = recipe.changed(dataset={"single_label": False})
    asked = data.with_fields(several, data.load(recipe)).prompt.zero_shot_label
    assert prompt.zero_shot_label == Prompt().zero_shot_label, "only several labels are asked so"
    assert asked.startswith(LINES) and "{label}" in asked
    own = Prompt(zero_shot="{hypothesis}? {premise}").of_fields(["premise", "hypothesis"])
    assert own.template == LINES
    assert own.zero_shot == "{hypothesis}? {premise}"
    assert prompt.fields == ("premise", "hypothesis") and Prompt().fields == ()


@pytest.mark.parametrize(
    ("prompt", "columns", "message"),
    [
        ("{premise}", PAIR, "prompt.{key}: leaves out {hypothesis}, which dataset.columns.text"),
        (
            "{premise} {hypo}",
            PAIR,
            "names {hypo}, which dataset.columns.text (premise, hypothesis) does not",
        ),
        ("{text} {premise} {hypothesis}", PAIR, "names {text}, which dataset.columns.text"),
        ("{premise} {hypothesis}", {}, "set dataset.columns.text: [premise, hypothesis]"),
        ("{premise} {hypothesis}", {"text": "premise"}, "set dataset.columns.text: [premise, hyp"),
        ("{body}", {"text": "body"}, "must contain {text} exactly once"),
        ("{premise} {premise} {hypothesis}", PAIR, "exactly once"),
        ("no name", PAIR, "must contain {text}, or the name of each column of text, exactly once"),
        ("{premise} {hypothesis} {", PAIR, "must contain no braces except {text} or names of col"),
        ("{premise} {hypothesis} {}", PAIR, "must contain no braces except {text} or names of col"),
        ("{premise} {hypothesis} ", PAIR, "must not end in a space"),
        (LINES, {"text": ["premise", "hypothesis", "a{b"]}, "cannot have braces in its name"),
    ],
)
@pytest.mark.parametrize("key", ["template", "zero_shot"])
def test_a_template_names_all_fields_and_no_others(
    key: str, prompt: str, columns: dict[str, Any], message: str
) -> None:
    values = {"task": "classification", "model": {"model_name_or_path": "m"}}
    with pytest.raises(UserError) as caught:
        load_recipe(
            values | {"dataset": {"path": "a.csv", "columns": columns}, "prompt": {key: prompt}}
        )
    assert message.replace("{key}", key) in str(caught.value)


def test_one_text_is_not_several(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", rows(2))
    recipe = whole(file, columns=PAIR)
    prompt = Prompt(template="Review: {text}")
    assert refusal(recipe.changed(prompt=prompt)) == (
        f"{file}: prompt.template has {{text}}, which stands for one column, but the data have 2 of "
        "dataset.columns.text: write {premise} and {hypothesis}"
    )


ODD = ["a.b", "sentence 1", "x[0]", "y!r", "z:>9", "0", "text", "{}".strip("{}") + "é"]


def test_a_column_may_have_any_name(tmp_path: Path) -> None:
    record = {name: f"<{name}>" for name in ODD}
    file = write(tmp_path / "a.json", [record | {"label": n} for n in range(2)])
    recipe = whole(file, columns={"text": ODD})
    example = train_of(recipe)[0]
    template = data.with_fields(recipe, data.load(recipe)).prompt.template
    assert templates.filled(template, example.values) == example.text
    assert example.text == "\n".join(f"{name}: <{name}>" for name in ODD)


def test_values_are_never_read_as_templates() -> None:
    example = FieldsExample.of({"a": "{b} {a.__class__}", "b": "{a}"}, id="1", label=0)
    assert example.text == "a: {b} {a.__class__}\nb: {a}"


def test_a_recipe_with_fields_reads_back() -> None:
    recipe = make(columns=PAIR, parts={"train": "a.csv"}, prompt={"template": LINES})
    assert Recipe.model_validate(strict_yaml.read(dump_recipe(recipe)).value) == recipe


def test_sums_of_one_column_stay_and_those_of_fields_see_every_field() -> None:
    one = data.Dataset(labels=("x",), parts={"train": [TextExample(id="1", text="a", label=0)]})
    values = ["train", {"id": "1", "text": "a", "label": 0, "group": ""}]
    assert data.content_sum(one) == hashlib.sha256(json.dumps(values).encode()).hexdigest()
    pairs = [
        {"p": "a", "h": "b"},
        {"p": "a", "h": "c"},
        {"p": "b", "h": "a"},
        {"p": "A ", "h": "b"},
    ]
    examples = [FieldsExample.of(pair, id="1", label=0) for pair in pairs]
    assert len({data.asked_sum(example) for example in examples}) == 3, "case and spaces are not"
    sums = {data.content_sum(data.Dataset(labels=("x",), parts={"train": [e]})) for e in examples}
    assert len(sums) == 4


def test_pairs_are_split_as_texts_are(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", rows(40, group="g"))
    dataset = data.load(make(parts={"train": str(file)}, columns=PAIR))
    assert [len(examples) for examples in dataset.parts.values()] == [28, 4, 8]
    single = data.load(make(parts={"train": str(file)}, columns={"text": "premise"}))
    assert data.split_ids(dataset) == data.split_ids(single)
