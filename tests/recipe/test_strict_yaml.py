"""Strict YAML: words mean what JSON means, and what a recipe does not need is refused."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llama_peft.recipe import load_recipe, strict_yaml
from tests.support.recipes import SMALL, quick, refusal, trees, write


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("2E-5", 2e-5),
        ("+.5", 0.5),
        ("1.", 1.0),
        ("-3", -3),
        ("no", "no"),
        ("on", "on"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("3:30", "3:30"),
        ("0x10", "0x10"),
        ("007", "007"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("'1e-4'", "1e-4"),
        ('"true"', "true"),
        ("9" * 5000, "9" * 5000),
        ("[1, no, {a: 2e-5}]", [1, "no", {"a": 2e-5}]),
    ],
)
def test_words_mean_what_json_means(text: str, value: object) -> None:
    read = strict_yaml.read(f"key: {text}").value
    assert read == {"key": value}
    assert isinstance(read, dict) and type(read["key"]) is type(value)


@quick
@example(["1e-4", "2E-5", "12", "true", "null", "", "no", ".inf", "007", "3:30", "=", "<<", "~"])
@example({"a\x85b\u2028c\u2029d": "\x85", "line\nbreak": " \n ", "x" * 200: "- a: [b"})
@given(trees)
def test_dump_and_read_are_inverses(value: Any) -> None:
    text = strict_yaml.dump({"top": value})
    try:
        assert strict_yaml.read(text).value == {"top": value}
    except strict_yaml.YamlFaults as error:
        assert "levels deep" in error.faults[0].message


@quick
@example("a\n\U0001f44d \\U0001F44D \U000e0001 \u2028")
@given(st.text())
def test_a_line_is_read_as_it_was_written(text: str) -> None:
    line = strict_yaml.dump_line(text)
    assert "\n" not in line and strict_yaml.read(f"key: {line}").value == {"key": text}
    assert "\U0001f44d" not in text or "\U0001f44d" in line


BAD_YAML: list[tuple[str | bytes, str]] = [
    ("", "is empty"),
    ("# nothing but a comment\n", "is empty"),
    ("- a\n- b\n", "contains no keys"),
    ("just words", "contains no keys"),
    (SMALL + "task: extractive_qa\n", "line 6: task: is written twice (first on line 1)"),
    (SMALL + "train:\n  seed: 1\n  seed: 2\n", "line 8: train.seed: is written twice"),
    (SMALL + "train: !!python/object/apply:os.system [ls]\n", "line 6: tags are not allowed"),
    (SMALL + "train: !foo {seed: 1}\n", "line 6: tags are not allowed: remove !foo"),
    (SMALL + "train: ! {seed: 1}\n", "line 6: tags are not allowed"),
    (SMALL + "train: &a {seed: 1}\n", "line 6: anchors are not allowed: remove &a"),
    (SMALL + "train: &a {seed: 1}\nhub: *a\n", "line 7: aliases are not allowed"),
    (SMALL + "train: {<<: {seed: 1}}\n", "train.<<: unknown key"),
    (SMALL + "train: " + "[" * 9 + "]" * 9, "nested more than 8 levels deep"),
    (SMALL + "train: " + "[" * 20_000, "nested more than 8 levels deep"),
    (SMALL + "---\n" + SMALL, "line 6: a second document starts here"),
    (SMALL + "train: {seed: 1\n", "not valid YAML"),
    (SMALL + "train: [1, 2\nhub: x\n", "not valid YAML"),
    (SMALL + "\ttrain: 1\n", "line 6: is not valid YAML"),
    (SMALL + "? [a, b]\n: 1\n", "line 6: a key must be text"),
    (SMALL + 'name: "\\ud800"\n', "line 6: contains an unpaired Unicode surrogate"),
    (SMALL.encode() + b"name: \xff\xfe\n", "line 6: is not UTF-8 text"),
    (SMALL.encode("utf-16"), "not UTF-8 text"),
    (SMALL + "name: a\x00b\n", "line 6: contains the control character"),
    (SMALL + "# " + "x" * 100_001, "is larger than 100000 bytes"),
]


@pytest.mark.parametrize(("text", "fragment"), BAD_YAML)
def test_what_yaml_allows_and_a_recipe_does_not(
    tmp_path: Path, text: str | bytes, fragment: str
) -> None:
    message = refusal(write(tmp_path, text))
    assert fragment in message
    assert message.startswith(str(tmp_path / "small.yaml"))


def test_a_byte_order_mark_is_not_a_fault(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, b"\xef\xbb\xbf" + SMALL.encode())).task == "classification"
