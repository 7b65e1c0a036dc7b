"""Opens what a server answers for: a base, a run or an adapter whose weights are not loaded here.

Its tokenizer and its config are read as for an evaluation here, so that the prompts are the same.
"""

from dataclasses import replace
from pathlib import Path

from llama_peft.inference.predict import Shots
from llama_peft.model import backbone
from llama_peft.recipe import Recipe
from llama_peft.run_folder.layout import ADAPTER
from llama_peft.run_folder.results import ModelConfig
from llama_peft.tokens.prompts import PromptEncoder

from ..kinds import EngineChoice
from ..lm_head import open_lm_head
from ..open import run_config
from ..predictor import Predictor
from ..recognise import Subject, on_base
from . import vllm
from .client import checked_url, environment_key
from .server import Place, Server


def open_served(
    subject: Subject,
    recipe: Recipe,
    labels: tuple[str, ...],
    choice: EngineChoice,
    shots: Shots | None = None,
) -> Predictor:
    """Return the predictor of a model behind a server. The server is not asked before its first
    prediction. Raises UserError if it has no address, or if vLLM is not here.
    """
    run, adapter = subject.run, subject.adapter
    folder: Path | None
    if run is not None:
        base = run.recipe.changed(eval=recipe.eval)
        config, folder = run_config(run, recipe), run.adapter
    else:
        named = (subject.name, None) if adapter is None else (adapter.base, adapter.revision)
        base, folder = on_base(recipe, *named), None if adapter is None else adapter.folder
        config = ModelConfig(
            model_kind="",
            recipe=recipe.name,
            model=named[0],
            adapter=None if folder is None else str(folder),
            adapter_sha256=None if adapter is None else adapter.sha256,
        )
    instead = run is not None and base.fits_threshold
    server = _server(choice, base, folder, instead)
    way = "adapter," if adapter is not None else ""
    found = open_lm_head(server, base, labels, way, config, shots, instead)
    if run is not None:
        found = replace(found, config=config, fits_threshold=instead, with_shots=None)
    return _served(found, server)


def _server(choice: EngineChoice, base: Recipe, adapter: Path | None, instead: bool) -> Server:
    """Return the server of a base, or of an adapter on it. instead: as in `write_answers`."""
    encoder = PromptEncoder(backbone.load_tokenizer(base.model), base.prompt)
    positions = backbone.positions(backbone.load_config(base.model))
    name = base.model.model_name_or_path if adapter is None else adapter.resolve().name
    if adapter is not None and adapter.name == ADAPTER:
        name = adapter.resolve().parent.name  # that of the run
    needs = "eval.fit_no_answer_threshold needs: set it to false" if instead else ""
    labels = "the labels of texts are read from" if base.kind.has_labels else ""
    if choice.name == "vllm":
        child = vllm.Child(base, adapter)
        name, open_, close = vllm.BASE if adapter is None else vllm.TUNED, child.open, child.close
    else:
        place = Place(checked_url(choice.base_url), environment_key())
        name, open_, close = choice.served_model or name, lambda: place, lambda: None
    return Server(
        *(choice, name, encoder, positions, open_),
        needs_scores=needs or labels,
        needs_ids=needs,
        close=close,
    )


def _served(found: Predictor, server: Server) -> Predictor:
    """Return a predictor that says who answers, and that asks for enough at the same time."""
    predict, with_shots = found.predict, found.with_shots
    kind, at_once = f"{found.kind}, {server.choice.name}", server.choice.concurrency

    def with_other(wanted: int, shots: Shots | None) -> Predictor:
        assert with_shots is not None
        return _served(with_shots(wanted, shots), server)

    return replace(
        found,
        config=found.config.model_copy(update={"model_kind": kind}),
        predict=lambda examples, size: predict(examples, max(size, at_once)),
        with_shots=None if with_shots is None else with_other,
        remote=server,
    )
