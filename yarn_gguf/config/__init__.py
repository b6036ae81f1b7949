"""config.json: what it says, what transformers makes of it, and whether llama.cpp can honour it."""
