"""`python -m services.tokenizer`: text to ids and back, for the mesh."""

import sys

from services.common.lifecycle import run
from services.common.settings import load_or_exit
from services.tokenizer.service import TokenizerProcess
from services.tokenizer.settings import TokenizerSettings


def main() -> int:
    """Runs the service until a signal."""
    return run(TokenizerProcess, load_or_exit(TokenizerSettings, sys.argv[1:]))


if __name__ == "__main__":  # the pool's processes import this module again
    sys.exit(main())
