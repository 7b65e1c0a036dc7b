"""How close the words of an answer are to those of the right ones: BLEU, ROUGE, METEOR, chrF."""
