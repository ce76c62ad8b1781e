"""``python -m llmrl`` is ``llmrl``."""

import signal


def main() -> None:
    """The console script. Ctrl-C ends it without a word while it imports: nothing has begun that could be told of."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from llmrl.cli.main import main as command

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    command()


if __name__ == "__main__":
    main()
