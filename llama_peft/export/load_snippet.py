"""How a pushed run loads without this package: the few lines of plain transformers and PEFT that its card shows.

Only what gives this run's own scores is shown. Plain transformers pools the last token, so a head on the mean of all is for this
package alone; so is a span head on a family without a question answering class, and anything on the embedded model.
"""

from llama_peft.export.stage import HEAD
from llama_peft.model import backbone
from llama_peft.recipe import Recipe
from llama_peft.tokens.prompts import PromptEncoder

_MAPPING = r'key_mapping={r"^model\.": "transformer."}'
"""transformers' Llama for question answering calls `transformer` what every checkpoint calls `model`."""


def reader_prefix(recipe: Recipe) -> str | None:
    """The name of the base inside transformers' question answering class of its family; None if there is no such class, or
    if the task does not need one.
    """
    if recipe.task != "extractive_qa":
        return None
    from transformers import MODEL_FOR_QUESTION_ANSWERING_MAPPING as CLASSES

    found = type(backbone.load_config(recipe.model))
    return str(CLASSES[found].base_model_prefix) if found in CLASSES else None


def why_not(recipe: Recipe, commit: str | None, reader: str | None) -> str:
    """Why plain transformers cannot load the run as it is; empty where it can. `reader` is from `reader_prefix`."""
    if commit is None:
        return "The embedded base is on no Hub, so only that package can load it."
    if recipe.kind.has_labels and recipe.head.pooling == "mean":
        return (
            "Its head reads the mean over all tokens. Plain transformers reads the last one and would give other scores "
            "without a word, so use that package."
        )
    if recipe.task == "extractive_qa" and reader is None:
        return "transformers has no question answering class for this base, so use that package."
    return ""


def says(recipe: Recipe, commit: str | None, reader: str | None) -> str:
    """What stands before the lines, or in their place."""
    reason = why_not(recipe, commit, reader)
    if reason:
        return reason
    text = f"With plain transformers{' and PEFT' if recipe.lora is not None else ''}, on the base as it is stored"
    if recipe.task == "extractive_qa":
        text += ". The last token's score is that of no answer; a span lies within the passage"
        if reader == "transformer":
            text += ". The mapping is needed: without it transformers leaves the whole base random"
    if _layers(recipe):
        text += f". The head reads block {recipe.head.layer}, so the blocks above are left out"
    return text + ":"


def lines(
    recipe: Recipe,
    repo_id: str,
    commit: str | None,
    reader: str | None,
    prompt: str,
    encoder: PromptEncoder,
) -> list[str]:
    """Five lines at most; none where `why_not` says why. `prompt` is what the model reads, with its control tokens."""
    if why_not(recipe, commit, reader):
        return []
    base = f'"{recipe.model.model_name_or_path}", revision="{commit}"'
    arguments = _arguments(recipe, reader, encoder.tokenizer.pad_token_id)
    name = f"ModelFor{recipe.kind.library_class}"
    if recipe.lora is None:
        loaded = ", ".join([base, *arguments])
        return [
            "from huggingface_hub import hf_hub_download",
            "from safetensors.torch import load_file",
            f"from transformers import Auto{name}",
            f"model = Auto{name}.from_pretrained({loaded})",
            f'model.load_state_dict(load_file(hf_hub_download("{repo_id}", "{HEAD}")), strict=False)',
        ]
    loaded = ", ".join([f'"{repo_id}"', *arguments])
    encoded = f'**tokenizer({prompt!r}, add_special_tokens=False, return_tensors="pt")'
    used = recipe.kind.snippet.format(inputs=encoded, max_new_tokens=recipe.eval.max_new_tokens)
    return [
        f"from peft import AutoPeft{name}",
        "from transformers import AutoTokenizer",
        f"model = AutoPeft{name}.from_pretrained({loaded})",
        f"tokenizer = AutoTokenizer.from_pretrained({base})",
        used,
    ]


def _arguments(recipe: Recipe, reader: str | None, pad_id: int) -> list[str]:
    """What an adapter or a head does not store, and the model needs."""
    found = []
    if recipe.kind.has_labels:
        found += [f"num_labels={len(recipe.dataset.labels or ())}", f"pad_token_id={pad_id}"]
    if recipe.task == "extractive_qa" and reader == "transformer":
        found.append(_MAPPING)
    if _layers(recipe):
        found.append(f"num_hidden_layers={recipe.head.layer}")
    return found


def _layers(recipe: Recipe) -> bool:
    """Whether the head reads an inner block."""
    return recipe.kind.head is not None and recipe.head.layer not in (-1, "auto")
