"""Trainings on states of the frozen base: a head alone, or LoRA on upper blocks.

A head may read an inner layer: the states after block k, through the model's final norm. That is
the model with `num_hidden_layers: k`. Here and in plain transformers it is loaded like this, so the
blocks above are never run.
"""
