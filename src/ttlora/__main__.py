"""`python -m ttlora`: the command, where its script is not on the path."""

import sys

from ttlora.cli.main import main

sys.exit(main())
