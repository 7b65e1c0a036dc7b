"""What users and strangers hand in: recipes, data, models, and files made to hurt. All is refused in one line."""

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from llama_peft.recipe import strict_yaml as recipe_yaml
from llama_peft.system.files import sha256
from tests.support import runs

from .shop import DAMAGES, Fault, Seen, Shop

SECRET = "hf_" + "nobodyMaySeeThisToken" + "0" * 12


def faults(full: bool) -> Iterator[Fault]:
    yield from _controls()
    for text in RECIPES:
        yield _recipe(text)
    for override in OVERRIDES:
        yield _override(override)
    for name, file in TEXTS.items():
        yield _data("classification head", name, *file)
    for name, file in QUESTIONS.items():
        yield _data("span + LoRA", name, *file)
    for name, edit in WEIGHTS.items():
        yield _weights(name, edit)
    for name, change in FOLDERS.items():
        yield _model(name, change)
    for name, change in ADAPTERS.items():
        yield _adapter(name, change)
    yield from _hostile()


PARTS = "parts: {train: 24, validation: 8, test: 8}"
SMALL = f"task: classification\ndataset: {{path: tiny, name: reviews, {PARTS}}}\n"
RECIPES = [
    "",
    "[]",
    "just a word",
    "task: classification",
    "dataset: {path: tiny}",
    "task: clasification\ndataset: {path: tiny}",
    SMALL + "task: extractive_qa\n",
    SMALL + "train: {learnign_rate: 1}\n",
    SMALL + "train: {learning_rate: fast}\n",
    SMALL + "train: {learning_rate: -1}\n",
    SMALL + "train: {learning_rate: .nan}\n",
    SMALL + "train: {learning_rate: .inf}\n",
    SMALL + "train: {num_train_epochs: 0}\n",
    SMALL + "train: {max_steps: 0}\n",
    SMALL + "train: {per_device_train_batch_size: 1.5}\n",
    SMALL + "train: {per_device_train_batch_size: 0}\n",
    SMALL + "train: {seed: yes}\n",
    SMALL + "train: {use_cpu: 'no'}\n",
    SMALL + "train: {optim: adam_w}\n",
    SMALL + "train: {packing: prefix_tree}\n",
    SMALL + "train: {max_length: 1000000000000000000000}\n",
    SMALL + "lora: {r: 0}\n",
    SMALL + "lora: {r: 4, target_modules: [no_such_layer]}\n",
    SMALL + "lora: {r: 4, target_modules: []}\n",
    SMALL + "lora: {r: 4, lora_dropout: 2}\n",
    SMALL + "lora: {rank: 4}\n",
    SMALL + "quantization: {load_in_4bit: true, load_in_8bit: true}\n",
    SMALL + "quantization: {bnb_4bit_quant_type: nf5}\n",
    SMALL + "head: {pooling: max}\n",
    SMALL + "head: {layer: 99}\n",
    SMALL + "prompt: {zero_shot: no slot here}\n",
    SMALL + "prompt: {verbalizers: [same, same]}\n",
    SMALL + "eval: {splits: [nowhere]}\n",
    SMALL + "hub: {push: true}\n",
    f"task: generative_qa\ndataset: {{path: tiny, name: passages, {PARTS}}}\nlora: null\n",
    f"task: classification\ndataset: {{path: tiny, name: nothing, {PARTS}}}\n",
    "task: classification\ndataset: {path: tiny, name: reviews, parts: {train: 0}}\n",
    SMALL.replace("name: reviews", "name: reviews, validation_size: 1.5"),
    "task: classification\ndataset: {path: /no/such/file.csv}\n",
    SMALL + "model: {model_name_or_path: ''}\n",
    SMALL + "model: {model_name_or_path: tiny, trust_remote_code: true}\n",
]
OVERRIDES = [
    "train.learnign_rate=1e-4", "train.learning_rate=", "train.learning_rate", "=1", "train=",
    "train.max_steps=many", "lora.r=-1", "nothing.here=1", "train.learning_rate=[1]",
    "head.layer=0", "dataset.labels=[a]", "model.dtype=float8",
]  # fmt: skip


def _controls() -> Iterator[Fault]:
    """What the faults below are changes of is itself taken."""

    def taken(shop: Shop, words: list[str]) -> Seen:
        done = shop.run(["validate", *words])
        return Seen("right" if done.code == 0 else "wrong", done.last_line)

    def recipe(shop: Shop, folder: Path) -> Seen:
        (folder / "recipe.yaml").write_text(SMALL)
        return taken(shop, [str(folder / "recipe.yaml"), f"model.model_name_or_path={shop.base}"])

    yield Fault("recipe", "control: none", recipe)
    for kind, name, raw in (
        ("classification head", "a.csv", b"text,label\nfine,1\nbad,0\n"),
        ("span + LoRA", "a.json", squad(ADA)),
    ):

        def file(
            shop: Shop, folder: Path, kind: str = kind, name: str = name, raw: bytes = raw
        ) -> Seen:
            return taken(shop, [str(_data_recipe(shop, folder, kind, name, raw))])

        yield Fault("data", f"control: none in {name}", file)


def _recipe(text: str) -> Fault:
    def inflict(shop: Shop, folder: Path) -> Seen:
        path = folder / "recipe.yaml"
        path.write_text(text)
        words = [str(path), f"train.output_dir={folder / 'run'}"]
        if "model:" not in text:
            words.append(f"model.model_name_or_path={shop.base}")
        return shop.refused(shop.run(["train", *words]), folder)

    return Fault("recipe", repr(text.removeprefix(SMALL).strip()), inflict)


def _override(word: str) -> Fault:
    def inflict(shop: Shop, folder: Path) -> Seen:
        words = shop.write(shop.recipe("classification head", folder), folder)
        return shop.refused(shop.run([*words, word]), folder)

    return Fault("recipe", f"override {word!r}", inflict)


def squad(answers: Any, **extra: Any) -> bytes:
    """A file in SQuAD's form with one question."""
    question = {"id": "q", "question": "Who did?", "answers": answers} | extra
    paragraph = {"context": "Ada Lovelace did.", "qas": [question]}
    return json.dumps({"data": [{"title": "t", "paragraphs": [paragraph]}]}).encode()


ADA = [{"text": "Ada", "answer_start": 0}]
RIGHT = {
    ".csv": b"text,label\nwarm,1\n",
    ".json": squad(ADA).replace(b"Lovelace", b"King").replace(b'"q"', b'"q2"'),
}
TEXTS: dict[str, tuple[str, bytes]] = {
    "empty": ("a.csv", b""),
    "a header alone": ("a.csv", b"text,label\n"),
    "one row": ("a.csv", b"text,label\nfine,1\n"),
    "no such column": ("a.csv", b"words,label\nfine,1\nbad,0\n"),
    "a text is empty": ("a.csv", b"text,label\n,1\nfine,0\n"),
    "a text is blank": ("a.csv", b"text,label\n   ,1\nfine,0\n"),
    "no label": ("a.csv", b"text,label\nfine,\nbad,0\n"),
    "label out of range": ("a.csv", b"text,label\nfine,7\ngood,1\nbad,0\n"),
    "one class": ("a.csv", b"text,label\nfine,1\ngood,1\nwarm,1\n"),
    "Latin-1": ("a.csv", "text,label\ncaf\xe9,1\nbad,0\n".encode("latin-1")),
    "UTF-16": ("a.csv", "text,label\nfine,1\nbad,0\n".encode("utf-16")),
    "binary": ("a.csv", bytes(range(256)) * 4),
    "same id twice": ("a.csv", b"id,text,label\n1,fine,1\n1,bad,0\n"),
    "ragged": ("a.csv", b"text,label\nfine,1,2,3\nbad,0\n"),
    "an open quote": ("a.csv", b'text,label\n"fine,1\nbad,0\n'),
    "JSON cut off": ("a.json", b'[{"text": "fine", "label": 1}, {"te'),
    "JSON that is a number": ("a.json", b"7"),
    "JSON lines, one broken": ("a.jsonl", b'{"text": "fine", "label": 1}\n{"text": \n'),
    "JSON lines of lists": ("a.jsonl", b"[1]\n[2]\n"),
    "texts that are numbers": ("a.json", b'[{"text": 3, "label": 1}, {"text": 4, "label": 0}]'),
    "Parquet that is none": ("a.parquet", b"PAR1 but no more"),
    "a kind nobody knows": ("a.xlsx", b"PK"),
}
QUESTIONS: dict[str, tuple[str, bytes]] = {
    "answer off by one": ("a.json", squad([{"text": "Ada", "answer_start": 1}])),
    "answer beyond the end": ("a.json", squad([{"text": "Ada", "answer_start": 900}])),
    "answer before the start": ("a.json", squad([{"text": "Ada", "answer_start": -17}])),
    "answer empty": ("a.json", squad([{"text": "", "answer_start": 0}])),
    "answer of another case": ("a.json", squad([{"text": "ada", "answer_start": 0}])),
    "answers a number": ("a.json", squad(7)),
    "offset a text": ("a.json", squad([{"text": "Ada", "answer_start": "0"}])),
    "no answer, yet possible": ("a.json", squad([])),
    "answer, yet impossible": ("a.json", squad(ADA, is_impossible=True)),
    "question empty": ("a.json", squad(ADA, question=" ")),
    "id missing": ("a.json", squad(ADA, id=None)),
    "no data": ("a.json", b'{"data": []}'),
    "another form": ("a.json", b'{"questions": [1, 2]}'),
    "deep nesting": ("a.json", b"[" * 100_000),
    "a huge number": ("a.json", b'{"data": ' + b"9" * 10_000 + b"}"),
}


def _data(kind: str, name: str, file: str, raw: bytes) -> Fault:
    def inflict(shop: Shop, folder: Path) -> Seen:
        return shop.refused(
            shop.run(["train", str(_data_recipe(shop, folder, kind, file, raw))]), folder
        )

    return Fault("data", f"{file.rpartition('.')[2]}: {name}", inflict)


def _data_recipe(shop: Shop, folder: Path, kind: str, file: str, raw: bytes) -> Path:
    """A recipe that trains on all of a file."""
    values = shop.recipe(kind, folder).model_dump(exclude={"dataset"}, exclude_none=True)
    (folder / file).write_bytes(raw)
    right = folder / f"right.{'csv' if kind.startswith('classification') else 'json'}"
    right.write_bytes(RIGHT[right.suffix])
    parts = {"train": str(folder / file), "test": str(right)}
    values["dataset"] = {"parts": parts, "validation_size": 0}
    path = folder / "recipe.yaml"
    path.write_text(recipe_yaml.dump(values))
    return path


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


def _edited(name: str, edit: Callable[[Tensors], object]) -> Callable[[Path], object]:
    def change(run: Path) -> None:
        path = run / "adapter" / name
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


WEIGHT = "adapter_model.safetensors"
ADAPTERS: dict[str, Callable[[Path], object]] = {
    "of fewer blocks": _edited(
        WEIGHT, lambda t: [t.pop(name) for name in list(t) if ".layers.1." in name]
    ),
    "without its head": _edited(WEIGHT, lambda t: t.pop(_first(t, "score"))),
    "of another rank": _edited(
        WEIGHT, lambda t: t.update({n: t[n][:1] for n in [_first(t, "lora_A")]})
    ),
    "with a stranger's weight": _edited(WEIGHT, lambda t: t.update({"stranger": torch.ones(2)})),
    "of another width": _edited(
        WEIGHT, lambda t: t.update({n: t[n][:, :32].contiguous() for n in [_first(t, "lora_A")]})
    ),
    "for another task": _adapter_config(task_type="CAUSAL_LM"),
    "of a method that is not LoRA": _adapter_config(peft_type="PROMPT_TUNING"),
    "whose config says another rank": _adapter_config(r=64),
    "pickled": _pickled_adapter,
}


def _adapter(name: str, change: Callable[[Path], object]) -> Fault:
    """A run whose adapter somebody exchanged, and whose sums they mended."""

    def inflict(shop: Shop, folder: Path) -> Seen:
        run = folder / "run"
        shutil.copytree(shop.reference("classification + LoRA"), run)
        change(run)
        resealed(run)
        words = ["run", "--model", str(run), "--output", str(folder / "out")]
        return shop.refused(shop.run(words, program="eval"))

    return Fault("model", f"adapter {name}", inflict)


def resealed(run: Path) -> None:
    """Write the sums of the files as they are now."""
    facts = json.loads((run / "training.json").read_text())
    facts["files"] = {name: sha256(run / name) for name in facts["files"] if (run / name).is_file()}
    runs.write_record(run, facts)


class Evil:
    """Unpickled, it writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.mark, "executed")


BOMB = "a: &a [x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n" + SMALL
HOSTILE_TEXTS = {
    "a YAML bomb": BOMB,
    "a YAML tag that runs code": SMALL + "train: !!python/object/apply:os.system ['true']\n",
    "a YAML tag": SMALL + "name: !secret x\n",
    "nesting": SMALL + "train: " + "[" * 50_000 + "\n",
    "nesting in braces": SMALL + "train: " + "{a: " * 5_000 + "\n",
    "a merge key": SMALL + "train:\n  <<: {seed: 1}\n",
    "two documents": SMALL + "---\n" + SMALL,
    "a megabyte": SMALL + "# " + "x" * 1_000_000,
    "a name that leaves the folder": SMALL + "name: ../../elsewhere\n",
    "an absolute name": SMALL + "name: /tmp/elsewhere\n",
    "control characters": SMALL + "name: 'a\x07b'\n",
}


def _hostile() -> Iterator[Fault]:
    for name, text in HOSTILE_TEXTS.items():
        yield _recipe(text)._replace(category="hostile files", name=name)

    def pickled_state(shop: Shop, folder: Path) -> Seen:
        """A stranger's checkpoint whose optimizer state runs code when it is read."""
        kind = "classification + LoRA"
        words, run = shop.copy(kind, folder)
        mark = folder / "executed"
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
            path = run / "checkpoints/checkpoint-6" / name
            path.write_bytes(pickle.dumps(Evil(mark)))
        seen = shop.undone(kind, words, folder, "passes it over")
        return Seen("wrong", "code was executed") if mark.exists() else seen

    yield Fault("hostile files", "a checkpoint that runs code", pickled_state)

    def linked_out(shop: Shop, folder: Path) -> Seen:
        """The run folder's adapter is a link to somebody else's file."""
        run = folder / "run"
        shutil.copytree(shop.reference("classification + LoRA"), run)
        outside = folder / "outside"
        shutil.move(run / "adapter", outside)
        (run / "adapter").symlink_to(outside)
        words = ["run", "--model", str(run), "--output", str(folder / "out")]
        return shop.refused(shop.run(words, program="eval"))

    yield Fault("hostile files", "a symbolic link out of the run folder", linked_out)

    def named_out(shop: Shop, folder: Path) -> Seen:
        """training.json names a file outside of its folder."""
        run = folder / "run"
        shutil.copytree(shop.reference("classification + LoRA"), run)
        facts = json.loads((run / "training.json").read_text())
        facts["files"]["../outside"] = sha256(run / "recipe.yaml")
        shutil.copy(run / "recipe.yaml", folder / "outside")
        runs.write_record(run, facts)
        words = ["run", "--model", str(run), "--output", str(folder / "out")]
        return shop.refused(shop.run(words, program="eval"))

    yield Fault("hostile files", "a record that names a file elsewhere", named_out)

    def control_tokens(shop: Shop, folder: Path) -> Seen:
        """A text that spells the end-of-text token stays text: it is encoded without it."""
        from llama_peft.model import backbone
        from llama_peft.tokens.prompts import PromptEncoder

        recipe = shop.recipe("classification head", folder)
        tokenizer = backbone.load_tokenizer(recipe.model)
        encoder = PromptEncoder(tokenizer, recipe.prompt)
        special = set(tokenizer.all_special_ids)
        for token in tokenizer.all_special_tokens:
            ids = encoder.head_input(f"good {token} film", 99)
            plain = encoder.head_input("good film", 99)
            if sum(i in special for i in ids) != sum(i in special for i in plain):
                return Seen("wrong", f"{token} became a control token")
        return Seen("right", "stays text")

    yield Fault("hostile files", "control tokens in data", control_tokens)

    def secret(shop: Shop, folder: Path) -> Seen:
        """A token in the environment is in no file and in no line, also where the run fails."""
        import os

        def hook() -> None:
            os.environ["HF_TOKEN"] = SECRET

        kind = "classification + LoRA"
        words = shop.write(shop.recipe(kind, folder), folder)
        told = shop.run(words, hook=hook).text
        told += shop.run([*words, "train.nothing=1"], hook=hook).text
        told += shop.run(["run", "--model", str(folder / "runs/run")], "eval", hook).text
        files = [path for path in folder.rglob("*") if path.is_file()]
        shown = [str(path) for path in files if SECRET.encode() in path.read_bytes()]
        if SECRET in told or shown:
            return Seen("wrong", f"the token stands in {shown or 'the output'}")
        return Seen("right" if shop.same(kind, folder) else "wrong", "nowhere to be seen")

    yield Fault("hostile files", "a token in the environment", secret)
