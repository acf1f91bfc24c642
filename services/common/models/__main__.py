"""`python -m services.common.models [MODEL]`: fetches and converts a model, so that services find it ready.

The model is the argument, else $HEADRACE_MODEL, else the default one; $HEADRACE_CACHE_DIR says where it goes.
"""

import os
import sys

from services.common.models import ModelError, progress_to, resolve


def main(arguments: list[str]) -> int:
    """Prints the model's directory on standard output; progress and errors go to standard error."""
    model = (arguments or [os.environ.get("HEADRACE_MODEL", "default")])[0]
    try:
        print(resolve(model, progress=progress_to(sys.stderr)).path)
    except ModelError as error:
        print(f"headrace: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
