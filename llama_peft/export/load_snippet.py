"""Python lines that load a run with transformers and PEFT alone: a pushed one, for its card, or one in a
folder here.

They are shown only if they give the run's own scores. transformers pools the last token, so a head on
the mean of all tokens needs this package. So does a span head on a family without a question answering
class, and a head on a base that is packed already. The embedded model is in this package too.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llama_peft.model import backbone
from llama_peft.model.quantize import packed_form
from llama_peft.recipe import Recipe
from llama_peft.run_folder.layout import HEAD
from llama_peft.run_folder.run import Run
from llama_peft.run_folder.self_check import input_ids, passage_tokens, samples
from llama_peft.run_folder.threshold import Threshold, run_threshold
from llama_peft.system.terminal import visible
from llama_peft.tokens.prompts import PromptEncoder

_MAPPING = r'key_mapping={r"^model\.": "transformer."}'
"""transformers' Llama for question answering has `transformer`, every checkpoint `model`."""


class Snippet(NamedTuple):
    """What a card says about loading the run without this package."""

    introduction: str
    """What stands before the lines; if there are none, why the run cannot be loaded so."""
    lines: list[str]
    """Python: seven lines at most, and seven more where a span is looked for."""


@dataclass(frozen=True, kw_only=True)
class PushedRun:
    """What the lines need to know of a run."""

    recipe: Recipe
    repo_id: str
    """Where it was pushed to."""
    commit: str | None
    """The base's commit on the Hub; None for a base in a folder, and for the embedded one."""
    reader: str | None
    """From `reader_prefix`."""
    packs_head: bool
    """From `packs_head`."""
    prompt: str
    """A sample as the model reads it, with its control tokens."""
    pad_id: int
    temperature: float | None = None
    """What its logits are divided by."""
    no_answer_threshold: float | None = None
    """Above which probability of no answer there is none; None if none was fitted."""
    passage: range = range(0)
    """The tokens of the passage in the sample, where a span can be."""
    folder: Path | None = None
    """Where its weights are on this machine; None if it was pushed."""

    @property
    def is_embedded(self) -> bool:
        return self.recipe.model.model_name_or_path == "tiny"


def described(
    recipe: Recipe, encoder: PromptEncoder, fitted: Threshold | None, **known: Any
) -> PushedRun:
    """Return what the lines need to know. known: the other fields of a `PushedRun`."""
    return PushedRun(
        recipe=recipe,
        prompt=encoder.tokenizer.decode(input_ids(encoder, recipe, samples(recipe)[0])),
        pad_id=encoder.tokenizer.pad_token_id,
        temperature=fitted.temperature if fitted else None,
        no_answer_threshold=fitted.no_answer_threshold if fitted else None,
        passage=passage_tokens(encoder, recipe),
        **known,
    )


def of_folder(run: Run) -> Snippet:
    """Return how a run in a folder is loaded without this package, or why that is not possible."""
    recipe = run.recipe
    encoder = PromptEncoder(backbone.load_tokenizer(recipe.model), recipe.prompt)
    found = described(
        *(recipe, encoder, run_threshold(run)),
        repo_id="",
        commit=run.commit,
        reader=reader_prefix(recipe),
        packs_head=packs_head(recipe),
        folder=(run.folder if recipe.lora is None else run.adapter).resolve(),
    )
    return snippet(found)


def reader_prefix(recipe: Recipe) -> str | None:
    """The name of the base inside its family's question answering class in transformers.

    None if there is no such class, or if the task does not need one.
    """
    if not recipe.kind.finds_spans:
        return None
    from transformers import MODEL_FOR_QUESTION_ANSWERING_MAPPING as CLASSES

    found = type(backbone.load_config(recipe.model))
    return str(CLASSES[found].base_model_prefix) if found in CLASSES else None


def packs_head(recipe: Recipe) -> bool:
    """Whether transformers alone could pack the head too: the base is packed already.

    It packs what the checkpoint's own list of exceptions does not name. No such list knows a head
    that was added later.
    """
    if recipe.kind.head is None:
        return False
    return packed_form(backbone.load_config(recipe.model).to_dict()) is not None


def snippet(run: PushedRun) -> Snippet:
    """How the run is loaded without this package, or why that is not possible."""
    obstacle = _obstacle(run)
    if obstacle:
        return Snippet(obstacle, [])
    return Snippet(
        _introduction(run), _head_lines(run) if run.recipe.lora is None else _adapter_lines(run)
    )


def _obstacle(run: PushedRun) -> str:
    """Why transformers cannot load the run; empty if it can."""
    if run.recipe.kind.has_labels and run.recipe.head.pooling == "mean":
        return (
            "The head reads the mean over all tokens. transformers alone would read the last "
            "token and give other scores without a warning, so use the `llama_peft` package."
        )
    if run.recipe.kind.finds_spans and run.reader is None:
        return (
            "transformers has no question answering class for this base, so use the `llama_peft` "
            "package."
        )
    if run.packs_head:
        return (
            "The base is packed already, and transformers alone could pack the head with it, which "
            "gives other scores or none, so use the `llama_peft` package."
        )
    return ""


def _introduction(run: PushedRun) -> str:
    libraries = "transformers" if run.recipe.lora is None else "transformers and PEFT"
    text = f"With {libraries} alone, on the base in the precision of its checkpoint"
    if run.recipe.kind.finds_spans:
        text += (
            ". The last token's score is the score of no answer; a span lies within the passage, "
        )
        text += f"here tokens {run.passage.start} to {run.passage.stop - 1} of the sample"
        if run.reader == "transformer":
            text += ". The mapping is needed: without it, transformers leaves the whole base random"
    if _is_inner(run.recipe):
        text += (
            f". The head reads block {run.recipe.head.layer}, so the blocks above it are left out"
        )
    if run.recipe.lora is None and run.temperature is not None:
        used = run.recipe.kind.snippet.format(logits=_logits(run, "output"))
        text += f". Probabilities need the temperature: `{used}`"
    return text + ":"


def _head_lines(run: PushedRun) -> list[str]:
    name = f"AutoModelFor{run.recipe.kind.library_class}"
    loaded = ", ".join([_base(run), *_arguments(run)])
    file = f'hf_hub_download({literal(run.repo_id)}, "{HEAD}")'
    if run.folder is not None:
        file = literal(str(run.folder / HEAD))
    return [
        *_embedded(run),
        *(["from huggingface_hub import hf_hub_download"] if run.folder is None else []),
        "from safetensors.torch import load_file",
        f"from transformers import {name}",
        f"model = {name}.from_pretrained({loaded})",
        f"model.load_state_dict(load_file({file}), strict=False)",
    ]


def _adapter_lines(run: PushedRun) -> list[str]:
    recipe = run.recipe
    name = f"AutoPeftModelFor{recipe.kind.library_class}"
    place = literal(run.repo_id if run.folder is None else str(run.folder))
    tokens = f'tokenizer({literal(run.prompt)}, add_special_tokens=False, return_tensors="pt")'
    encoded, fitted = f"**{tokens}", run.no_answer_threshold
    used = recipe.kind.snippet.format(
        inputs=encoded,
        tokens=tokens,
        logits=_logits(run, f"model({encoded})"),
        max_new_tokens=recipe.eval.max_new_tokens,
        first=run.passage.start,
        last=run.passage.stop,
        longest=recipe.eval.max_answer_length,
        threshold=0.5 if fitted is None else fitted,
    )
    arguments = ", ".join(["", *_arguments(run)])
    opened = [
        f"from peft import {name}",
        "from transformers import AutoTokenizer",
        f"model = {name}.from_pretrained({place}{arguments})",
    ]
    if run.is_embedded or run.folder is not None:
        # The adapter cannot name a folder of every machine. One that was not pushed names the base as the
        # recipe does: by another folder than this one's, perhaps, or by a branch.
        name = f"AutoModelFor{recipe.kind.library_class}"
        mapped = "".join(f", {one}" for one in _arguments(run) if one == _MAPPING)
        opened = [
            *_embedded(run),
            "from peft import PeftModel",
            f"from transformers import AutoTokenizer, {name}",
            f"base = {name}.from_pretrained({_base(run)}{arguments})",
            f"model = PeftModel.from_pretrained(base, {place}{mapped}).eval()",
        ]
    return [
        *opened,
        f"tokenizer = AutoTokenizer.from_pretrained({_base(run)})",
        *used.splitlines(),
    ]


def _logits(run: PushedRun, output: str) -> str:
    """Python for the logits of an output of the model, divided by the temperature if there is one."""
    logits = f"{output}.logits"
    return logits if run.temperature is None else f"({logits} / {run.temperature!r})"


def _embedded(run: PushedRun) -> list[str]:
    return ["from llama_peft.tiny import MODEL_DIR"] if run.is_embedded else []


def _base(run: PushedRun) -> str:
    name = run.recipe.model.model_name_or_path
    if run.is_embedded:
        return "MODEL_DIR"
    if run.commit is None or (run.folder is not None and Path(name).is_dir()):
        return literal(str(Path(name).resolve()))  # also of a base of the Hub that was copied
    return f"{literal(name)}, revision={literal(run.commit)}"


def literal(text: str) -> str:
    """A text as Python writes it, on one line, so that it cannot close a block of code."""
    return visible(json.dumps(text, ensure_ascii=False))


def _arguments(run: PushedRun) -> list[str]:
    """Settings of the model that neither an adapter nor a head stores."""
    recipe = run.recipe
    found = []
    if recipe.kind.has_labels:
        outputs = recipe.kind.outputs(len(recipe.dataset.labels or ()))
        found += [f"num_labels={outputs}", f"pad_token_id={run.pad_id}"]
    if recipe.kind.problem_type:
        found.append(f"problem_type={literal(recipe.kind.problem_type)}")
    if recipe.kind.finds_spans and run.reader == "transformer":
        found.append(_MAPPING)
    if _is_inner(recipe):
        found.append(f"num_hidden_layers={recipe.head.layer}")
    return found


def _is_inner(recipe: Recipe) -> bool:
    """Whether the head reads an inner block."""
    return recipe.kind.head is not None and recipe.head.layer not in (-1, "auto")
