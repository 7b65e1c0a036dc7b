"""Numbers from lists of strings and labels: without a model, torch or a network.

These modules import nothing else of this project. Each one turns predictions and references into
`Evidence`, which holds one row for each example. Scores, their intervals and paired tests are
all computed from these rows, so they always agree. A question is unanswerable if its list of
references is empty, and "no answer" is the empty string.

    catalogue        the table of all metrics; a new metric starts with a row there
    classification   accuracy, precision, recall, F1
    confidence       how far probabilities can be trusted
    squad_v2         exact match, token F1 and the no-answer threshold
    words            BLEU, ROUGE, METEOR and chrF, on the tokens of any script
    evidence         what scores need to know of each example
    intervals        how certain a score is, and whether a difference is real
    measure          scores with their intervals, as results.json holds them
    drop_in          the metrics as `evaluate.Metric` classes that need no network
"""
