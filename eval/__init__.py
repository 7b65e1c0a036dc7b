"""Measures any checkpoint: predictions go to a file, numbers come from the file, tables from them.

It reads what training wrote into a run folder and shares prompt, split and "no answer" with it
through the rooms below both; it never imports what only training does, so that nothing of training
can leak into a score.
"""
