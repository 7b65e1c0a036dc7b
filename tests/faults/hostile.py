"""Files that a stranger made to do harm. They run no code, and reach nothing outside their folder."""

import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama_peft.system.files import sha256
from tests.support import runs

from .inputs import SMALL, recipe_fault
from .shop import Fault, Seen, Shop

SECRET = "hf_" + "nobodyMaySeeThisToken" + "0" * 12


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


def faults(full: bool) -> Iterator[Fault]:
    for name, text in HOSTILE_TEXTS.items():
        yield recipe_fault(text)._replace(category="hostile files", name=name)

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
            without = encoder.head_input("good film", 99)
            if sum(i in special for i in ids) != sum(i in special for i in without):
                return Seen("wrong", f"{token} became a control token")
        return Seen("right", "stays text")

    yield Fault("hostile files", "control tokens in data", control_tokens)

    def secret(shop: Shop, folder: Path) -> Seen:
        """A token in the environment is not in any file or line, also if the run fails."""

        def hook() -> None:
            os.environ["HF_TOKEN"] = SECRET

        kind = "classification + LoRA"
        words = shop.write(shop.recipe(kind, folder), folder)
        said = shop.run(words, hook=hook).text
        said += shop.run([*words, "train.nothing=1"], hook=hook).text
        said += shop.run(["run", "--model", str(folder / "runs/run")], "eval", hook).text
        files = [path for path in folder.rglob("*") if path.is_file()]
        shown = [str(path) for path in files if SECRET.encode() in path.read_bytes()]
        if SECRET in said or shown:
            return Seen("wrong", f"the token stands in {shown or 'the output'}")
        return Seen("right" if shop.same(kind, folder) else "wrong", "nowhere to be seen")

    yield Fault("hostile files", "a token in the environment", secret)
