"""Templates: text with names in braces, where values come in."""

import re
from collections.abc import Mapping, Sequence

ONE_TEXT = "text"
"""The name for a text of one column, whatever the column is called."""
LABEL = "label"
"""The name for the label that is asked for."""
_NAME = re.compile(r"\{([^{}]*)\}")


def names(template: str) -> list[str]:
    """Return the names in a template, in order."""
    return _NAME.findall(template)


def filled(template: str, values: Mapping[str, str]) -> str:
    """Return a template with values in place of their names. A value is never read as a template."""
    return _NAME.sub(lambda name: values[name[1]], template)


def lines(fields: Sequence[str]) -> str:
    """Return the template that has a line for each field."""
    return "\n".join(f"{field}: {{{field}}}" for field in fields)


def listed(fields: Sequence[str]) -> str:
    """Return names as a template writes them: "{premise} and {hypothesis}"."""
    return " and ".join(f"{{{field}}}" for field in fields)


def check_label(template: str) -> str:
    """Return a template of texts and a label. Raises ValueError unless it names a label once."""
    if names(template).count(LABEL) != 1:
        raise ValueError(f"must contain {{{LABEL}}} exactly once")
    check_texts(template.replace(f"{{{LABEL}}}", ""))
    return template


def check_texts(template: str) -> str:
    """Return a template of texts. Raises ValueError if a name occurs twice, or for other braces."""
    found = names(template)
    if not found or len(set(found)) < len(found):
        raise ValueError("must contain {text}, or the name of each column of text, exactly once")
    if "" in found or re.search("[{}]", _NAME.sub("", template)):
        raise ValueError("must contain no braces except {text} or names of columns")
    return template
