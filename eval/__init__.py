"""Measures any checkpoint: predictions to a file first, then numbers from that file, then tables
from the numbers.

It reads what training wrote into a run folder and shares prompt, split and "no answer" with it
through the rooms below both; it never imports what only training does, so that nothing of training
can leak into a score.
"""
