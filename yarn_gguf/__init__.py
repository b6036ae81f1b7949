"""Give a GGUF model a longer context with YaRN, and prove that it did."""

__version__ = "0.1.0"
