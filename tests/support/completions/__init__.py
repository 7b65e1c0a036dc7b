"""A small server of the completions API of OpenAI on 127.0.0.1, whose answers are those of transformers' own `generate`."""
