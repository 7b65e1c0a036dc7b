"""Features for a head alone: states of the frozen base, computed once and kept on disk.

A head may read an inner layer: the states after block k, through the model's final norm. That is
the model with `num_hidden_layers: k`. Here and in plain transformers it is loaded like this, so the
blocks above are never run.
"""
