"""The types of a recipe's keys: their ranges and the names that they accept.

A text inside an `Annotated` says the range in words, and messages about a wrong value use it. A
check that needs more than a range raises ValueError with the words of its message.
"""

import io
import re
from collections.abc import Callable
from math import isfinite
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field

from llama_peft.recipe.templates import check_label, check_texts
from llama_peft.system.secrets import is_web_address

Count = Annotated[int, Field(ge=1), "a whole number of at least 1"]
Size = Annotated[int, Field(ge=0), "a whole number of at least 0"]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1), "a whole number from 0 to 4294967295"]
Positive = Annotated[float, Field(gt=0), "a number above 0"]
Epochs = Annotated[float, Field(gt=0, le=10**6), "a number above 0 and at most 1000000"]
PositiveOrAuto = Annotated[Positive | Literal["auto"], "a number above 0, or auto"]
EpochsOrAuto = Annotated[Epochs | Literal["auto"], "a number above 0 and at most 1000000, or auto"]
NotNegative = Annotated[float, Field(ge=0), "a number of at least 0"]
Share = Annotated[float, Field(ge=0, lt=1), "a number of at least 0 and below 1"]
Text = Annotated[str, Field(min_length=1), "text"]
DType = Literal["bfloat16", "float16", "float32"]
LabelWeights = Annotated[
    Literal["balanced"] | dict[str, Positive],
    "balanced or a number above 0 for each label that is named, such as {rare: 5}",
]
EvalSteps = Annotated[
    Count | Annotated[float, Field(gt=0, lt=1)], "a number of steps or a share of all steps below 1"
]


Value = TypeVar("Value")


def later(default: Value) -> Value:
    """Return the default of a key that is written only if it has another value.

    So recipes and records that do not need a key that version 0.1.0 does not know keep their text.
    """
    field: Value = Field(default=default, exclude_if=lambda value: value == default)
    return field


def is_number(text: str) -> bool:
    """Return whether a text is a finite decimal number."""
    number = r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,2})?"
    return re.fullmatch(number, text.strip(), re.ASCII) is not None and isfinite(float(text))


def _template(*placeholders: str) -> Callable[[str], str]:
    """Return a check that a text contains each placeholder once, and no other brace."""

    def check(text: str) -> str:
        rest = text
        for placeholder in placeholders:
            if text.count(placeholder) != 1:
                raise ValueError(f"must contain {placeholder} exactly once")
            rest = rest.replace(placeholder, "")
        if "{" in rest or "}" in rest:
            allowed = f" except {' and '.join(placeholders)}" if placeholders else ""
            raise ValueError(f"must contain no braces{allowed}")
        return text

    return check


def _no_space_at_end(text: str) -> str:
    """Refuse a space at the end: a tokenizer joins it to the answer in training only."""
    if text.endswith((" ", "\t")):
        raise ValueError("must not end in a space: put the space at the start of the answer")
    return text


def _has_a_word(text: str) -> str:
    if text != text.strip() or not re.search(r"\w", text):
        raise ValueError("must contain a word, without spaces around it")
    return text


def _delimiter(text: str) -> str:
    text = "\t" if text == r"\t" else text
    if len(text) != 1 or text in '"\r\n\0':
        raise ValueError("must be one character that is neither a quote nor a line break")
    return text


def _encoding(name: str) -> str:
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=name)
    except (LookupError, ValueError):  # unknown, or not of text; or it could not be a name
        raise ValueError(
            "is not a text encoding that Python knows: write for example utf-8, latin-1, cp1252, "
            "utf-16, shift_jis or gb18030"
        ) from None
    return name


def distinct(values: list[Value]) -> list[Value]:
    """Return the values. Raises ValueError if two are equal."""
    if len(set(values)) < len(values):
        raise ValueError("contains the same value twice")
    return values


def _steps(value: int) -> int:
    if value == 0:
        raise ValueError("must be -1 (num_train_epochs decides) or at least 1, not 0")
    return value


def _layer(value: int | str) -> int | str:
    if value == 0:
        raise ValueError("must be -1 (the last block), auto, or the number of a block, from 1")
    return value


def _warmup(value: float) -> float:
    if value >= 1 and value != int(value):
        raise ValueError("must be a whole number of steps, or a share of all steps below 1")
    return value


def _init_name(value: bool | str) -> bool | str:
    """Refuse names that PEFT does not know, and those that need more than a recipe can say."""
    names = "gaussian|olora|orthogonal|pissa"
    if isinstance(value, bool) or re.fullmatch(rf"{names}|pissa_niter_\d\d?", value):
        return value
    need = _INIT_NEEDS.get(value)
    why = f"{value} needs {need}, which a recipe cannot ask for: write" if need else "must be"
    listed = names.replace("|", ", ")
    raise ValueError(f"{why} true, false, {listed} or pissa_niter_<number up to 99>")


_INIT_NEEDS = {
    "loftq": "a base that it quantises itself",
    "eva": "passes over the data before the training",
    "corda": "passes over the data before the training",
    "lora_ga": "gradients on the data before the training",
}


def _name_or_path(instead: str) -> Callable[[str], str]:
    """Return a check that a text is not a web address, and that a disk could have such a path.

    instead: what to write in place of an address.
    """

    def check(text: str) -> str:
        if is_web_address(text):
            raise ValueError(f"is a web address: write {instead}")
        return _path(text)

    return check


def _data_place(text: str) -> str:
    """Refuse a URL that holds a secret, and one that is not that of files."""
    scheme, is_url, rest = text.partition("://")
    if not is_url:
        return _named_data(text)
    is_web = scheme.lower() in ("http", "https")
    if "@" in rest.partition("/")[0] or (is_web and re.search("[?#]", rest)):
        raise ValueError(
            "holds a name, a password or a key: write the bare address, and keep secrets in the "
            "environment"
        )
    if is_web and (
        not re.search(r"\.\w+$", rest.partition("/")[2])
        or re.match(r"(www\.)?(huggingface\.co|hf\.co)/", rest)
    ):
        return _named_data(text)
    return _path(text)


def _path(text: str) -> str:
    """Refuse what no disk takes, because the training would find it only when it writes."""
    if "\0" in text:
        raise ValueError("contains a zero byte, which no path can have: remove it")
    if max(len(name.encode("utf-8", "replace")) for name in text.split("/")) > 255:
        raise ValueError("is too long: a file or folder can have a name of at most 255 bytes")
    if len(text) > 1000:
        raise ValueError("is too long: write a path of at most 1000 letters")
    return text


_named_data = _name_or_path(
    "the name of the data set, such as stanfordnlp/sst2, or download it and write its path"
)
Delimiter = Annotated[str, AfterValidator(_delimiter)]
Encoding = Annotated[str, AfterValidator(_encoding)]
Names = Annotated[list[Text], AfterValidator(distinct)]
Labels = Annotated[list[Text], Field(min_length=2), AfterValidator(distinct)]
Splits = Annotated[
    list[Literal["test", "validation", "official"]],
    Field(min_length=1),
    AfterValidator(distinct),
]
Column = Annotated[
    Text | Annotated[list[Text], Field(min_length=1)], "a column name or a list of them"
]
TextTemplate = Annotated[str, AfterValidator(check_texts), AfterValidator(_no_space_at_end)]
LabelTemplate = Annotated[str, AfterValidator(check_label), AfterValidator(_no_space_at_end)]
ContextTemplate = Annotated[str, AfterValidator(_template("{context}"))]
QuestionTemplate = Annotated[
    str, AfterValidator(_template("{question}")), AfterValidator(_no_space_at_end)
]
Instruction = Annotated[str, AfterValidator(_template())]
NoAnswer = Annotated[str, AfterValidator(_has_a_word)]
MaxSteps = Annotated[int, Field(ge=-1), AfterValidator(_steps), "-1 or a number of steps"]
Layer = Annotated[
    Annotated[int, Field(ge=-1)] | Literal["auto"],
    AfterValidator(_layer),
    "-1, auto, or the number of a block, from 1",
]
CountOrAuto = Annotated[Count | Literal["auto"], "a whole number of at least 1, or auto"]
SizeOrAuto = Annotated[Size | Literal["auto"], "a whole number of at least 0, or auto"]
Warmup = Annotated[NotNegative, AfterValidator(_warmup)]
LoraInit = Annotated[bool | str, AfterValidator(_init_name)]
RunName = Annotated[
    str,
    Field(pattern=r"^\w[\w.-]*$"),
    AfterValidator(_path),
    "letters, digits, '.', '_' and '-'",
]
Folder = Annotated[Text, AfterValidator(_path)]
ModelName = Annotated[
    Text,
    AfterValidator(
        _name_or_path("the name of the model, such as meta-llama/Llama-3.2-1B, or its folder")
    ),
]
DataName = Annotated[Text, AfterValidator(_data_place)]
PartName = DataName | Count
RepoName = Annotated[Text, AfterValidator(_name_or_path("the name of the repository: owner/name"))]
# fmt: off
Scheduler = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup",
    "inverse_sqrt", "reduce_lr_on_plateau", "cosine_with_min_lr", "cosine_warmup_with_min_lr",
    "warmup_stable_decay", "greedy",
]
Optimizer = Literal[
    "adamw_torch", "adamw_torch_fused", "adafactor", "ademamix", "sgd", "adagrad", "rmsprop",
    "adamw_bnb_8bit", "adamw_8bit", "ademamix_8bit", "lion_8bit", "lion_32bit", "paged_adamw_32bit",
    "paged_adamw_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit", "paged_lion_32bit",
    "paged_lion_8bit", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit",
]
# fmt: on
