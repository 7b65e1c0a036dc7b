"""What both command lines share: plain log lines, one line and exit code 2 for a user's mistake."""

import logging
import os
import sys
import warnings
from collections.abc import Callable

from llama_peft.recipe import UserError


def run(app: Callable[[], None]) -> None:
    """Run a typer app. Exits with 2 on a UserError, 130 on Ctrl-C; anything else is a fault of ours and shows its traceback."""
    _quiet_libraries()
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        sys.exit(130)


def _quiet_libraries() -> None:
    """Our own lines at INFO; of the libraries only what needs attention. Set before they are imported."""
    main = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    for name in ("llama_peft", "eval"):
        logging.getLogger(name).setLevel(logging.INFO if main else logging.ERROR)
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # Deprecations between the libraries themselves are nothing a user can act on.
    for library in ("transformers", "trl", "peft", "accelerate", "bitsandbytes"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=library)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
