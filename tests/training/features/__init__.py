"""Tests of llama_peft/training/features: law 5 for heads alone."""
