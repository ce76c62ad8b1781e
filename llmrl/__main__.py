"""``python -m llmrl`` is ``llmrl``."""

from llmrl.cli.main import main

if __name__ == "__main__":
    main()
