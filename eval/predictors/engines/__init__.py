"""Servers that answer in place of this process: any that speaks the completions API of OpenAI, and vLLM,
which is started for one evaluation and asked in the same way.
"""
