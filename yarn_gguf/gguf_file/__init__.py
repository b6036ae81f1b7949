"""The GGUF format: read, prove, write. Knows no model."""
