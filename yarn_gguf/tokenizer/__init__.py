"""A checkpoint's tokenizer: read, told by its structure, proven against llama.cpp."""
