"""The words for faults: which key or value was meant."""

from pathlib import Path

import pytest

from llama_peft.recipe.messages import OTHER_NAMES, either
from llama_peft.recipe.schema import fields
from tests.support.recipes import SMALL, refusal, write

MEANT = [
    # Another name for a key of the same section.
    ("lora: {rank: 16}", "lora.r"),
    ("lora: {alpha: 16}", "lora.lora_alpha"),
    ("lora: {dropout: 0.1}", "lora.lora_dropout"),
    ("train: {lr: 1e-4}", "train.learning_rate"),
    ("train: {epochs: 3}", "train.num_train_epochs"),
    ("train: {batch_size: 8}", "train.per_device_train_batch_size"),
    ("train: {max_seq_length: 128}", "train.max_length"),
    ("train: {warmup_ratio: 0.1}", "train.warmup_steps"),
    ("train: {gradient_checkpointing: true}", "train.activation_checkpointing"),
    ("hub: {model_id: me/it}", "hub.hub_model_id"),
    # The same name in another section.
    ("learning_rate: 1e-4", "train.learning_rate"),
    ("eval: {max_length: 9}", "train.max_length"),
    ("lora: {seed: 1}", "dataset.seed or train.seed"),
    ("head: {r: 8}", "lora.r"),
    # Another name for a key of another section.
    ("lr: 1e-4", "train.learning_rate"),
    ("quantization: {rank: 8}", "lora.r"),
    # A similar name in the same section.
    ("train: {learnign_rate: 1e-4}", "train.learning_rate"),
    ("lora: {lora_alfa: 8}", "lora.lora_alpha"),
    ("prompt: {instructions: x}", "prompt.instruction"),
]


@pytest.mark.parametrize(("line", "key"), MEANT)
def test_an_unknown_key_names_the_key_that_was_meant(tmp_path: Path, line: str, key: str) -> None:
    message = refusal(write(tmp_path, f"{SMALL}{line}\n"))
    assert "\n  line 6: " in message
    assert message.endswith(f": unknown key; did you mean {key}?")


def test_keys_of_inner_sections_are_suggested_too(tmp_path: Path) -> None:
    def unknown(columns: str) -> str:
        return refusal(write(tmp_path, SMALL.replace("reviews.csv}", f"a.csv}}\n  {columns}")))

    assert "did you mean dataset.columns.context?" in unknown("columns: {contexts: b}")
    assert "did you mean dataset.columns.text?" in unknown("columns: {txt: b}")
    assert "did you mean dataset.labels?" in unknown("columns: {labels: b}")


@pytest.mark.parametrize(
    ("line", "valid"),
    [
        ("head: {xyzzy: 1}", "pooling, layer, features"),
        ("head: {trains: 1}", "pooling, layer, features"),  # train
        ("lora: {tsk: 1}", "r, lora_alpha, "),  # task
        ("hub: {max_step: 1}", "push_to_hub, "),  # train.max_steps
        ("eval: {optin: sgd}", "splits, limit, "),  # train.optim
        ("quantization: {dtypes: float16}", "load_in_4bit, "),  # model.dtype
    ],
)
def test_a_similar_name_in_another_section_is_never_suggested(
    tmp_path: Path, line: str, valid: str
) -> None:
    message = refusal(write(tmp_path, f"{SMALL}{line}\n"))
    assert f"unknown key; valid here: {valid}" in message
    assert "did you mean" not in message


def test_every_other_name_is_of_a_key_and_is_no_key_itself() -> None:
    keys = fields().keys()
    for key, names in OTHER_NAMES.items():
        path = tuple(key.split("."))
        assert path in keys
        for name in names:
            assert (*path[:-1], name) not in keys, f"{key}: {name}"
            same = [other for other, others in OTHER_NAMES.items() if name in others]
            sections = [other.rpartition(".")[0] for other in same]
            assert len(set(sections)) == len(sections), f"{name} means {either(same)}"
