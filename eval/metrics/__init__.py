"""Numbers from lists of strings and labels: without a model, torch or a network.

These modules import nothing else of this project. Each one turns predictions and references into
`Evidence`, which holds one row for each example. Scores, bootstrap intervals and paired tests are
all computed from these rows, so they always agree. A question is unanswerable if its list of
references is empty, and "no answer" is the empty string.

    catalogue        the table of all metrics; a new metric starts with a row there
    classification   accuracy, precision, recall, F1, calibration
    squad_v2         exact match, token F1 and the no-answer threshold
    overlap          BLEU, ROUGE and (with `meteor` and `wordnet`) METEOR
    unicode_tokens   tokens of text in any script
    bootstrap        intervals and paired tests
    measure          scores with their intervals, as results.json holds them
    drop_in          the metrics as `evaluate.Metric` classes that need no network
"""
