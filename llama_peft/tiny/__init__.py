"""The embedded tiny model: a real Llama of a few MB, so that the whole walk runs on a laptop.

`build.py` made it, on text that `generator.py` and its neighbours write; both are here so that it can
be made again from a seed. The rest of the package needs only the folder.
"""

from pathlib import Path

MODEL_DIR: Path = Path(__file__).parent / "model"
