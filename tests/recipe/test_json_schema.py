"""The JSON Schema of recipes knows every key with its meaning and its default, and no other."""

import json
from collections.abc import Mapping
from pathlib import Path

from typer.testing import CliRunner

from llama_peft.__main__ import app
from llama_peft.recipe import RECIPES
from llama_peft.recipe.schema import fields
from llama_peft.recipe.strict_yaml import read_bytes


def printed() -> dict[str, object]:
    return json.loads(CliRunner().invoke(app, ["schema"]).stdout)


def section(schema: Mapping[str, object], found: Mapping[str, object]) -> Mapping[str, object]:
    """The schema of a value: what `$ref` names, if it is a section, or one of its choices."""
    choices = [found, *found.get("anyOf", [])]
    for one in choices:
        if "$ref" in one:
            return schema["$defs"][one["$ref"].rpartition("/")[2]]
    return found


def test_every_key_has_its_meaning_and_its_default() -> None:
    schema = printed()
    for path, field in fields().items():
        place = schema
        for key in path:
            found = place["properties"][key]
            place = section(schema, found)
        assert place.get("description") or found.get("description"), path
        assert field.is_required() or "default" in found, path


def test_no_other_key_is_allowed() -> None:
    schema = printed()
    for found in (schema, *schema["$defs"].values()):
        assert found["additionalProperties"] is False


def test_the_packaged_recipes_have_keys_of_the_schema_only() -> None:
    schema = printed()

    def check(values: Mapping[str, object], place: Mapping[str, object]) -> None:
        for key, value in values.items():
            found = place["properties"][key]
            inner = section(schema, found)
            if isinstance(value, dict) and "properties" in inner:
                check(value, inner)
            elif "enum" in found:
                assert value in found["enum"]

    for file in RECIPES.glob("*.yaml"):
        check(read_bytes(file.read_bytes()).value, schema)


def test_it_is_written_to_a_new_file_only(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    done = CliRunner().invoke(app, ["schema", "--output", str(file)])
    assert "# yaml-language-server: $schema=" in done.output
    assert json.loads(file.read_text("utf-8")) == printed()
    assert CliRunner().invoke(app, ["schema", "--output", str(file)]).exit_code
