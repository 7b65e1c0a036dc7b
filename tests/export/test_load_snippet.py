"""The lines of Python in a card."""

import ast

from llama_peft.export import load_snippet
from tests.support.html import EVIL, GOOD


def test_a_literal_is_the_text_that_python_reads() -> None:
    for text in [*EVIL, *GOOD, '"""', "\\", "\U000e0041 \U0001f600"]:
        found = load_snippet.literal(text)
        assert ast.literal_eval(found) == text and "\n" not in found
