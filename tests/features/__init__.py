"""Tests of llama_peft/features."""
