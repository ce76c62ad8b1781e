"""``python -m llmrl`` is ``llmrl``."""

from llmrl.cli import main

if __name__ == "__main__":
    main()
