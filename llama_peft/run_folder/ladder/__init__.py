"""What `llama-peft run` measures: the rungs, the folder of each, and which are finished."""
