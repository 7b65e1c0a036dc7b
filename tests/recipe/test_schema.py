"""Every key explains itself, and the keys are those of the libraries."""

import dataclasses
import inspect
import re
import subprocess
import sys
import tomllib
from typing import get_args

from llama_peft.recipe.fields import Optimizer, Scheduler
from llama_peft.recipe.messages import describe
from llama_peft.recipe.model_sections import section_of
from llama_peft.recipe.schema import Lora, Quantization, Train, fields
from tests.support.paths import ROOT

LORA_LEFT_OUT = {
    "task_type": "follows from the recipe's task",
    "peft_type": "is always LoRA",
    "auto_mapping": "PEFT writes it on saving",
    "peft_version": "PEFT writes it on saving",
    "base_model_name_or_path": "is model.model_name_or_path",
    "revision": "is model.revision",
    "inference_mode": "is false in training and true on loading",
    "runtime_config": "is an object that is never saved",
    "megatron_config": "is an object, and there are no Megatron layers here",
    "megatron_core": "needs Megatron layers",
    "loftq_config": "is an object, and LoftQ quantises a full-precision base itself",
    "eva_config": "is an object that needs a pass over the data before training",
    "corda_config": "is an object that needs a pass over the data before training",
    "lora_ga_config": "is an object that needs gradients before training",
    "velora_config": "is an object",
    "kasa_config": "is an object",
    "monteclora_config": "is an object",
    "arrow_config": "is an object that chooses between adapters trained before",
    "layer_replication": "builds a taller model than the one that is compared",
    "target_parameters": "is for mixtures of experts, and the families here are none",
    "use_bdlora": "is an object for serving many adapters at once",
}
LORA_FIXED = {
    "use_qalora": "needs a GPTQ base, which needs the package gptqmodel",
    "qalora_group_size": "has an effect only with use_qalora",
}
"""Keys with one valid value, because recipes of version 0.1.0 contain them."""
OPTIMIZERS_LEFT_OUT = {
    "adamw_torch_xla": "torch_xla",
    "adamw_torch_npu_fused": "torch_npu",
    "adamw_anyprecision": "torchdistx",
    "adamw_torch_4bit": "torchao",
    "adamw_torch_8bit": "torchao",
    "galore_adamw": "galore_torch",
    "galore_adamw_8bit": "galore_torch",
    "galore_adafactor": "galore_torch",
    "galore_adamw_layerwise": "galore_torch",
    "galore_adamw_8bit_layerwise": "galore_torch",
    "galore_adafactor_layerwise": "galore_torch",
    "lomo": "lomo_optim",
    "adalomo": "lomo_optim",
    "grokadamw": "grokadamw",
    "schedule_free_radam": "schedulefree",
    "schedule_free_adamw": "schedulefree",
    "schedule_free_sgd": "schedulefree",
    "apollo_adamw": "apollo_torch",
    "apollo_adamw_layerwise": "apollo_torch",
    "stable_adamw": "optimi",
}
"""Each needs a package that this project does not declare."""


def test_every_key_explains_itself() -> None:
    for path, field in fields().items():
        assert describe(field.annotation, field.metadata)
        assert section_of(field.annotation) or field.description, path


def test_lora_keys_are_those_of_peft() -> None:
    from peft import LoraConfig

    known = {field.name for field in dataclasses.fields(LoraConfig)}
    assert set(Lora.model_fields) | set(LORA_LEFT_OUT) == known
    assert not set(Lora.model_fields) & set(LORA_LEFT_OUT)
    config = LoraConfig(**Lora(r=4, rank_pattern={"q_proj": 2}).peft_kwargs())
    assert (config.r, config.rank_pattern) == (4, {"q_proj": 2})
    for name in LORA_FIXED:
        (value,) = get_args(Lora.model_fields[name].annotation)
        assert value == getattr(config, name) == Lora.model_fields[name].default


def test_train_and_quantization_keys_are_those_of_transformers() -> None:
    from transformers import BitsAndBytesConfig, TrainingArguments
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    ours = {"max_length", "packing", "doc_stride", "early_stopping_patience"}
    ours |= {"early_stopping_threshold", "class_weights", "pos_weight", "reuse_frozen_blocks"}
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert set(Train.model_fields) - ours <= known
    assert set(get_args(Scheduler)) == {item.value for item in SchedulerType}
    assert not set(get_args(Optimizer)) & set(OPTIMIZERS_LEFT_OUT)
    assert set(get_args(Optimizer)) | set(OPTIMIZERS_LEFT_OUT) == {
        item.value for item in OptimizerNames
    }
    known = set(inspect.signature(BitsAndBytesConfig).parameters)
    assert set(Quantization.model_fields) <= known


def test_what_optimizers_need_is_declared() -> None:
    """The packages of those that are left out are not declared, so none is left out without reason."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = {re.split(r"[^\w-]", line)[0].lower() for line in project["dependencies"]}
    assert {"torch", "bitsandbytes"} <= declared
    assert not {name.replace("_", "-") for name in OPTIMIZERS_LEFT_OUT.values()} & declared


def test_reading_a_recipe_loads_no_heavy_library() -> None:
    code = (
        "import sys, llama_peft.recipe, llama_peft.data;"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'sklearn', 'pyarrow', 'numpy'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
