"""A download of the Hub's client as a phase: the client reports to a class that looks like tqdm."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llama_peft.system.progress import Phase

if TYPE_CHECKING:
    from huggingface_hub.utils import tqdm

_MB = 1_000_000


@contextmanager
def download() -> Iterator[type["tqdm"]]:
    """Yield the class that the client's functions take as `tqdm_class`.

    The client opens one bar for the bytes of a file, or two for those of several: of what has come,
    and of what is written. The one that is further is shown. Bars that count files are not.
    """
    from huggingface_hub.utils import tqdm

    with Phase("download", "MB") as phase:
        opened: list[tqdm] = []

        class Bar(tqdm):
            def __init__(self, *words: object, **keys: object) -> None:
                super().__init__(*words, **keys | {"disable": True})  # it draws nothing itself
                if keys.get("unit") == "B":
                    opened.append(self)
                    phase.begin(*_megabytes(opened))

            def update(self, n: float | None = 1) -> None:
                self.n += n or 0
                self.refresh()

            def refresh(self, *words: object, **keys: object) -> None:
                if self in opened:
                    phase.work.total, done = _megabytes(opened)
                    phase.reach(done)

            def close(self) -> None:
                if self in opened:  # what follows, such as loading the weights, is no download
                    phase.end()

        yield Bar


def _megabytes(bars: "Sequence[tqdm]") -> tuple[int, int]:
    """Return how much there is to download, and how much is here."""
    total, done = max(bar.total or 0 for bar in bars), max(bar.n for bar in bars)
    return int(total) // _MB, int(done) // _MB
