"""Checks of a recipe: every fault at once, each with its place and what is wrong."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_peft.errors import UserError
from llama_peft.recipe import dump_recipe, load_recipe, strict_yaml
from llama_peft.recipe.schema import fields
from tests.support.recipes import LORA, SMALL, quick, refusal, trees, write

BAD_KEYS: list[tuple[str, str]] = [
    (
        "train: {learning_rate: -1e-4}",
        "learning_rate: must be a number above 0, or auto, not -0.0001",
    ),
    ("train: {learning_rate: 0}", "learning_rate: must be a number above 0, or auto, not 0"),
    ("train: {learning_rate: '1e-4'}", 'must be a number above 0, or auto, not "1e-4"'),
    ("train: {learning_rate: .inf}", "must be a number above 0, or auto, not Infinity"),
    ("train: {learning_rate: .nan}", "must be a number above 0, or auto, not NaN"),
    (
        "train: {per_device_train_batch_size: 0}",
        "must be a whole number of at least 1, or auto, not 0",
    ),
    (
        "train: {per_device_train_batch_size: true}",
        "a whole number of at least 1, or auto, not true",
    ),
    ("train: {per_device_train_batch_size: 2.5}", "a whole number of at least 1, or auto, not 2.5"),
    ("train: {max_steps: 0}", "max_steps: must be -1 (num_train_epochs decides) or at least 1"),
    ("train: {max_steps: -2}", "must be -1 or a number of steps, not -2"),
    (
        "train: {eval_steps: 5.0}",
        "must be a number of steps or a share of all steps below 1 or null",
    ),
    ("train: {eval_steps: 0}", "must be a number of steps or a share"),
    ("train: {warmup_steps: 10.5}", "must be a whole number of steps, or a share"),
    ("train: {lr_scheduler_type: cosin}", 'not "cosin"; did you mean cosine?'),
    ("train: {lr_scheduler_type: cosine_with_min_lr}", "needs min_lr or min_lr_rate"),
    ("train: {optim: adamw_troch}", "did you mean adamw_torch?"),
    (
        "train: {class_weights: balance}",
        "balanced or a number above 0 for each label that is named",
    ),
    ("train: {class_weights: {a: -1}}", "above 0 for each label that is named, such as {rare: 5}"),
    ("train: {class_weights: {a: .nan}}", "class_weights: must be balanced or a number above 0"),
    ("train: {class_weights: {a: 0}}", "class_weights: must be balanced or a number above 0"),
    (
        "train: {pos_weight: balanced}",
        "only classification with several labels a row has pos_weight",
    ),
    ("train: {class_weight: balanced}", "did you mean train.class_weights?"),
    ("train: {use_cpu: yes}", 'must be true or false, not "yes"'),
    ("train: {seed: 4294967296}", "must be a whole number from 0 to 4294967295"),
    (
        "train: {report_to: wandb}",
        'report_to: must be a list in which each item is text, not "wandb"',
    ),
    ("train:", "line 6: train: must be a section of keys, not null"),
    ("train: fast", 'line 6: train: must be a section of keys, not "fast"'),
    (
        "quantization: {load_in_8bit: true}",
        "load_in_8bit: the base is stored in 4 bits or in 8 bits",
    ),
    ("quantization: {bnb_4bit_quant_type: nf5}", "must be one of nf4, fp4, not"),
    ("lora: {r: 0}", "lora.r: must be a whole number of at least 1, not 0"),
    ("lora: {target_modules: []}", "lora.target_modules: names no layer that gets an adapter"),
    ("lora: {lora_dropout: 1.0}", "must be a number of at least 0 and below 1, not 1.0"),
    ("lora: {init_lora_weights: eva}", "gaussian, olora, orthogonal, pissa or pissa_niter_"),
    ("lora: {init_lora_weights: pissa}", "pissa needs a base that is not quantised"),
    ("lora: {target_modules: all-linear, layers_to_transform: 1}", "needs target_modules as a li"),
    (
        "lora: {target_modules: '('}",
        "lora.target_modules: '(' is not a regular expression: missing )",
    ),
    ("lora: {exclude_modules: '('}", "lora.exclude_modules: '(' is not a regular expression"),
    ("lora: {rank_pattern: {'(': 4}}", "lora.rank_pattern: '(' is not a regular expression"),
    ("lora: {alpha_pattern: {'[': 4}}", "lora.alpha_pattern: '[' is not a regular expression"),
    ("lora: {trainable_token_indices: []}", "lora.trainable_token_indices: names no token"),
    ("lora: {trainable_token_indices: {embed_tokens: []}}", "names no token: remove this key"),
    ("lora: {layers_pattern: h}", "lora.layers_pattern: needs layers_to_transform"),
    (
        "lora: {modules_to_save: [embed_tokens], trainable_token_indices: [1]}",
        "lora.trainable_token_indices: embed_tokens is already trained whole",
    ),
    ("lora: {lora_bias: true, use_dora: true}", "lora.lora_bias: works only without use_dora"),
    ("lora: {alora_invocation_tokens: [1]}", "works for generative_qa only"),
    ("lora: {task_type: CAUSAL_LM}", "lora.task_type: unknown key"),
    ("lora: {use_qalora: true}", "lora.use_qalora: must be false, not true"),
    (
        "train: {optim: galore_adamw}",
        "train.optim: must be one of adamw_torch, adamw_torch_fused, ",
    ),
    ("prompt: {template: text}", "prompt.template: must contain {text}, or the name of each"),
    ("prompt: {template: '{text} {text}'}", "prompt.template: must contain {text}, or the name"),
    (
        "prompt: {template: '{text} {title}'}",
        "prompt.template: names {text} and {title}: set dataset.columns.text: [text, title]",
    ),
    ("prompt: {template: '{text}: '}", "prompt.template: must not end in a space"),
    ("prompt: {zero_shot: '{text} = '}", "prompt.zero_shot: must not end in a space"),
    ("prompt: {question: '{question} '}", "prompt.question: must not end in a space"),
    ("prompt: {question: 'Why?'}", "prompt.question: must contain {question} exactly once"),
    ("prompt: {context: 'P'}", "prompt.context: must contain {context} exactly once"),
    ("prompt: {instruction: 'Read {context}'}", "prompt.instruction: must contain no braces"),
    ("prompt: {no_answer: '...'}", "prompt.no_answer: must contain a word"),
    (
        "prompt: {no_answer: ' none'}",
        "prompt.no_answer: must contain a word, without spaces around",
    ),
    ("prompt: {verbalizers: [' a', ' a']}", "prompt.verbalizers: contains the same value twice"),
    (
        "prompt: {verbalizers: [' a', '']}",
        "prompt.verbalizers: must be a list in which each item is text or null",
    ),
    (
        "eval: {splits: [train]}",
        "eval.splits: must be a list in which each item is one of test, valid",
    ),
    ("eval: {splits: []}", "eval.splits: must be a list"),
    ("eval: {splits: [test, test]}", "eval.splits: contains the same value twice"),
    ("eval: {splits: [official]}", "eval.splits: there is no official part"),
    ("task: banana", "is written twice"),
    ("name: a/b", "name: must be letters, digits, '.', '_' and '-', not \"a/b\""),
    ("name: ..", "name: must be letters"),
    (
        f"name: {'a' * 256}",
        "name: is too long: a file or folder can have a name of at most 255 bytes",
    ),
    (f"name: {'é' * 128}", "name: is too long"),
    (f"train: {{output_dir: runs/{'a' * 300}/b}}", "train.output_dir: is too long"),
    (f"train: {{output_dir: {'a/' * 600}}}", "train.output_dir: is too long"),
    ('train: {output_dir: "a\\0b"}', "train.output_dir: contains a zero byte"),
    ("lora: {init_lora_weights: loftq}", "loftq needs a base that it quantises itself, which a re"),
    ("lora: {init_lora_weights: corda}", "corda needs passes over the data before the training"),
    ("lora: {init_lora_weights: pissa_niter_999999999}", "pissa_niter_<number up to 99>"),
    ("lora: {init_lora_weights: orthogonal, r: 3}", "orthogonal needs even ranks: change lora.r"),
    (
        "lora: {init_lora_weights: orthogonal, rank_pattern: {q_proj: 5}}",
        "orthogonal needs even ranks",
    ),
    ("hub: {hub_model_id: https://x.org/a}", "hub.hub_model_id: is a web address: write the name"),
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
    ("{path: glue, parts: {train: 100}}", "dataset.parts.train: must be a file or a Hub split"),
    ("{path: tiny, name: reviews}", "dataset.parts.train: must be a number of rows, not train"),
    ("{path: tiny, parts: {train: 9}}", "dataset.name: path tiny needs dataset.name"),
    ("{parts: {train: a.csv}, name: sst2}", "dataset.name: is the configuration of a Hub data"),
    ("{path: a, format: squad}", "dataset.format: squad files hold questions, not classes"),
    ("{path: a, format: xml}", "dataset.format: must be one of auto, csv, tsv, json, jsonl"),
    ("{path: a, group_by: title}", "dataset.group_by: classification can only group by group"),
    ("{path: a, labels: [x]}", "dataset.labels: must be a list in which each item is text or null"),
    (
        "{path: a, labels: [0, 1]}",
        "dataset.labels: must be a list in which each item is text or null, not [0, 1]",
    ),
    ("{path: a, labels: [x, x]}", "dataset.labels: contains the same value twice"),
    (
        "{path: a, labels: [x, y]}\nprompt: {verbalizers: [a, b, c]}",
        "line 5: prompt.verbalizers: there are 3 verbalizers for 2 labels",
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
    (
        "{path: https://huggingface.co/datasets/a/b}",
        "dataset.path: is a web address: write the name of the data s",
    ),
    ("{path: https://x.org/data}", "dataset.path: is a web address"),
    ("{path: 'https://u:SECRET@x.org/a.csv'}", "dataset.path: holds a name, a password or a key"),
    ("{path: 'https://x.org/a.csv?sig=SECRET'}", "dataset.path: holds a name, a password or a key"),
    (
        "{parts: {train: 's3://KEY:SECRET@bucket/a.csv'}}",
        "dataset.parts.train: holds a name, a password",
    ),
    (
        "{path: tiny, name: reviews, streaming: true}",
        "dataset.streaming: works for data sets on the Hub only",
    ),
    (
        "{path: a/b, streaming: true}",
        "dataset.streaming: needs dataset.max_train_samples: the number",
    ),
    (
        "{path: a/b, streaming: true, max_train_samples: 9, parts: {test: test}}",
        "needs dataset.max_eval_samples: the number of rows to take of test",
    ),
    (f"{{path: {'a' * 300}.csv}}", "dataset.path: is too long"),
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
        ("extractive_qa", "train: {packing: prefix_tree}", None),
        ("extractive_qa", "train: {class_weights: balanced}", "only classification with one label"),
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


def test_only_numbers_have_a_decimal_comma(tmp_path: Path) -> None:
    for task in ("classification", "extractive_qa"):
        file = write(tmp_path, SMALL.replace("classification", task))
        refused = refusal(file, "dataset.decimal=','")
        assert "dataset.decimal: only regression has decimal: remove this key" in refused
    file = write(tmp_path, SMALL.replace("classification", "regression"))
    verbalizers = "prompt.verbalizers=['0', '1']"
    assert load_recipe(file, ["dataset.decimal=','", verbalizers]).dataset.decimal == ","


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


@pytest.mark.parametrize(
    "host", ["https://user:{}@huggingface.co", "user:{}@hf.co", "https://x.org"]
)
def test_an_address_as_a_model_is_one_line_without_its_secret(tmp_path: Path, host: str) -> None:
    address = host.format("hf_" + "aB3" * 10) + "/org/model"
    message = refusal(write(tmp_path, SMALL.replace(": tiny", f": {address}")))
    said = "model.model_name_or_path: is a web address: write the name of the model, such as meta-"
    assert said in message and "1 fault\n" in message and "hf_" not in message


def test_a_value_in_an_override_forges_no_line(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load_recipe(write(tmp_path, SMALL), ["train.seed=a\nerror: forged", "no\nkey"])
    assert len(error.value.args) == 3, "the number of faults, and a line each"


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
    file = write(tmp_path, strict_yaml.dump(values))
    try:
        recipe = load_recipe(file)
    except UserError as error:
        assert "fault" in str(error)
        assert "Input should" not in str(error)
    else:
        assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe


def test_varlen_attention_computes_trees_in_sixteen_bits() -> None:
    asked = "model.attn_implementation=varlen"
    packed = "train.packing=prefix_tree"
    message = refusal("tiny-sst2", asked, "model.dtype=null", "train.packing=none")
    assert "varlen computes prefix trees only: set train.packing: prefix_tree" in message
    message = refusal("tiny-sst2", asked, packed, "model.dtype=float32")
    assert "varlen computes in 16 bits: remove model.dtype or this key" in message
    load_recipe("tiny-sst2", [asked, packed, "model.dtype=null"])
    alone = "tiny-sst2", asked, packed, "model.dtype=null", "lora=null"
    assert "a head alone reads states that varlen does not compute" in refusal(*alone)
    load_recipe("tiny-sst2", [*alone[1:], "head.features=none"])
