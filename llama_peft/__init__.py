"""Fine-tune a small Llama or Gemma in 4-bit with heads and adapters, and say what it bought."""

__version__ = "0.1.0"
