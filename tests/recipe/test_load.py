"""Recipes are found, read, overridden and written back."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_peft.errors import UserError
from llama_peft.recipe import GIVEN, Recipe, dump_recipe, is_recipe_name, load_recipe
from llama_peft.recipe import load as load_module
from llama_peft.recipe.schema import Lora, Train
from tests.support.paths import RUNS_0_1_0
from tests.support.recipes import LORA, SMALL, quick, refusal, texts, write


def test_a_small_recipe_states_only_what_differs(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, SMALL, "my reviews.yaml"))
    assert recipe.name == "my-reviews"
    assert recipe.run_folder == "runs/my-reviews"
    assert recipe.lora is None
    assert recipe.quantization.load_in_4bit
    assert recipe.train == Train()


def test_a_run_folders_recipe_keeps_its_name_and_is_equal(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, SMALL, "sst2.yaml"), ["lora.r=8", "train.max_steps=5"])
    again = load_recipe(write(tmp_path, dump_recipe(recipe), "recipe.yaml"))
    assert again == recipe
    assert again.name == "sst2"


# Overrides -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.learning_rate=1e-4", 1e-4),
        ("train.output_dir=", None),
        ("train.output_dir=no", "no"),
        ("train.output_dir='3'", "3"),
        ("train.report_to=[wandb, trackio]", ["wandb", "trackio"]),
        ("lora.r=8", 8),
        ("lora.rank_pattern={a.b: 4}", {"a.b": 4}),
        ("prompt.template=Review: {text}", "Review: {text}"),
        ("prompt.template={text}", "{text}"),
        ('prompt.template="{text}\\nLabel:"', "{text}\nLabel:"),
        ("dataset.columns.text=body", "body"),
        ("dataset.parts.official=a=b.csv", "a=b.csv"),
        (" hub.hub_model_id = me/it ", "me/it"),
    ],
)
def test_overrides_go_through_the_schema(tmp_path: Path, override: str, value: object) -> None:
    result: Any = load_recipe(write(tmp_path, SMALL), [override])
    for part in override.partition("=")[0].strip().split("."):
        result = getattr(result, part)
    assert result == value and type(result) is type(value)


def test_the_last_override_wins_and_lora_can_come_and_go(tmp_path: Path) -> None:
    file = write(tmp_path, SMALL + LORA)
    assert load_recipe(file, ["lora=null"]).lora is None
    assert load_recipe(file, ["lora=", "lora.lora_alpha=4"]).lora == Lora(lora_alpha=4)
    assert load_recipe(file, ["train.seed=1", "train.seed=2"]).train.seed == 2


@pytest.mark.parametrize(
    ("override", "fragment"),
    [
        ("train.max_steps=abc", "override train.max_steps=abc: train.max_steps: must be -1 or a"),
        ("train.max_step=1", "override train.max_step=1: train.max_step: unknown key; did you m"),
        ("train.max_steps", "override train.max_steps: write section.key=value"),
        ("=5", "override =5: write section.key=value"),
        ("train..seed=5", "write section.key=value"),
        ("task.x=5", "override task.x=5: task is not a section"),
        ("train.report_to=[a, *b]", "aliases are not allowed"),
        ("train.report_to=['a]", "not valid YAML"),
        ("hub.hub_model_id=\udcff", "not UTF-8 text"),
        ("quantization.load_in_8bit=true", "override quantization.load_in_8bit=true: quant"),
    ],
)
def test_bad_overrides_are_named_as_overrides(tmp_path: Path, override: str, fragment: str) -> None:
    assert fragment in refusal(write(tmp_path, SMALL), override)


# Finding a recipe ------------------------------------------------------------------------------


def test_a_name_is_looked_up_in_the_users_recipes_and_then_in_the_packaged_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged, here = tmp_path / "packaged", tmp_path / "here"
    packaged.mkdir()
    (here / "recipes").mkdir(parents=True)
    for name in ("sst2", "sst2-head", "squad"):
        write(packaged, SMALL, f"{name}.yaml")
    monkeypatch.setattr(load_module, "RECIPES", packaged)
    monkeypatch.chdir(here)
    assert load_recipe("sst2-head").name == "sst2-head"
    (here / "squad").mkdir()
    assert load_recipe("squad").name == "squad"
    assert "sts2: no such recipe; did you mean sst2" in refusal("sts2")
    assert "xyz: no such recipe; did you mean squad, sst2 or sst2-head?" in refusal("xyz")
    assert "recipes/sst3.yaml: no such recipe; did you mean sst2" in refusal("recipes/sst3.yaml")
    write(here / "recipes", SMALL, "mine.yaml")
    write(here / "recipes", SMALL, "other.yml")
    write(here / "recipes", SMALL + "name: own-squad\n", "squad.yaml")
    assert load_recipe("mine").name == "mine"
    assert load_recipe("other").name == "other"
    assert load_recipe("squad").name == "own-squad", "the user's recipe comes first"
    assert "mien: no such recipe; did you mean mine" in refusal("mien")
    write(here, SMALL, "tickets.yaml")  # where init writes it
    assert "tickets: no such recipe; did you mean tickets.yaml?" in refusal("tickets")
    write(here, SMALL + "name: a-file\n", "sst2")
    assert load_recipe("sst2").name == "a-file", "a path comes before a name"


def test_what_is_a_recipe_and_what_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "model").mkdir()
    write(tmp_path / "recipes", SMALL, "mine.yaml")
    for name in ("mine", "tiny-sst2", "gone.yaml", "recipes/mine.yaml"):
        assert is_recipe_name(name), name
    for name in ("tiny", "model", "meta-llama/Llama-3.2-1B", "recipes/mine", "../recipes/mine"):
        assert not is_recipe_name(name), name


# Dicts -----------------------------------------------------------------------------------------

VALUES: dict[str, Any] = {
    "task": "classification",
    "model": {"model_name_or_path": "tiny"},
    "dataset": {"parts": {"train": "reviews.csv"}},
}


def test_a_dict_is_a_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(VALUES, ["train.seed=7"])
    assert recipe == load_recipe(write(tmp_path, SMALL, "run.yaml"), ["train.seed=7"])
    assert recipe.name == "run"
    file = write(tmp_path, dump_recipe(recipe))
    assert load_recipe(file) == load_recipe(str(file)) == recipe


def test_a_dict_is_not_changed_and_may_hold_paths_tuples_and_sections() -> None:
    before = {**VALUES, "dataset": {"path": Path("a.csv"), "labels": ("x", "y")}, "lora": Lora(r=4)}
    recipe = load_recipe(before, ["dataset.seed=1", "lora.r=8"])
    assert (recipe.dataset.path, recipe.dataset.labels) == ("a.csv", ["x", "y"])
    assert (recipe.dataset.seed, recipe.lora) == (1, Lora(r=8))
    assert before["dataset"] == {"path": Path("a.csv"), "labels": ("x", "y")}


def test_faults_of_a_dict_are_those_of_a_file_without_lines() -> None:
    wrong = {
        "task": "classification",
        "model": 5,
        "lora": {"rank": 8},
        3: "x",
        "head": {"layer": {1}},
    }
    lines = refusal({**wrong, "train": {"seed": float("nan")}}, "train.max_steps=abc").splitlines()
    assert lines == [
        "recipe: 7 faults",
        "  3: unknown key; valid here: " + ", ".join(Recipe.model_fields),
        "  dataset.path: say where the data are: set dataset.path (a Hub name or a file) "
        "or dataset.parts.train",
        '  head.layer: must be -1, auto, or the number of a block, from 1, not "{1}"',
        "  lora.rank: unknown key; did you mean lora.r?",
        "  model: must be a section of keys, not 5",
        "  override train.max_steps=abc: train.max_steps: must be -1 or a number of steps, "
        'not "abc"',
        "  train.seed: must be a whole number from 0 to 4294967295, not NaN",
    ]
    assert 'not "\\ud800"' in refusal({**VALUES, "name": "\ud800"}), "it can be printed"
    assert refusal(5) == "a recipe is a file, a name or a dict, not of type int"  # type: ignore[arg-type]


def test_given_parts_need_no_place() -> None:
    without = {**VALUES, "dataset": {}, "eval": {"splits": ["test", "official"]}}
    assert "2 faults" in refusal(without)
    recipe = load_recipe(without, given=["train", "official"])
    assert recipe.dataset.parts.given() == {"train": GIVEN, "official": GIVEN}
    tiny = {"path": "tiny", "name": "reviews", "parts": {"train": 9}}
    assert load_recipe({**VALUES, "dataset": tiny}, given=["test"]).dataset.parts.test == GIVEN
    with pytest.raises(UserError, match=r"dataset\.parts\.exam: unknown key; valid here: train, "):
        load_recipe(VALUES, given=["exam"])


# Version 0.1.0 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("run", sorted(path.name for path in RUNS_0_1_0.iterdir()))
def test_recipes_of_version_0_1_0_load_and_are_written_the_same(run: str) -> None:
    """They hold every key, also those that are fixed now. A finished run knows its recipe by the text."""
    file = RUNS_0_1_0 / run / "recipe.yaml"
    assert dump_recipe(load_recipe(file)) == file.read_text("utf-8")


# Any recipe ------------------------------------------------------------------------------------

clean = texts.map(lambda text: text.replace("{", "").replace("}", ""))
words = texts.filter(bool) | st.sampled_from(["1e-4", "12", "null", "true", "no", "a\nb"])
names = words.filter(lambda text: "\0" not in text)  # no path can hold a zero byte
recipes = st.fixed_dictionaries(
    {
        "task": st.just("classification"),
        "model": st.fixed_dictionaries({"model_name_or_path": names}),
        "dataset": st.fixed_dictionaries(
            {
                "path": names.filter(lambda text: text != "tiny"),
                "labels": st.none() | st.lists(words, min_size=2, max_size=4, unique=True),
                "columns": st.fixed_dictionaries(
                    {"text": words | st.lists(clean.filter(bool), min_size=1)}
                ),
                "test_size": st.floats(0.01, 0.99),
            }
        ),
        "prompt": st.fixed_dictionaries(
            {
                "instruction": clean,
                "zero_shot": st.builds("{}{{text}}{}.".format, clean, clean),
            }
        ),
        "train": st.fixed_dictionaries(
            {
                "learning_rate": st.floats(min_value=1e-12, max_value=1e3),
                "eval_steps": st.none() | st.integers(1, 10**9) | st.floats(1e-9, 0.999),
                "report_to": st.lists(words, max_size=2),
            }
        ),
    },
    optional={
        "lora": st.none()
        | st.fixed_dictionaries(
            {
                "rank_pattern": st.dictionaries(
                    texts.map(re.escape), st.integers(1, 99), max_size=2
                ),
                "init_lora_weights": st.booleans() | st.just("gaussian"),
            }
        )
    },
)


@quick
@given(values=recipes)
def test_a_dumped_recipe_reads_back_equal(tmp_path: Path, values: dict[str, Any]) -> None:
    recipe = Recipe.model_validate(values)
    assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe


@quick
@given(text=st.text(st.sampled_from(list("a:1-{}[]\n \"'#&*!|>%@?,.~<e\t\\")), max_size=60))
def test_any_text_is_a_recipe_or_one_clear_refusal(tmp_path: Path, text: str) -> None:
    assert "small.yaml" in refusal(write(tmp_path, text))
