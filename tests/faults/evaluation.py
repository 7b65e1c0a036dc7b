"""Predictions that are not the model's, or are about other examples. They give no number."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .shop import DAMAGES, Fault, Seen, Shop

LORA = "classification + LoRA"


def faults(full: bool) -> Iterator[Fault]:

    def scored(name: str, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Fault:
        def inflict(shop: Shop, folder: Path) -> Seen:
            tuned = shop.tuned("span + LoRA")
            lines = [json.loads(line) for line in (tuned / "predictions.jsonl").open()]
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / "predictions.jsonl"
            path.write_text("".join(json.dumps(line) + "\n" for line in change(lines)))
            data = folder / "data.jsonl"
            data.write_text("".join(_question(shop) for _ in range(1)))
            words = ["score", "--task", str(tuned.parent / "recipe.yaml"), "--data", str(data)]
            words += ["--predictions", str(path), "--output", str(folder / "out")]
            seen = shop.refused(shop.run(words, "eval"))
            if (folder / "out/results.json").exists():
                return Seen("wrong", "there are results")
            return seen

        return Fault("evaluation", name, inflict)

    def _question(shop: Shop) -> str:
        from llama_peft import data

        examples = data.load(shop.recipe("span + LoRA", shop.root / "none")).parts["test"]
        return "".join(
            json.dumps(
                {
                    "id": e.id,
                    "question": e.question,  # type: ignore[union-attr]
                    "context": e.context,  # type: ignore[union-attr]
                    "answers": [
                        a._asdict() if hasattr(a, "_asdict") else _answer(a) for a in e.answers
                    ],  # type: ignore[union-attr]
                    "is_impossible": not e.answers,  # type: ignore[union-attr]
                }
            )
            + "\n"
            for e in examples
        )

    yield scored("a prediction is missing", lambda lines: lines[1:])
    yield scored("all predictions are missing", lambda lines: [])
    yield scored("one prediction too many", lambda lines: [*lines, {**lines[0], "id": "nobody"}])
    yield scored("a prediction twice", lambda lines: [*lines, lines[0]])
    yield scored("ids of another part", lambda lines: [{**x, "id": x["id"] + "x"} for x in lines])
    yield scored("no ids", lambda lines: [{"prediction": x["prediction"]} for x in lines])
    yield scored("no predictions", lambda lines: [{"id": x["id"]} for x in lines])
    yield scored(
        "predictions that are numbers", lambda lines: [{**x, "prediction": 3} for x in lines]
    )
    yield scored(
        "a probability that is a word",
        lambda lines: [{**x, "no_answer_probability": "high"} for x in lines],
    )

    def of_run(name: str, words: Callable[[Shop, Path], list[str]]) -> Fault:
        def inflict(shop: Shop, folder: Path) -> Seen:
            folder.mkdir(parents=True, exist_ok=True)
            return shop.refused(shop.run(["run", *words(shop, folder)], "eval"))

        return Fault("evaluation", name, inflict)

    def run_of(shop: Shop) -> str:
        return str(shop.reference(LORA))

    yield of_run(
        "evaluated on its own training data",
        lambda s, f: ["--model", run_of(s), "--split", "train"],
    )
    yield of_run(
        "a part that does not exist", lambda s, f: ["--model", run_of(s), "--split", "nowhere"]
    )
    yield of_run(
        "a task of another kind", lambda s, f: ["--model", run_of(s), "--task", "tiny-squad"]
    )
    yield of_run("a limit of nothing", lambda s, f: ["--model", run_of(s), "--limit", "0"])
    yield of_run(
        "a model that does not exist",
        lambda s, f: ["--model", str(f / "nobody"), "--task", "tiny-sst2"],
    )
    yield of_run(
        "an empty folder as a model", lambda s, f: ["--model", str(f), "--task", "tiny-sst2"]
    )

    def known_by_heart(shop: Shop, folder: Path) -> Seen:
        """Training rows under other ids are evaluated, and their number is reported."""
        from llama_peft import data

        folder.mkdir(parents=True, exist_ok=True)
        run = shop.reference(LORA)
        found = data.load(shop.recipe(LORA, folder))
        lines = [
            json.dumps({"id": f"new-{n}", "text": row.text, "label": found.labels[row.label]})
            for n, row in enumerate(found.parts["train"][:5])
        ]  # type: ignore[union-attr]
        (folder / "mine.jsonl").write_text("\n".join(lines))
        words = ["run", "--model", str(run), "--data", str(folder / "mine.jsonl")]
        done = shop.run([*words, "--output", str(folder / "out")], "eval")
        told = [line for line in done.text.splitlines() if "5 of 5 examples read the same" in line]
        if done.code != 0 or not told:
            return Seen("wrong", done.last_line)
        config = json.loads((folder / "out/results.json").read_text())["config"]
        return Seen("right" if config["seen_in_training"] == {"data": 5} else "wrong", told[0])

    yield Fault("evaluation", "training rows under other ids", known_by_heart)

    def compared(shop: Shop, folder: Path) -> Seen:
        """Results whose predictions were edited are not compared."""
        tuned = shop.tuned(LORA)
        shutil.copytree(tuned, folder / "edited")
        path = folder / "edited/predictions.jsonl"
        lines = [json.loads(line) for line in path.open()][1:]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        results = folder / "edited/results.json"  # as of another tool, which writes no sums
        said = json.loads(results.read_text())
        del said["sum"], said["predictions_sha256"]
        results.write_text(json.dumps(said))
        return shop.refused(shop.run(["compare", str(tuned), str(folder / "edited")], "eval"))

    yield Fault("evaluation", "compared with a system that lacks an example", compared)

    for what in ("results.json", "predictions.jsonl"):
        for damage in DAMAGES:
            yield _damaged_results(what, damage)


def _answer(answer: Any) -> dict[str, Any]:
    return {"text": answer.text, "answer_start": answer.start}


def _damaged_results(what: str, damage: str) -> Fault:
    def inflict(shop: Shop, folder: Path) -> Seen:
        tuned = shop.tuned(LORA)
        shutil.copytree(tuned, folder / "other")
        DAMAGES[damage](folder / "other" / what)
        return shop.refused(shop.run(["compare", str(tuned), str(folder / "other")], "eval"))

    return Fault("evaluation", f"compared with {what} {damage}", inflict)
