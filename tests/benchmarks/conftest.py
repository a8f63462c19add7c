"""The benchmarks are scripts beside each other, which find each other when they are run; here they are told where."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
