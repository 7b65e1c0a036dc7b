"""The parts of a push that the Hub itself reads: the card's YAML metadata, and the results that a data set's own page shows."""

from llama_peft.errors import UserError
from llama_peft.export import licences
from llama_peft.export.stage import Bundle
from llama_peft.recipe import Recipe
from llama_peft.run_folder.comparison import PartComparison
from llama_peft.run_folder.layout import HUB_RESULTS


def metadata(bundle: Bundle, repo_id: str) -> dict[str, object]:
    """The YAML metadata of the card."""
    recipe = bundle.recipe
    base, hub_data = recipe.model.model_name_or_path, bundle.hub_data
    duties = licences.duties(base)
    found: dict[str, object] = {}
    if base != "tiny":
        found["base_model"] = base
        found["base_model_relation"] = "adapter" if recipe.lora is not None else "finetune"
    found |= {
        "library_name": "peft" if recipe.lora is not None else "llama_peft",
        "pipeline_tag": recipe.kind.pipeline_tag,
    }
    if hub_data:
        found["datasets"] = [hub_data]
    if recipe.hub.language:
        found["language"] = recipe.hub.language
    if duties:
        found["license"] = duties.identifier
    found["tags"] = [
        "llama_peft",
        *(["lora"] if recipe.lora is not None else ["linear-probe"]),
        *(["llama"] if duties and duties.name_start else []),
    ]
    if bundle.comparison is not None:
        results = [_index(bundle, part) for part in bundle.comparison.parts]
        found["model-index"] = [{"name": repo_id.split("/")[-1], "results": results}]
    return found


def _index(bundle: Bundle, part: PartComparison) -> dict[str, object]:
    """The scores on one part, in the form of `model-index`."""
    recipe = bundle.recipe
    dataset = {
        "name": f"{part.task} ({part.part})",
        "type": bundle.hub_data or recipe.name,
        "split": _split(recipe, part.part) if bundle.hub_data else part.part,
    }
    metrics = [
        {"type": line.name, "name": line.name, "value": round(line.tuned, 6)}
        for line in part.metrics
        if line.tuned is not None
    ]
    return {"task": {"type": recipe.kind.pipeline_tag}, "dataset": dataset, "metrics": metrics}


def _split(recipe: Recipe, part: str) -> str:
    """The Hub's split that a part is, or was taken from."""
    given = recipe.dataset.parts.given()
    return given.get(part, given["train"])


def hub_results(bundle: Bundle) -> str:
    """The text of `.eval_results/results.yaml`: the scores of the fine-tuned model, for the data set's own page on the Hub."""
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    data = bundle.recipe.dataset
    if bundle.comparison is None or bundle.hub_data is None:
        raise UserError(
            f"{HUB_RESULTS} needs both evaluations of a run on a data set of the Hub; "
            "evaluate the run first, or leave --eval-results out"
        )
    entries = [
        EvalResultEntry(
            dataset_id=str(data.path),
            task_id=f"{data.name or 'default'}_{line.name}",
            value=line.tuned,
            notes=f"{part.part} part, {part.examples:,} examples; settings in recipe.yaml",
        )
        for part in bundle.comparison.parts
        for line in part.metrics[:1]
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
