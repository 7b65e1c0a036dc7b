"""The command ends with what can be done next."""

from pathlib import Path

from llama_peft.ladder.command import _next
from llama_peft.run_folder.layout import REPORT, TRAINING


def test_what_is_next_is_what_is_there(tmp_path: Path) -> None:
    run = tmp_path / "my run"
    run.mkdir()
    assert [*_next(run)] == []
    (run / TRAINING).write_text("{}", "utf-8")
    (run / REPORT).write_text("", "utf-8")
    report, use, plain = _next(run)
    assert report == f"next: open {run / REPORT}"
    assert use == f"next: llama-peft predict '{run}', or llama-peft push '{run}' --dry-run"
    assert plain.startswith(f"next: llama-peft snippet '{run}',")
