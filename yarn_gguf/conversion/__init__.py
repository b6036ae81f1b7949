"""What `convert` composes: the file laid out and sliced, its RoPE, its name, and other converters."""
