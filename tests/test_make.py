"""The Makefile names folders of overridden runs by the rule by which an evaluation names its folders."""

import os
import re
import subprocess

import pytest

from eval.job import slug
from tests.support.paths import ROOT


def run_folder(settings: str) -> str:
    """The run folder that make would train a recipe with these settings into.

    -B: also if an earlier run is there already. The settings of an outer make are left out.
    """
    outer = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES"}
    done = subprocess.run(
        ["make", "-n", "-B", "-o", ".venv/.ready", "tiny-sst2", f"SET={settings}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
        env={name: value for name, value in os.environ.items() if name not in outer},
    )  # fmt: skip
    folder = re.search(r"train\.output_dir=runs/(\S+)", done.stdout)
    assert folder is not None, done.stdout
    return folder[1]


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.max_steps=50"],
        ["train.learning_rate=1e-3", "model.model_name_or_path=unsloth/Llama-3.2-1B"],
        ["lora.r=8", "dataset.labels=[bad,good]", "prompt.zero_shot={text}"],
    ],
)
def test_a_run_is_named_after_what_differs(overrides: list[str]) -> None:
    words = [slug(text.partition(".")[2]) for text in overrides]
    assert run_folder(" ".join(overrides)) == "-".join(["tiny-sst2", *words])


def test_quoted_values_are_one_word() -> None:
    assert run_folder("'dataset.labels=[bad, good]'") == "tiny-sst2-labels-bad-good"


def test_without_settings_it_is_the_recipe_s_own() -> None:
    assert run_folder("") == "tiny-sst2"


def test_torch_comes_from_another_index_only_if_the_command_says_so() -> None:
    """CUDA may stand in the environment for another purpose: where CUDA is installed."""

    def installing(*words: str) -> str:
        done = subprocess.run(
            ["make", "-n", "-B", "setup", *words],
            cwd=ROOT, capture_output=True, text=True, check=True,
            env={**os.environ, "CUDA": "/usr/local/cuda", "MAKEFLAGS": ""},
        )  # fmt: skip
        return next(line for line in done.stdout.splitlines() if line.endswith(" torch"))

    assert "index" not in installing()
    assert "https://download.pytorch.org/whl/cu126 torch" in installing("CUDA=cu126")
