"""The embedded tiny model: a real Llama of a few MB, so that all commands can run on a laptop.

`tests/tiny/build.py` made it from text that `tests/tiny/corpus.py` writes, and can make it again
from a seed. `generator.py` writes the data that it is fine-tuned and evaluated on.
"""

from pathlib import Path

MODEL_DIR: Path = Path(__file__).parent / "model"
