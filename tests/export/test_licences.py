"""The licence of a base, and what it asks of those who publish."""

import pytest

from llama_peft.export import licences
from llama_peft.export.access import default_name
from llama_peft.recipe import load_recipe


@pytest.mark.parametrize(
    ("base", "licence", "start"),
    [
        ("meta-llama/Llama-3.2-1B", "llama3.2", "Llama"),
        ("unsloth/Llama-3.2-1B", "llama3.2", "Llama"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama3", "Llama"),
        ("NousResearch/Hermes-3-Llama-3.1-8B", "llama3.1", "Llama"),
        ("meta-llama/Llama-2-7b-hf", "llama2", ""),
        ("google/gemma-3-1b-pt", "gemma", ""),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", None, ""),
        ("openlm-research/open_llama_3b", None, ""),
        ("acme/llama-farm", None, ""),
        ("tiny", None, ""),
    ],
)
def test_licences_go_by_the_base(base: str, licence: str | None, start: str) -> None:
    found = licences.duties(base)
    assert (found.identifier if found else None) == licence
    assert (found.name_start if found else "") == start
    assert found is None or (bool(found.built_with) == bool(start) and found.notice)


def test_names_begin_as_the_licence_asks() -> None:
    assert default_name(load_recipe("sst2")) == "Llama-3.2-1B-sst2"
    assert default_name(load_recipe("gemma-sst2")) == "gemma-sst2"
    assert default_name(load_recipe("sst2", ["hub.hub_model_id=org/x"])) == "org/x"
