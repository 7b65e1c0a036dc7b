"""Labels and answers for texts and questions from anywhere, by a finished run."""

import logging

from llama_peft.data import Example, QuestionExample, TextExample
from llama_peft.run_folder.predict import predict
from llama_peft.run_folder.run import Run
from llama_peft.run_folder.threshold import UNFITTED, read_threshold
from llama_peft.run_folder.weights import load_tuned

log = logging.getLogger(__name__)


def predict_one(
    run: Run, text: str | None = None, question: str | None = None, context: str | None = None
) -> dict[str, str | float]:
    """One text's label, or one question's answer, by a finished run: `prediction` and the probabilities behind it."""
    tuned = load_tuned(run)
    if run.recipe.kind.has_labels:
        example: Example = TextExample(id="one", text=text or "", label=0)
    else:
        example = QuestionExample(
            id="one", context=context or "", question=question or "", answers=()
        )
    ((found,),) = predict(tuned, [example])
    if found.probabilities is not None:
        return {
            "prediction": found.prediction,
            **dict(zip(run.labels, found.probabilities, strict=True)),
        }
    answer, probability = found.prediction, found.no_answer_probability or 0.0
    if run.recipe.kind.fits_threshold:
        threshold = read_threshold(run.folder)
        if threshold is None:
            log.warning(
                "no answer is given above a probability of 0.5, which nothing was fitted to: llama-eval run --model %s fits it",
                run.folder,
            )
        limit = UNFITTED if threshold is None else threshold.no_answer_threshold
        answer = "" if probability > limit else found.raw
    return {"prediction": answer, "no_answer_probability": probability}
