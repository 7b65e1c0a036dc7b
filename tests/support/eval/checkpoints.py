"""Checkpoints as others make and save them: encoders, other families, adapters of plain PEFT."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BloomConfig,
    DistilBertConfig,
    Gemma3Config,
    GPT2Config,
    LlamaForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
)

from llama_peft import tiny

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def with_tokenizer(folder: Path) -> Path:
    """The embedded tokenizer, under names that an encoder's users would find: [CLS] is its BOS."""
    tokenizer = AutoTokenizer.from_pretrained(tiny.MODEL_DIR)
    tokenizer.add_special_tokens({"cls_token": tokenizer.bos_token})
    tokenizer.save_pretrained(folder)
    return folder


def classifier(folder: Path, **changes: Any) -> Path:
    """A DistilBERT classifier of random weights, saved as transformers saves one."""
    config = DistilBertConfig(
        vocab_size=2000, dim=32, hidden_dim=64, n_layers=2, n_heads=2, max_position_embeddings=128,
        **({"id2label": {0: "POSITIVE", 1: "NEGATIVE"}} | changes),
    )  # fmt: skip
    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return with_tokenizer(folder)


def causal(folder: Path, family: str) -> Path:
    """A causal model of another family, as transformers saves one; its texts have the embedded tokenizer."""
    sizes = {"vocab_size": 2000, "hidden_size": 32, "num_attention_heads": 2}
    text = {"num_hidden_layers": 2, "intermediate_size": 64, "num_key_value_heads": 1}
    text |= sizes | {"head_dim": 16, "sliding_window": 16}
    image = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    image |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    configs = {
        "GPT2LMHeadModel": lambda: GPT2Config(vocab_size=2000, n_embd=32, n_layer=2, n_head=2),
        "BloomForCausalLM": lambda: BloomConfig(
            vocab_size=2000, hidden_size=32, n_layer=2, n_head=2
        ),
        "Gemma3ForConditionalGeneration": lambda: Gemma3Config(
            text_config=text, vision_config=image
        ),
    }
    torch.manual_seed(1)
    getattr(transformers, family)(configs[family]()).save_pretrained(folder)
    return with_tokenizer(folder)


def reader(folder: Path) -> Path:
    config = RobertaConfig(
        vocab_size=2000, intermediate_size=64, max_position_embeddings=130, pad_token_id=2, **TINY
    )
    torch.manual_seed(1)
    AutoModelForQuestionAnswering.from_config(config).save_pretrained(folder)
    return with_tokenizer(folder)


def adapter(folder: Path, base: Path, model: PreTrainedModel, task: TaskType) -> Path:
    """A LoRA adapter as plain PEFT trains and saves one, with weights that change the outputs."""
    config = LoraConfig(
        r=2,
        task_type=task,
        target_modules=["q_proj", "v_proj"],
        exclude_modules=["qa_outputs", "score"],
    )
    torch.manual_seed(2)
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(base)})
    )
    return folder


def heads(base: Path) -> dict[str, tuple[PreTrainedModel, TaskType]]:
    torch.manual_seed(3)
    qa = AutoModelForQuestionAnswering.from_pretrained(
        base, key_mapping={r"^model\.": "transformer."}
    )
    return {
        "classification": (
            LlamaForSequenceClassification.from_pretrained(base, num_labels=2),
            TaskType.SEQ_CLS,
        ),
        "extractive_qa": (qa, TaskType.QUESTION_ANS),
        "generative_qa": (AutoModelForCausalLM.from_pretrained(base), TaskType.CAUSAL_LM),
    }


def encoder_adapter(folder: Path, base: Path, task: str) -> Path:
    """A LoRA adapter of plain PEFT on an encoder that has no head of its own."""
    torch.manual_seed(4)
    whole = classifier(base) if task == "classification" else reader(base)
    AutoModel.from_pretrained(whole).save_pretrained(base)
    auto, targets, kind = {
        "classification": (
            AutoModelForSequenceClassification,
            ["q_lin", "v_lin"],
            TaskType.SEQ_CLS,
        ),
        "extractive_qa": (AutoModelForQuestionAnswering, ["query", "value"], TaskType.QUESTION_ANS),
    }[task]
    kept = {"classification": ["pre_classifier", "classifier"], "extractive_qa": ["qa_outputs"]}
    config = LoraConfig(r=2, task_type=kind, target_modules=targets, modules_to_save=kept[task])
    adapted = get_peft_model(auto.from_pretrained(base), config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder)
    return folder
