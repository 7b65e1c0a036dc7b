"""What the licence of a base asks of a person who publishes weights that were trained on it: a notice, a line, a name."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Duties:
    """The duties of one family of bases."""

    identifier: str
    """The Hub's name of the licence."""
    card_text: str
    """The section on the licence in the card."""
    notice: str
    """The text of the NOTICE file."""
    built_with: str = ""
    """A line that the card must show; empty if the licence asks for none."""
    name_start: str = ""
    """The word that the name of a repository must begin with; empty if the licence asks for none."""


_LLAMA = re.compile(r"(?:^|[/-])(?:meta-)?llama-?([234](?:\.\d)?)(?=-|$)", re.IGNORECASE)
_GEMMA = re.compile(r"(?:^|[/-])(?:code)?gemma(?=-|$)", re.IGNORECASE)


def duties(base: str) -> Duties | None:
    """The duties that come with a base, by its name on the Hub; None if the name shows no family that has duties."""
    found = _LLAMA.search(base)
    if found:
        return _llama(found.group(1))
    return _GEMMA_DUTIES if _GEMMA.search(base) else None


def _llama(version: str) -> Duties:
    title = f"Llama {version}"
    notice = f"{title} is licensed under the {title} Community License, Copyright © Meta Platforms, Inc. All Rights Reserved."
    name = "" if version.startswith("2") else "Llama"  # Llama 2 asks for the notice alone
    return Duties(
        identifier=f"llama{version}",
        card_text=f"{notice} The licence and its acceptable use policy also apply to the files in this repository. "
        "Both are on the page of the base.",
        notice=notice + "\n",
        built_with=f"Built with {name}" if name else "",
        name_start=name,
    )


_GEMMA_NOTICE = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
_GEMMA_DUTIES = Duties(
    identifier="gemma",
    card_text=f"{_GEMMA_NOTICE}. These terms and their prohibited use policy also apply to the files in this repository.",
    notice=_GEMMA_NOTICE + "\n",
)
