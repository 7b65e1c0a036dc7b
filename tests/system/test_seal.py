"""Any damage breaks a seal."""

import random
from pathlib import Path

from llama_peft.system import seal


def folder_of(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "weights").write_bytes(bytes(range(200)))
    (path / "state.json").write_text("{}")
    seal.seal(path)
    return path


def test_any_damage_breaks_the_seal(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "checkpoint-1")
    assert seal.is_sealed(folder)
    rng = random.Random(0)
    for name in ("weights", "state.json", "manifest.json"):
        raw = (folder / name).read_bytes()
        flipped = bytearray(raw)
        flipped[rng.randrange(len(raw))] ^= 1 << rng.randrange(7)
        for damage in (bytes(flipped), raw[: len(raw) // 2], b""):
            (folder / name).write_bytes(damage)
            assert not seal.is_sealed(folder), (name, damage)
        (folder / name).unlink()
        assert not seal.is_sealed(folder), name
        (folder / name).write_bytes(raw)
    assert seal.is_sealed(folder)
