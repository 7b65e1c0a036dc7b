"""The one door from training to the evaluation: `eval` in a checkout, `llama_peft_eval` if installed.

Only the ladder passes it. It hands over names of folders, and gets back what was measured.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eval import harness, job, report
    from eval.ladder import forgetting, verdict
else:

    def _name() -> str:
        """Return the name of the package that lies beside this one: a user may have an `eval` too."""
        beside = Path(__file__).resolve().parents[2]
        for name in ("llama_peft_eval", "eval"):
            spec = find_spec(name)
            if spec and spec.origin and Path(spec.origin).resolve().parents[1] == beside:
                return name
        raise ImportError(f"the package of the evaluation is not beside llama_peft in {beside}")

    _own = _name()
    harness, job, report, forgetting, verdict = (
        import_module(f"{_own}.{part}")
        for part in ("harness", "job", "report", "ladder.forgetting", "ladder.verdict")
    )

__all__ = ["forgetting", "harness", "job", "report", "verdict"]
