"""`python -m yarn_gguf`."""

from yarn_gguf.cli import main

main()
