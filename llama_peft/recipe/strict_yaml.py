"""Strict YAML: reads plain values and the line of each key, or says everything that is wrong.

PyYAML follows YAML 1.1, where `1e-4` is text, `no` is false, `3:30` is 210 and the last of two
equal keys wins. Here numbers and true/false/null are those of JSON, and every other word without
quotes is text. Tags, anchors and a second document are refused before any value is built, because a
recipe does not need them. PyYAML only parses the nodes; this file decides what they mean.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import yaml

MAX_BYTES = 100_000
MAX_DEPTH = 8

KeyPath = tuple[str, ...]
Value = dict[str, "Value"] | list["Value"] | str | int | float | bool | None

NULL = re.compile(r"~|null|Null|NULL|")
BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
# 18 digits stay below Python's limit for reading long numbers. 007 is a name, not a number.
INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
FLOAT = re.compile(
    r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,4})?|[-+]?[0-9]+[eE][-+]?[0-9]{1,4}"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
# PyYAML reads these back only if it has written them between double quotes.
BREAKS = re.compile("[\n\x85\u2028\u2029]")
SURROGATE = re.compile("[\ud800-\udfff]")
"""An unpaired Unicode surrogate, which cannot be written as UTF-8."""


class YamlFault(NamedTuple):
    """A fault with its line, counted from 1. Line 0 means the whole text."""

    line: int
    message: str


class YamlFaults(Exception):
    """Everything that is wrong with a text as YAML."""

    def __init__(self, faults: list[YamlFault]) -> None:
        super().__init__(faults)
        self.faults = faults


class Document(NamedTuple):
    """The value of a YAML text, and the line of each key."""

    value: Value
    lines: dict[KeyPath, int]


def scalar(text: str) -> Value:
    """Return a word without quotes as JSON would read it. Anything else is text."""
    if NULL.fullmatch(text):
        return None
    if BOOL.fullmatch(text):
        return text.lower() == "true"
    if INT.fullmatch(text):
        return int(text)
    if FLOAT.fullmatch(text):
        return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
    return text


class _Dumper(yaml.SafeDumper):
    """Quotes each text that `scalar` would read as another type, and keeps it on one line."""

    def represent_scalar(self, tag: str, value: str, style: str | None = None) -> yaml.ScalarNode:
        if tag == "tag:yaml.org,2002:str" and not isinstance(scalar(value), str):
            style = "'"
        elif BREAKS.search(value):
            style = '"'
        return super().represent_scalar(tag, value, style)


def dump(value: object) -> str:
    """Return YAML that `read` turns back into an equal value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def dump_line(value: object) -> str:
    """Return YAML of a value on one line, for the place behind a key."""
    flow = yaml.dump(
        [value], Dumper=_Dumper, allow_unicode=True, width=float("inf"), default_flow_style=True
    )
    line = flow.strip()[1:-1]
    is_quoted = isinstance(value, str) and line.startswith('"')
    return _ESCAPE.sub(_unescaped, line) if is_quoted else line


_ESCAPE = re.compile(r"\\(?:U([0-9A-F]{8})|.)")


def _unescaped(escape: re.Match[str]) -> str:
    """Return an emoji as itself: PyYAML escapes all letters above U+FFFF in double quotes."""
    letter = chr(int(escape[1], 16)) if escape[1] else ""
    return letter if letter.isprintable() and letter else escape[0]


def read_bytes(raw: bytes) -> Document:
    """Return the value of a file and the line of every key. Raises YamlFaults."""
    if len(raw) > MAX_BYTES:
        raise YamlFaults([YamlFault(0, f"is larger than {MAX_BYTES} bytes, so it is not a recipe")])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise YamlFaults([YamlFault(line, "is not UTF-8 text: save the file as UTF-8")]) from None
    return read(text)


def read(text: str) -> Document:
    """Return the value of a YAML text and the line of every key. Raises YamlFaults."""
    try:
        if faults := list(_refused(text)):
            raise YamlFaults(faults)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise YamlFaults([_syntax_fault(text, error)]) from None
    lines: dict[KeyPath, int] = {}
    faults = []
    value = _value(root, (), lines, faults) if root else None
    if faults:
        raise YamlFaults(faults)
    return Document(value, lines)


def _syntax_fault(text: str, error: yaml.YAMLError) -> YamlFault:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return YamlFault(error.problem_mark.line + 1, f"is not valid YAML: {error.problem}")
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return YamlFault(line, f"contains the control character {error.character!r}: remove it")
    return YamlFault(0, f"is not valid YAML: {error}")


def _refused(text: str) -> Iterator[YamlFault]:
    """Yield what YAML allows and a recipe does not. Parsing events needs no recursion."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent):
            yield YamlFault(line, f"aliases are not allowed: replace *{event.anchor} by its value")
        elif isinstance(event, yaml.NodeEvent) and event.anchor:
            yield YamlFault(line, f"anchors are not allowed: remove &{event.anchor}")
        if isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)) and event.tag:
            yield YamlFault(line, f"tags are not allowed: remove {event.tag}")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                yield YamlFault(line, f"is nested more than {MAX_DEPTH} levels deep")
                return
        depth -= isinstance(event, yaml.CollectionEndEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        if documents > 1:
            yield YamlFault(line, "a second document starts here (---): a recipe is one document")
            return


def _value(
    node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], faults: list[YamlFault]
) -> Value:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, lines, faults)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, path, lines, faults) for item in node.value]
    assert isinstance(node, yaml.ScalarNode), "a node is a mapping, a sequence or a scalar"
    if SURROGATE.search(node.value):
        message = "contains an unpaired Unicode surrogate: remove it"
        faults.append(YamlFault(node.start_mark.line + 1, message))
    return scalar(node.value) if node.style is None else node.value


def _mapping(
    node: yaml.MappingNode, path: KeyPath, lines: dict[KeyPath, int], faults: list[YamlFault]
) -> dict[str, Value]:
    result: dict[str, Value] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            faults.append(YamlFault(line, "a key must be text"))
            continue
        key_path = (*path, key_node.value)
        if key_node.value in result:
            first = lines[key_path]
            message = f"{'.'.join(key_path)}: is written twice (first on line {first})"
            faults.append(YamlFault(line, message))
            continue
        lines[key_path] = line
        result[key_node.value] = _value(value_node, key_path, lines, faults)
    return result
