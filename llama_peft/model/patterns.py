"""Regular expressions of strangers: PEFT and transformers read names of modules as such, and some
expressions take for ever on a name.

A plain name costs nothing. Anything else is tried once on every name of the model, under limits,
before PEFT sees it. Nothing heavy is imported here.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from llama_peft.errors import UserError
from llama_peft.system import limits

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


def is_name(text: str) -> bool:
    """Return whether a text can be the name of a module, so that matching it takes no time."""
    return _NAME.fullmatch(text) is not None


def check(settings: Mapping[str, object], names: Collection[str], source: str) -> None:
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
