"""What is compared, as data: rates, epochs, ranks, prompts, rows."""

from typing import Any

ASKED = "Review: {text}\nSentiment:"
TOPICS = ["Steam_engine", "Immune_system", "Warsaw", "Scottish_Parliament", "Packet_switching"]


def sst(rows: int, part: str = "validation", **keys: Any) -> dict[str, Any]:
    """A head on sentences, with LoRA unless `keys` say otherwise."""
    data = {"task": "classification", "data": f"sst {rows}", "part": part}
    return {**data, "batch": 8, "template": ASKED, "layer": 23, **keys}


def topics(rate: float | str, epochs: float | str) -> dict[str, Any]:
    """600 questions in 5 classes: the article that they are about."""
    keys = {"batch": 16, "template": "{text}", "layer": -1, "pooling": "mean"}
    return {"task": "classification", "data": "topics", "rate": rate, "epochs": epochs, **keys}


def squad(rows: int | None, rate: float, **keys: Any) -> dict[str, Any]:
    """LoRA that writes answers, with the passage first unless `keys` say otherwise. rows: None for all."""
    what = {"task": "generative_qa", "data": "squad", "part": "validation", "rows": rows}
    return {**what, "rate": rate, "batch": 1, "order": "passage first", "dtype": "bfloat16", **keys}


def spans(rows: int | None, rate: float, **keys: Any) -> dict[str, Any]:
    """LoRA and a head that scores spans, which always reads the question first."""
    head = {"task": "extractive_qa", "batch": 8, "order": "question first"}
    return squad(rows, rate, **{**head, **keys})


SETTINGS: dict[str, dict[str, Any]] = {
    "plain prompt, all blocks": sst(640, rate=1e-3, batch=32, template="{text}", layer=-1),
    "prompt asks, block 23": sst(640, rate=1e-3, batch=32),
    "... batch 8": sst(640, rate=1e-3),
    "... batch 8, rate 3e-4": sst(640, rate=3e-4),
    **{
        f"blocks {first} to 22, rate {rate:g}": sst(
            2000,
            part="dev",
            rate=rate,
            dtype="bfloat16",
            adapter={"layers_to_transform": [*range(first, 23)]},
        )
        for first, rate in ((0, 5e-4), (8, 1e-3), (12, 5e-4), (12, 1e-3), (15, 5e-4))
    },
    **{
        f"head alone, rate {rate:g}, {epochs} epochs": sst(
            2000, rate=rate, epochs=epochs, batch=32, lora=False
        )
        for rate, epochs in ((2e-4, 3), (1e-3, 3), (1e-2, 3), (1e-2, 20), (1e-3, 20), (3e-2, 20))
    },
    **{
        f"topics, rate {rate:g}, {epochs} epochs": topics(rate, epochs)
        for rate in (2e-4, 1e-3, 2e-3, 3e-3, 5e-3)
        for epochs in (3, 8, 10)
    },
    "topics, auto": topics("auto", "auto"),
    **{f"answers, rate {rate:g}": squad(1000, rate) for rate in (1e-3, 5e-4, 3e-4, 1e-4)},
    "answers, two epochs": squad(1000, 1e-3, epochs=2),
    "answers, r 64": squad(1000, 1e-3, adapter={"r": 64}),
    "answers, rsLoRA r 64": squad(1000, 5e-4, adapter={"r": 64, "use_rslora": True}),
    "answers, question first": squad(300, 1e-3, order="question first", batch=4),
    "answers, every row": squad(None, 1e-3),
    **{
        f"test: {name}, seed {seed}": squad(rows, 1e-3, epochs=epochs, seed=seed, part="test")
        for name, rows, epochs in (("1,000 rows", 1000, 1), ("every row", None, 1))
        for seed in (1, 2, 3)
    },
    "spans, rate 1e-3": spans(500, 1e-3),
    "spans, rate 3e-4": spans(500, 3e-4),
    "spans, block 20": spans(500, 1e-3, layer=20),
}
