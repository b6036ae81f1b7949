"""`python -m yarn_gguf`, and the console script: signals are answered before the rest, which takes time, is loaded."""

from yarn_gguf.process import hold_streams, leave, on_signals


def main() -> None:
    hold_streams()
    on_signals(leave)
    from yarn_gguf.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
