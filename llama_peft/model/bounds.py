"""Bounds on what the files of strangers ask for: their size, numbers, and regular expressions.

PEFT and transformers read names of modules as regular expressions, and some expressions take for
ever on a name. A plain name costs nothing. Anything else is tried once on every name of the model,
under limits, before PEFT sees it. Nothing heavy is imported here.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llama_peft.errors import UserError
from llama_peft.system import limits
from llama_peft.system.files import inside, open_regular, read_json
from llama_peft.system.numbers import Finite, Probability, check_finite, first_fault

_NAME = re.compile(r"[\w.-]+")
_ENDS = r"(.*\.)?({})$"
_HOLDS = r"(^|.*\.){}($|\..*)"
_FORMS: Mapping[str, str] = {
    "target_modules": "{}",
    "exclude_modules": "{}",
    "layers_pattern": r"(?:^|.*?\.){}\.(?P<idx>\d+)\.",
    "rank_pattern": _ENDS,
    "alpha_pattern": _ENDS,
    "modules_to_save": _HOLDS,
    "target_parameters": _HOLDS,
    "trainable_token_indices": _HOLDS,
}
"""The expression in which PEFT uses a name, by the key of LoraConfig that holds it."""
_NAMES_IN_LISTS = ("target_modules", "exclude_modules")
"""A list under these keys holds names; only a single text is an expression."""
_PARTS = ("embed_tokens", "lm_head")
"""Names that PEFT matches alone, in any model."""

_COPY = "use another copy of it"
_RANKED = {"lora_A", "lora_embedding_A"}
"""Tensors with one row for each rank."""
_Rank = Annotated[int, Field(ge=1, le=10**6)]
_Alpha = Annotated[Finite, Field(ge=0, le=10**6)]

_CONFIG_BYTES = 10_000_000
_MOST_BYTES = 200_000_000
"""The most bytes of a file of settings; a large tokenizer takes 35 MB."""
_SETTINGS = (".json", ".jinja", ".txt", ".model")
_MOST = {
    r".*layers?$": 1_000,
    r"num_|n_": 1_000_000,
    r".*(_size|_dim|_embeddings|_positions)$": 2**31,
}
"""The most that a config may say, by its keys: transformers builds as many blocks, labels, numbers."""
_SKIPPED = ("modules_to_not_convert", "llm_int8_skip_modules")
"""The keys of a quantisation that transformers reads as expressions."""


class _Numbers(BaseModel):
    """The numbers of an adapter's config that change its size or its output."""

    model_config = ConfigDict(strict=True, extra="allow")

    r: _Rank = 8
    lora_alpha: _Alpha = 8
    lora_dropout: Probability = 0.0
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, _Alpha] | None = None

    @property
    def largest_rank(self) -> int:
        return max(self.r, *(self.rank_pattern or {}).values(), 1)


def read_config(file: Path) -> dict[str, object]:
    """Return the object in a config.json. Raises UserError if it cannot be read, or if it asks for
    more than any base: transformers would build lists without end.
    """
    config = _object(file, _CONFIG_BYTES)
    for key, value in _values(config):
        most = next((most for name, most in _MOST.items() if re.match(name, key)), None)
        if isinstance(value, int) and most is not None and value > most:
            raise UserError(f"{file}: {key} is more than {most:,}, which no base has")
        odd = [text for text in _texts(value) if key in _SKIPPED and not is_name(text)]
        if odd:
            raise UserError(f"{file}: {key}: {odd[0][:80]!r} is not the name of a module")
    return config


def check_folder(folder: Path) -> None:
    """Raise UserError if a base's folder holds a file that transformers could read for ever.

    These are pipes, devices, settings of gigabytes, and shards outside of the folder.
    """
    for path in [*folder.glob("*"), *folder.glob("*/*")]:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError(f"{path}: this is not a regular file: remove it from the folder")
        if path.suffix in _SETTINGS and path.exists() and path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path}: it is larger than {_MOST_BYTES:,} bytes, so it is not usable")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = _object(index, _MOST_BYTES).get("weight_map")
        for name in set(shards.values()) if isinstance(shards, dict) else ():
            if not isinstance(name, str) or Path(name).name != name:
                raise UserError(f"{index}: {str(name)[:80]!r} is not the name of a file beside it")


def _object(file: Path, size: int) -> dict[str, object]:
    """Return the object in a JSON file of at most `size` bytes. Raises UserError."""
    try:
        with open_regular(file) as opened:
            values = json.loads(opened.read(size))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: not readable as a model's config: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: not readable as a model's config: it is not a JSON object")
    return values


def _values(config: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield every key with its value, and those of the sections inside."""
    for key, value in config.items():
        yield key, value
        if isinstance(value, dict):
            yield from _values(value)


def is_name(text: str) -> bool:
    """Return whether a text can be the name of a module, so that matching it takes no time."""
    return _NAME.fullmatch(text) is not None


def check_patterns(settings: Mapping[str, object], names: Collection[str], source: str) -> None:
    """Raise UserError for an expression that takes too long or is not valid, and for a list with
    more names than the model has.

    settings: the keys of LoraConfig. names: of the model's modules. source: what the message starts
    with.
    """
    tied = bool(settings.get("ensure_weight_tying"))
    for key, form in _FORMS.items():
        texts = _texts(settings.get(key))
        if len(texts) > len(names):
            raise UserError(
                f"{source}{key}: it lists {len(texts):,} names, but the model has {len(names):,} "
                "modules: remove what matches nothing"
            )
        if key in _NAMES_IN_LISTS and not isinstance(settings.get(key), str):
            if not tied:
                continue
            form = _HOLDS  # to tie layers, PEFT reads these names as expressions too
        odd = [text for text in texts if not is_name(text)]
        if odd:
            _try(odd, form, [*names, *_PARTS], f"{source}{key}")


def _texts(value: object) -> list[str]:
    """Return the texts of a key: it holds one, several, or those to which it gives a value."""
    found: Iterable[object] = [value] if isinstance(value, str) else ()
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        found = value
    return [text for text in found if isinstance(text, str)]


def _try(texts: Sequence[str], form: str, names: Sequence[str], place: str) -> None:
    """Match expressions to names under limits. Raises UserError if one cannot be used."""

    def match() -> None:
        for text in texts:
            expression = re.compile(form.format(text))
            for name in names:
                expression.fullmatch(name)
                expression.match(name)

    try:
        limits.limited(match)
    except limits.LimitError as error:
        more = f" or one of {len(texts) - 1} others" if len(texts) > 1 else ""
        raise UserError(
            f"{place}: {texts[0][:80]!r}{more} cannot be used as a pattern ({error}): "
            "write the names of the modules instead"
        ) from None


def check_numbers(folder: Path, config: str, weights: str) -> None:
    """Raise UserError unless an adapter's config and weights hold numbers within their ranges, and
    its config asks for no larger rank than its weights have.

    config, weights: the names of the two files in the folder.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        numbers = _Numbers.model_validate(read_json(folder, config))
        tensors = load_file(inside(folder, weights))
    except ValidationError as error:
        raise _refused(folder / config, first_fault(error, "the file")) from None
    except (OSError, ValueError) as error:
        raise _refused(folder / config, str(error)) from None
    except SafetensorError as error:
        raise _refused(folder / weights, str(error)) from None
    ranks = [
        len(one) for name, one in tensors.items() if one.dim() and {*name.split(".")} & _RANKED
    ]
    most = max(ranks or [size for one in tensors.values() for size in one.shape], default=0)
    if numbers.largest_rank > most:
        reason = f"it asks for rank {numbers.largest_rank}, and its weights have {most}"
        raise _refused(folder / config, reason)
    check_finite(tensors, f"{folder / weights}: its weights are not numbers", _COPY)


def _refused(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: this adapter cannot be used: {reason}; {_COPY}")
