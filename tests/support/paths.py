"""Where the project is, and the real data beside it."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
"""Real data and a real tokenizer, which are not part of the project. Tests that use them are skipped if it is missing."""
RUNS_0_1_0 = Path(__file__).with_name("runs_0.1.0")
"""A run of each kind, and a pushed one, as version 0.1.0 wrote them before its files were moved."""


def tracked() -> list[Path]:
    """Return the project's own files: those that git tracks, and not what a user has added."""
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:  # a checkout without git holds only what was shipped
        return sorted(path for path in ROOT.rglob("*") if path.is_file())
    return sorted(ROOT / name for name in listed.stdout.split("\0") if name)
