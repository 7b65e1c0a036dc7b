"""What a GPU shows and nothing else can: speed, memory, and that 4-bit training is right there.

    make bench-gpu                                             all parts, on the GPU of this machine
    python -m tests.benchmarks.gpu --base FOLDER --minutes 8   the shape and the tokenizer of that folder
    python -m tests.benchmarks.gpu --only memory               one part; the others of this card are kept
    python -m tests.benchmarks.gpu --readme                    the README's table from all cards' results

The weights are random ones of the true shape, so nothing is downloaded. Results go to
`tests/benchmarks/results/gpu/<card>.json` as soon as there are any. Without a GPU everything runs on the CPU: the tests do
this with a small shape. A copy of the project without git takes its commit from the variable COMMIT.
"""

from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results" / "gpu"
