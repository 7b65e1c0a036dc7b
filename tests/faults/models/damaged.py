"""Bases and adapters that are damaged, incomplete or of another kind. Each is refused in one line."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from llama_peft.run_folder.layout import ADAPTER_WEIGHTS
from llama_peft.system.files import sha256
from tests.faults.shop import DAMAGES, Fault, Seen, Shop
from tests.support import runs


def faults() -> Iterator[Fault]:
    for name, edit in WEIGHTS.items():
        yield _weights(name, edit)
    for name, change in FOLDERS.items():
        yield _model(name, change)
    for name, change in ADAPTERS.items():
        yield _adapter(name, change)


Tensors = dict[str, torch.Tensor]
UP = "model.layers.1.mlp.up_proj.weight"
WEIGHTS: dict[str, Callable[[Tensors], object]] = {
    "a weight is missing": lambda t: t.pop(UP),
    "a norm is missing": lambda t: t.pop("model.norm.weight"),
    "a block is missing": lambda t: [t.pop(name) for name in list(t) if ".layers.1." in name],
    "a block too many": lambda t: t.update({UP.replace(".1.", ".7."): t[UP].clone()}),
    "another shape": lambda t: t.update({UP: t[UP][:64].clone()}),
    "transposed": lambda t: t.update({UP: t[UP].T.contiguous()}),
    "names of another library": lambda t: t.update({"h.0.attn.c_attn.weight": t.pop(UP)}),
    "embedding of another vocabulary": lambda t: t.update(
        {"model.embed_tokens.weight": t["model.embed_tokens.weight"][:-3].clone()}
    ),
    "a NaN": lambda t: t[UP].view(-1)[0].fill_(float("nan")),
    "an infinity": lambda t: t["model.norm.weight"].view(-1)[0].fill_(float("inf")),
}


def _weights(name: str, edit: Callable[[Tensors], object]) -> Fault:
    def inflict(shop: Shop, folder: Path) -> Seen:
        base = _copied(shop, folder)
        tensors = load_file(base / "model.safetensors")
        edit(tensors)
        save_file(tensors, base / "model.safetensors", {"format": "pt"})
        return _trained(shop, folder, base)

    return Fault("model", name, inflict)


def _copied(shop: Shop, folder: Path) -> Path:
    return Path(shutil.copytree(shop.base, folder / "base"))


def _trained(shop: Shop, folder: Path, base: Path) -> Seen:
    words = shop.write(shop.recipe("classification + LoRA", folder, base), folder)
    return shop.refused(shop.run(words), folder)


def _config(**changes: Any) -> Callable[[Path], object]:
    def edit(base: Path) -> None:
        path = base / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def _pickled(base: Path) -> None:
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()


def _damaged(name: str, damage: str) -> Callable[[Path], object]:
    return lambda base: DAMAGES[damage](base / name)


def _bad_code(base: Path) -> None:
    mark = base.parent / "executed"
    (base / "modeling_evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    _config(auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"}, model_type="evil")(base)


FOLDERS: dict[str, Callable[[Path], object]] = {
    "no config": _damaged("config.json", "missing"),
    "config empty": _damaged("config.json", "emptied"),
    "config halved": _damaged("config.json", "halved"),
    "config that is a list": lambda base: (base / "config.json").write_text("[]"),
    "config of an unknown family": _config(model_type="nobody"),
    "config with more blocks": _config(num_hidden_layers=3),
    "config with fewer blocks": _config(num_hidden_layers=1),
    "config with another width": _config(hidden_size=128),
    "config with another vocabulary": _config(vocab_size=77),
    "config with a text for a number": _config(num_hidden_layers="two"),
    "config that wants code": _bad_code,
    "no weights": _damaged("model.safetensors", "missing"),
    "weights empty": _damaged("model.safetensors", "emptied"),
    "weights halved": _damaged("model.safetensors", "halved"),
    "pickled weights": _pickled,
    "no tokenizer": _damaged("tokenizer.json", "missing"),
    "tokenizer empty": _damaged("tokenizer.json", "emptied"),
    "tokenizer halved": _damaged("tokenizer.json", "halved"),
}


def _model(name: str, change: Callable[[Path], object]) -> Fault:
    def inflict(shop: Shop, folder: Path) -> Seen:
        base = _copied(shop, folder)
        change(base)
        seen = _trained(shop, folder, base)
        if (folder / "executed").exists():
            return Seen("wrong", "the model's code was executed")
        return seen

    return Fault("model", name, inflict)


def _edited(edit: Callable[[Tensors], object]) -> Callable[[Path], object]:
    def change(run: Path) -> None:
        path = run / "adapter" / ADAPTER_WEIGHTS
        tensors = load_file(path)
        edit(tensors)
        save_file(tensors, path)

    return change


def _first(tensors: Tensors, part: str) -> str:
    return next(name for name in tensors if part in name)


def _pickled_adapter(run: Path) -> None:
    path = run / "adapter/adapter_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()


def _adapter_config(**changes: Any) -> Callable[[Path], object]:
    def change(run: Path) -> None:
        path = run / "adapter/adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


ADAPTERS: dict[str, Callable[[Path], object]] = {
    "of fewer blocks": _edited(lambda t: [t.pop(name) for name in list(t) if ".layers.1." in name]),
    "without its head": _edited(lambda t: t.pop(_first(t, "score"))),
    "of another rank": _edited(lambda t: t.update({n: t[n][:1] for n in [_first(t, "lora_A")]})),
    "with a stranger's weight": _edited(lambda t: t.update({"stranger": torch.ones(2)})),
    "of another width": _edited(
        lambda t: t.update({n: t[n][:, :32].contiguous() for n in [_first(t, "lora_A")]})
    ),
    "for another task": _adapter_config(task_type="CAUSAL_LM"),
    "of a method that is not LoRA": _adapter_config(peft_type="PROMPT_TUNING"),
    "whose config says another rank": _adapter_config(r=64),
    "pickled": _pickled_adapter,
}


def _adapter(name: str, change: Callable[[Path], object]) -> Fault:
    """A run whose adapter somebody replaced, with the sums to match."""

    def inflict(shop: Shop, folder: Path) -> Seen:
        run = folder / "run"
        shutil.copytree(shop.reference("classification + LoRA"), run)
        change(run)
        reseal(run)
        words = ["run", "--model", str(run), "--output", str(folder / "out")]
        return shop.refused(shop.run(words, program="eval"))

    return Fault("model", f"adapter {name}", inflict)


def reseal(run: Path) -> None:
    """Write the sums of the files as they are now."""
    facts = json.loads((run / "training.json").read_text())
    facts["files"] = {name: sha256(run / name) for name in facts["files"] if (run / name).is_file()}
    runs.write_record(run, facts)
