"""What the licence of a base asks of whoever passes on what was trained on it: a notice, a line, a name."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Duties:
    """Of one family of bases."""

    identifier: str
    """The Hub's name of the licence."""
    says: str
    """For the card."""
    notice: str
    """Text of the NOTICE file."""
    built_with: str = ""
    name_start: str = ""
    """What the name of a repository must begin with."""


_LLAMA = re.compile(r"(?:^|[/-])(?:meta-)?llama-?([234](?:\.\d)?)(?=-|$)", re.IGNORECASE)
_GEMMA = re.compile(r"(?:^|[/-])(?:code)?gemma(?=-|$)", re.IGNORECASE)


def duties(base: str) -> Duties | None:
    """Those of a base, by its name on the Hub; None where the name tells no family with duties."""
    found = _LLAMA.search(base)
    if found:
        return _llama(found.group(1))
    return _GEMMA_DUTIES if _GEMMA.search(base) else None


def _llama(version: str) -> Duties:
    title = f"Llama {version}"
    notice = f"{title} is licensed under the {title} Community License, Copyright © Meta Platforms, Inc. All Rights Reserved."
    named = not version.startswith("2")  # Llama 2 asks for the notice alone
    return Duties(
        identifier=f"llama{version}",
        says=f"{notice} Its terms and its acceptable use policy hold for what is in this repository too: "
        f"the base's own page has both.",
        notice=notice + "\n",
        built_with="Built with Llama" if named else "",
        name_start="Llama" if named else "",
    )


_GEMMA_DUTIES = Duties(
    identifier="gemma",
    says="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms. They and "
    "their prohibited use policy hold for what is in this repository too.",
    notice="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms\n",
)
