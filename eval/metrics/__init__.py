"""Numbers from lists of strings and labels: pure, without a model, torch or a network.

Nothing else of ours is imported here. Each room turns predictions and golds into `Evidence`, the
one row an example that its scores need; the scores, their bootstrap intervals and paired tests
between two systems are all read from it, so they cannot drift apart. "Unanswerable" is only ever an
empty list of golds, and "no answer" only ever the empty string.

    classification   accuracy, precision, recall, F1
    squad_v2         exact match and token F1, the no-answer threshold
    overlap          BLEU, ROUGE and (with `meteor` and `wordnet`) METEOR
    bootstrap        intervals and paired tests
    measure          scores with an interval beside each: what the harness calls
    drop_in          the same as `evaluate.Metric` classes, offline
"""
