"""Speed and quality of shared prefixes against the stock stack, measured side by side in one process.

    python -m tests.benchmarks                      training, decoding and features, as `make bench` runs them
    python -m tests.benchmarks --only features      a head alone: states once, or the backbone in the loop
    python -m tests.benchmarks --only layers        a head alone: the last layer, or where `auto` leads
    python -m tests.benchmarks --only convergence   what less mixed batches cost in validation loss

Results go to `results/<name>.json` (design: rows, ratios, hardware, versions).
"""
