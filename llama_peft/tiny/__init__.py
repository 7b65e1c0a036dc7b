"""The embedded tiny model: a real Llama of a few MB, so that the whole walk runs on a laptop.

`build.py` made it, on text that `corpus.py` writes, and makes it again from a seed. `generator.py`
writes the data that it is tuned and measured on.
"""

from pathlib import Path

MODEL_DIR: Path = Path(__file__).parent / "model"
