"""The Makefile hands its settings on, and torch comes from where the command says."""

import os
import subprocess

import pytest

from tests.support.paths import ROOT


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("", ""),
        ("train.max_steps=50 lora.r=8", " train.max_steps=50 lora.r=8"),
        ("'dataset.labels=[bad, good]'", " 'dataset.labels=[bad, good]'"),
    ],
)
def test_settings_reach_the_command(settings: str, words: str) -> None:
    """-B: also if an earlier run is there already. The settings of an outer make are left out."""
    outer = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES"}
    done = subprocess.run(
        ["make", "-n", "-B", "-o", ".venv/.ready", "tiny-sst2", f"SET={settings}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
        env={name: value for name, value in os.environ.items() if name not in outer},
    )  # fmt: skip
    assert done.stdout.rstrip().endswith(f"llama-peft run recipes/tiny-sst2.yaml{words}")


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
