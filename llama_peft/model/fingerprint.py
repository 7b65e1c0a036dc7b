"""Fingerprints that distinguish bases of the same name."""

import hashlib
import re
from functools import cache
from pathlib import Path

from llama_peft.model import backbone
from llama_peft.recipe import Recipe
from llama_peft.system.files import sha256

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip


def is_commit(fingerprint: str) -> bool:
    """Return whether a fingerprint is a commit; that of a folder begins with `sha256:`."""
    return _COMMIT.fullmatch(fingerprint) is not None


def base_fingerprint(recipe: Recipe) -> str:
    """Return the Hub's commit of the recipe's base, or a digest of the files of a folder.

    The digest of a folder covers the config, the tokenizer and all weights, because a fine-tuned
    checkpoint may differ from another one in a single layer.
    """
    folder = Path(backbone.source(recipe.model))
    if not folder.is_dir():
        return backbone.commit(recipe.model)
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    tokenizer = [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]
    for path in [*sorted(folder.glob("*.safetensors")), *tokenizer]:
        found = path.stat()
        digest.update(f"{path.name} {_sum_of(path, found.st_size, found.st_mtime_ns)}".encode())
    return f"sha256:{digest.hexdigest()[:16]}"


@cache
def _sum_of(path: Path, size: int, mtime_ns: int) -> str:
    """Return a file's sum, computed once as long as its size and time stay the same.

    Gigabytes take seconds.
    """
    return sha256(path)
