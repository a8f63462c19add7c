"""The entry point of the command `ttlora`.

Importing the package registers its methods with PEFT, and with that imports torch. The command answers --help and
typing mistakes without these seconds: it puts the package in its place without running its ``__init__``. Each of its
subcommands imports what it needs, and with it what registers.
"""

import importlib.util
import sys


def main() -> int:
    """Run the command; the exit status is what `ttlora.cli.main.main` gives."""
    if "ttlora" not in sys.modules:
        spec = importlib.util.find_spec("ttlora")
        assert spec is not None, "both are installed together"
        sys.modules["ttlora"] = importlib.util.module_from_spec(spec)
    from ttlora.cli.main import main as run

    return run()
