"""Tests of llama_peft/training/features: law 5 for what trains on states."""
