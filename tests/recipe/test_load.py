"""Recipes: one schema, every fault at once with its place, and YAML without surprises."""

import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llama_peft.errors import UserError
from llama_peft.recipe import load as recipe_module
from llama_peft.recipe import strict_yaml as recipe_yaml
from llama_peft.recipe.fields import Optimizer, Scheduler
from llama_peft.recipe.load import (
    describe,
    dump_recipe,
    fields,
    load_recipe,
    section_of,
)
from llama_peft.recipe.schema import LORA_EXCLUDED, Lora, Quantization, Recipe, Train

SMALL = """\
task: classification
model:
  model_name_or_path: tiny
dataset:
  parts: {train: reviews.csv}
"""

quick = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def write(folder: Path, text: str | bytes, name: str = "small.yaml") -> Path:
    file = folder / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def refusal(file: Path | str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(file, overrides)
    return str(caught.value)


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


# YAML ------------------------------------------------------------------------------------------


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
    read = recipe_yaml.read(f"key: {text}").value
    assert read == {"key": value}
    assert isinstance(read, dict) and type(read["key"]) is type(value)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
    | st.sampled_from(["no", "1e-4", "3:30", "null", "~", "01", "=", "<<", "- a", "a: b", "{text}"])
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(texts | st.text(min_size=130, max_size=200), inner, max_size=3)
    ),
    max_leaves=6,
)


@quick
@example(["1e-4", "2E-5", "12", "true", "null", "", "no", ".inf", "007", "3:30", "=", "<<", "~"])
@example({"a\x85b\u2028c\u2029d": "\x85", "line\nbreak": " \n ", "x" * 200: "- a: [b"})
@given(trees)
def test_dump_and_read_are_inverses(value: Any) -> None:
    text = recipe_yaml.dump({"top": value})
    try:
        assert recipe_yaml.read(text).value == {"top": value}
    except recipe_yaml.YamlFaults as error:
        assert "levels deep" in error.faults[0].message


BAD_YAML: list[tuple[str | bytes, str]] = [
    ("", "is empty"),
    ("# nothing but a comment\n", "is empty"),
    ("- a\n- b\n", "holds no keys"),
    ("just words", "holds no keys"),
    (SMALL + "task: extractive_qa\n", "line 6: task: stands twice (first on line 1)"),
    (SMALL + "train:\n  seed: 1\n  seed: 2\n", "line 8: train.seed: stands twice"),
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
    (SMALL + "\ttrain: 1\n", "line 6: not valid YAML"),
    (SMALL + "? [a, b]\n: 1\n", "line 6: a key must be a word"),
    (SMALL + 'name: "\\ud800"\n', "line 6: holds half a character"),
    (SMALL.encode() + b"name: \xff\xfe\n", "line 6: not UTF-8 text"),
    (SMALL.encode("utf-16"), "not UTF-8 text"),
    (SMALL + "name: a\x00b\n", "line 6: holds the control character"),
    (SMALL + "# " + "x" * 100_001, "larger than 100000 bytes"),
]


@pytest.mark.parametrize(("text", "fragment"), BAD_YAML)
def test_what_yaml_allows_and_a_recipe_does_not(
    tmp_path: Path, text: str | bytes, fragment: str
) -> None:
    message = refusal(write(tmp_path, text))
    assert fragment in message
    assert message.startswith(str(tmp_path / "small.yaml"))


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, b"\xef\xbb\xbf" + SMALL.encode())).task == "classification"


# Faults ----------------------------------------------------------------------------------------

LORA = "lora: {r: 8}\n"
BAD_KEYS: list[tuple[str, str]] = [
    ("train: {learnign_rate: 1e-4}", "line 6: train.learnign_rate: unknown key; did you mean tr"),
    (
        "learning_rate: 1e-4",
        "line 6: learning_rate: unknown key; did you mean train.learning_rate?",
    ),
    ("eval: {max_length: 9}", "eval.max_length: unknown key; did you mean train.max_length?"),
    ("hub: {seed: 1}", "unknown key; did you mean dataset.seed or train.seed?"),
    ("train: {warmup_ratio: 0.1}", "did you mean train.warmup_steps?"),
    ("train: {gradient_checkpointing: true}", "did you mean train.activation_checkpointing?"),
    ("head: {xyzzy: 1}", "head.xyzzy: unknown key; valid here: pooling"),
    ("train: {learning_rate: -1e-4}", "learning_rate: must be a number above 0, not -0.0001"),
    ("train: {learning_rate: 0}", "learning_rate: must be a number above 0, not 0"),
    ("train: {learning_rate: '1e-4'}", 'must be a number above 0, not "1e-4"'),
    ("train: {learning_rate: .inf}", "must be a number above 0, not Infinity"),
    ("train: {learning_rate: .nan}", "must be a number above 0, not NaN"),
    ("train: {per_device_train_batch_size: 0}", "must be a whole number of at least 1, not 0"),
    ("train: {per_device_train_batch_size: true}", "a whole number of at least 1, not true"),
    ("train: {per_device_train_batch_size: 2.5}", "a whole number of at least 1, not 2.5"),
    ("train: {max_steps: 0}", "max_steps: must be -1 (as num_train_epochs says) or at least 1"),
    ("train: {max_steps: -2}", "must be -1 or a number of steps, not -2"),
    ("train: {eval_steps: 5.0}", "must be a number of steps or a share of them below 1 or null"),
    ("train: {eval_steps: 0}", "must be a number of steps or a share"),
    ("train: {warmup_steps: 10.5}", "must be a whole number of steps, or a share"),
    ("train: {lr_scheduler_type: cosin}", 'not "cosin"; did you mean cosine?'),
    ("train: {lr_scheduler_type: cosine_with_min_lr}", "needs min_lr or min_lr_rate"),
    ("train: {optim: adamw_troch}", "did you mean adamw_torch?"),
    ("train: {use_cpu: yes}", 'must be true or false, not "yes"'),
    ("train: {seed: 4294967296}", "must be a whole number from 0 to 4294967295"),
    ("train: {report_to: wandb}", 'report_to: must be a list (text), not "wandb"'),
    ("train:", "line 6: train: must be a section of keys, not null"),
    ("train: fast", 'line 6: train: must be a section of keys, not "fast"'),
    ("train: {packing: prefix_tree}", "classification trains without packing"),
    ("quantization: {load_in_8bit: true}", "load_in_8bit: a base is stored in 4 or in 8 bits"),
    ("quantization: {bnb_4bit_quant_type: nf5}", "must be one of nf4, fp4, not"),
    ("lora: {r: 0}", "lora.r: must be a whole number of at least 1, not 0"),
    ("lora: {target_modules: []}", "lora.target_modules: no layer gets an adapter"),
    ("lora: {lora_dropout: 1.0}", "must be a number of at least 0 and below 1, not 1.0"),
    ("lora: {init_lora_weights: eva}", "gaussian, olora, orthogonal, pissa or pissa_niter_"),
    ("lora: {init_lora_weights: pissa}", "pissa needs a base that is not quantised"),
    ("lora: {target_modules: all-linear, layers_to_transform: 1}", "needs target_modules as a li"),
    ("lora: {target_modules: '('}", "lora.target_modules: '(' is no regular expression: missing )"),
    ("lora: {exclude_modules: '('}", "lora.exclude_modules: '(' is no regular expression"),
    ("lora: {rank_pattern: {'(': 4}}", "lora.rank_pattern: '(' is no regular expression"),
    ("lora: {alpha_pattern: {'[': 4}}", "lora.alpha_pattern: '[' is no regular expression"),
    ("lora: {trainable_token_indices: []}", "lora.trainable_token_indices: names no token"),
    ("lora: {trainable_token_indices: {embed_tokens: []}}", "names no token: remove it"),
    ("lora: {layers_pattern: h}", "lora.layers_pattern: needs layers_to_transform"),
    (
        "lora: {modules_to_save: [embed_tokens], trainable_token_indices: [1]}",
        "lora.trainable_token_indices: embed_tokens trains whole: remove one of the two",
    ),
    ("lora: {lora_bias: true, use_dora: true}", "lora.lora_bias: works without use_dora"),
    ("lora: {alora_invocation_tokens: [1]}", "works for generative_qa only"),
    ("lora: {task_type: CAUSAL_LM}", "lora.task_type: unknown key"),
    ("prompt: {template: text}", "prompt.template: must hold {text} exactly once"),
    ("prompt: {template: '{text} {text}'}", "prompt.template: must hold {text} exactly once"),
    ("prompt: {template: '{text} {title}'}", "prompt.template: must hold no brace but {text}"),
    ("prompt: {template: '{text}: '}", "prompt.template: must not end in a space"),
    ("prompt: {zero_shot: '{text} = '}", "prompt.zero_shot: must not end in a space"),
    ("prompt: {question: '{question} '}", "prompt.question: must not end in a space"),
    ("prompt: {question: 'Why?'}", "prompt.question: must hold {question} exactly once"),
    ("prompt: {context: 'P'}", "prompt.context: must hold {context} exactly once"),
    ("prompt: {instruction: 'Read {context}'}", "prompt.instruction: must hold no brace here"),
    ("prompt: {no_answer: '...'}", "prompt.no_answer: must hold a word"),
    ("prompt: {no_answer: ' none'}", "prompt.no_answer: must hold a word, with no space around"),
    ("prompt: {verbalizers: [' a', ' a']}", "prompt.verbalizers: names the same thing twice"),
    ("prompt: {verbalizers: [' a', '']}", "prompt.verbalizers: must be a list (text) or null"),
    ("eval: {splits: [train]}", "eval.splits: must be a list (one of test, validation, official)"),
    ("eval: {splits: []}", "eval.splits: must be a list"),
    ("eval: {splits: [test, test]}", "eval.splits: names the same thing twice"),
    ("eval: {splits: [official]}", "eval.splits: there is no official part"),
    ("task: banana", "stands twice"),
    ("name: a/b", "name: must be letters, digits, '.', '_' and '-', not \"a/b\""),
    ("name: ..", "name: must be letters"),
]


@pytest.mark.parametrize(("line", "fragment"), BAD_KEYS)
def test_bad_keys_and_values(tmp_path: Path, line: str, fragment: str) -> None:
    message = refusal(write(tmp_path, f"{SMALL}{line}\n"))
    assert fragment in message
    assert "1 fault\n" in message
    for leaked in ("Input should", "pydantic", "http", "type=", "Extra inputs", "Value error"):
        assert leaked not in message


BAD_DATASETS: list[tuple[str, str]] = [
    ("{}", "dataset.path: say where the data are"),
    ("{parts: {test: a.csv}}", "dataset.path: say where the data are"),
    ("{path: glue, parts: {dev: x}}", "dataset.parts.dev: unknown key; valid here: train, val"),
    ("{path: glue, parts: {train: 100}}", "dataset.parts.train: must be a file or a Hub split"),
    ("{path: tiny, name: reviews}", "dataset.parts.train: must be a number of rows, not train"),
    ("{path: tiny, parts: {train: 9}}", "dataset.name: path tiny needs dataset.name"),
    ("{parts: {train: a.csv}, name: sst2}", "dataset.name: is the configuration of a Hub data"),
    ("{path: a, format: squad}", "dataset.format: squad files hold questions, not classes"),
    ("{path: a, format: xml}", "dataset.format: must be one of auto, csv, tsv, json, jsonl"),
    ("{path: a, group_by: title}", "dataset.group_by: classification groups rows by group"),
    ("{path: a, labels: [x]}", "dataset.labels: must be a list (text) or null"),
    ("{path: a, labels: [0, 1]}", "dataset.labels: must be a list (text) or null, not [0, 1]"),
    ("{path: a, labels: [x, x]}", "dataset.labels: names the same thing twice"),
    (
        "{path: a, labels: [x, y]}\nprompt: {verbalizers: [a, b, c]}",
        "line 5: prompt.verbalizers: 3 verbalizers for 2 labels",
    ),
    (
        "{path: a, validation_size: 0}\ntrain: {early_stopping_patience: 2}",
        "line 5: train.early_stopping_patience: there is no validation part",
    ),
    ("{path: a, test_size: 1}", "dataset.test_size: must be a number of at least 0 and below 1"),
    ("{path: a, test_size: -0.1}", "dataset.test_size: must be a number of at least 0"),
    ("{path: a, test_size: 0}", "eval.splits: there is no test part: set dataset.parts.test"),
    ("{path: a, columns: {text: 5}}", "must be a column name or a list of them, not 5"),
    ("{path: a, columns: {text: []}}", "must be a column name or a list of them, not []"),
    ("{path: a, columns: {contexts: b}}", "did you mean dataset.columns.context?"),
    ("{path: a, columns: {txt: b}}", "did you mean dataset.columns.text?"),
    ("{path: a, max_train_samples: 0}", "must be a whole number of at least 1 or null, not 0"),
]


@pytest.mark.parametrize(("dataset", "fragment"), BAD_DATASETS)
def test_bad_data_sections(tmp_path: Path, dataset: str, fragment: str) -> None:
    text = SMALL.replace("\n  parts: {train: reviews.csv}", f" {dataset}")
    assert fragment in refusal(write(tmp_path, text))


@pytest.mark.parametrize(
    ("task", "lines", "fragment"),
    [
        ("generative_qa", "", "lora: generative_qa has no head to train: set lora"),
        ("generative_qa", LORA + "prompt: {verbalizers: [a, b]}", "only classification has verb"),
        ("extractive_qa", "train: {packing: prefix_tree}", "extractive_qa trains without packing"),
        ("extractive_qa", "train: {max_length: 128}", "doc_stride: must be below max_length (128)"),
        ("extractive_qa", "train: {early_stopping_patience: 1}", None),
        ("generative_qa", LORA + "train: {packing: prefix_tree, max_length: 64}", None),
    ],
)
def test_tasks_and_keys_that_do_not_go_together(
    tmp_path: Path, task: str, lines: str, fragment: str | None
) -> None:
    file = write(tmp_path, f"{SMALL.replace('classification', task)}{lines}\n")
    if fragment is None:
        assert load_recipe(file).task == task
    else:
        assert fragment in refusal(file)


def test_questions_have_no_labels(tmp_path: Path) -> None:
    file = write(tmp_path, SMALL.replace("classification", "extractive_qa"))
    assert "only classification has labels" in refusal(file, "dataset.labels=[a, b]")


def test_all_faults_come_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """\
task: clasification
model: {model_name_or_path: 5, dtyp: float32}
lora:
  r: -1
dataset: {path: a, columns: {text: 5}}
train:
  learnign_rate: 1e-4
  max_steps: abc
quantization: {load_in_8bit: true}
eval: {splits: [official]}
"""
    header, *lines = refusal(write(tmp_path, text), "train.seed=-1", "oops").splitlines()
    assert header == f"{tmp_path / 'small.yaml'}: 11 faults"
    assert [line.split(": ")[:2] for line in lines] == [
        ["  override oops", "write section.key=value"],
        ["  line 1", "task"],
        ["  line 2", "model.dtyp"],
        ["  line 2", "model.model_name_or_path"],
        ["  line 4", "lora.r"],
        ["  line 5", "dataset.columns.text"],
        ["  line 7", "train.learnign_rate"],
        ["  line 8", "train.max_steps"],
        ["  line 9", "quantization.load_in_8bit"],
        ["  line 10", "eval.splits"],
        ["  override train.seed=-1", "train.seed"],
    ]
    assert "did you mean classification?" in lines[1]


def test_a_wrong_key_is_not_blamed_twice(tmp_path: Path) -> None:
    """A bad lora section must not also be reported as a missing one."""
    text = SMALL.replace("classification", "generative_qa")
    message = refusal(write(tmp_path, f"{text}lora: 5\n"))
    assert "1 fault\n" in message
    assert "lora: must be a section of keys or null, not 5" in message


def test_missing_keys_are_named(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, "name: x\ndataset: {path: glue}\n"))
    assert "task: missing: it must be one of classification, extractive_qa" in message
    assert "model: missing: it must be a section of keys" in message
    message = refusal(write(tmp_path, "task: classification\nmodel: {}\ndataset: {path: a}\n"))
    assert "line 2: model.model_name_or_path: missing: it must be text" in message


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


def test_names_of_packaged_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged, here = tmp_path / "recipes", tmp_path / "here"
    packaged.mkdir()
    here.mkdir()
    for name in ("sst2", "sst2-head", "squad"):
        write(packaged, SMALL, f"{name}.yaml")
    monkeypatch.setattr(recipe_module, "RECIPES", packaged)
    monkeypatch.chdir(here)
    assert load_recipe("sst2-head").name == "sst2-head"
    (here / "squad").mkdir()
    assert load_recipe("squad").name == "squad"
    assert "sts2: no such recipe; did you mean sst2" in refusal("sts2")
    assert "xyz: no such recipe; did you mean squad, sst2 or sst2-head?" in refusal("xyz")
    assert "recipes/sst3.yaml: no such recipe; did you mean sst2" in refusal("recipes/sst3.yaml")
    write(here, SMALL + "name: mine\n", "sst2")
    assert load_recipe("sst2").name == "mine"


# The schema ------------------------------------------------------------------------------------


def test_every_key_explains_itself() -> None:
    for path, field in fields().items():
        assert describe(field.annotation, field.metadata)
        assert section_of(field.annotation) or field.description, path


def test_lora_keys_are_those_of_peft() -> None:
    from peft import LoraConfig

    known = {field.name for field in dataclasses.fields(LoraConfig)}
    assert set(Lora.model_fields) | set(LORA_EXCLUDED) == known
    assert not set(Lora.model_fields) & set(LORA_EXCLUDED)
    config = LoraConfig(**Lora(r=4, rank_pattern={"q_proj": 2}).peft_kwargs())
    assert (config.r, config.rank_pattern) == (4, {"q_proj": 2})
    for name, reason in LORA_EXCLUDED.items():
        assert reason, name


def test_train_and_quantization_keys_are_those_of_transformers() -> None:
    from transformers import BitsAndBytesConfig, TrainingArguments
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    ours = {"max_length", "packing", "doc_stride", "early_stopping_patience"}
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert set(Train.model_fields) - ours <= known
    assert set(get_args(Scheduler)) == {item.value for item in SchedulerType}
    assert set(get_args(Optimizer)) == {item.value for item in OptimizerNames}
    known = set(inspect.signature(BitsAndBytesConfig).parameters)
    assert set(Quantization.model_fields) <= known


def test_reading_a_recipe_loads_no_heavy_library() -> None:
    code = (
        "import sys, llama_peft.recipe, llama_peft.data;"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'sklearn', 'pyarrow', 'numpy'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# Any recipe ------------------------------------------------------------------------------------

clean = texts.map(lambda text: text.replace("{", "").replace("}", ""))
words = texts.filter(bool) | st.sampled_from(["1e-4", "12", "null", "true", "no", "a\nb"])
recipes = st.fixed_dictionaries(
    {
        "task": st.just("classification"),
        "model": st.fixed_dictionaries({"model_name_or_path": words}),
        "dataset": st.fixed_dictionaries(
            {
                "path": words.filter(lambda text: text != "tiny"),
                "labels": st.none() | st.lists(words, min_size=2, max_size=4, unique=True),
                "columns": st.fixed_dictionaries({"text": words | st.lists(words, min_size=1)}),
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


@quick
@given(path=st.sampled_from(sorted(fields())), value=trees)
def test_any_value_anywhere_is_taken_or_refused(
    tmp_path: Path, path: tuple[str, ...], value: Any
) -> None:
    values: Any = {"task": "classification", "model": {"model_name_or_path": "tiny"}}
    values["dataset"] = {"path": "glue"}
    section = values
    for part in path[:-1]:
        section = section.setdefault(part, {})
    section[path[-1]] = value
    file = write(tmp_path, recipe_yaml.dump(values))
    try:
        recipe = load_recipe(file)
    except UserError as error:
        assert "fault" in str(error)
        assert "Input should" not in str(error)
    else:
        assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe
