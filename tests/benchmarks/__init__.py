"""Speed and quality of shared prefixes against the stock stack, measured side by side in one process.

    python -m tests.benchmarks                      training and decoding, as `make bench` runs them
    python -m tests.benchmarks --only convergence   what less mixed batches cost in validation loss

Results go to `results/<name>.json` (design: rows, ratios, hardware, versions).
"""
