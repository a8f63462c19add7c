"""A search of eight trials against the same eight fine-tunes, one `ttlora train` after the other.

    python benchmarks/search.py --model MODEL --data DATA [--task glue/sst2] [--rows 2000] [--json search.json]

Each trial has one epoch; two trials run at a time with a thread each, where each `ttlora train` has both threads. Both
are whole commands, from their start to their end. Bar: the search takes at most 0.8 of the time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

TRIALS, BAR = 8, 0.8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--task", default="glue/sst2")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        config = folder / "search.yaml"
        shared = {"model": os.path.abspath(arguments.model), "task": arguments.task, "epochs": 1}
        shared |= {"data": os.path.abspath(arguments.data), "max_train_examples": arguments.rows}
        space = {"r": [2, 4, 5, 8], "learning_rate": [5e-4, 2e-3]}
        plan = {**shared, "space": space, "sampler": "grid", "scheduler": "none", "trials": TRIALS}
        config.write_text(yaml.safe_dump(plan))
        search = seconds("search", "--config", config, "--output", folder / "search")
        recipes = sorted((folder / "search" / "runs").glob("*/recipe.yaml"))
        assert len(recipes) == TRIALS
        trains = 0.0
        for number, recipe in enumerate(recipes):
            output = ("--output", folder / f"train-{number}", "--threads", arguments.threads)
            trains += seconds("train", "--config", recipe, *output)
    ratio = search / trains
    print(f"{TRIALS} trials by ttlora search: {search:.0f} s; by {TRIALS} x ttlora train: {trains:.0f} s")
    print(f"ratio {ratio:.2f}, bar {BAR}: {'met' if ratio <= BAR else 'NOT MET'}")
    if arguments.json:
        content = {"search_seconds": search, "train_seconds": trains, "ratio": ratio, "arguments": sys.argv[1:]}
        with arguments.json.open("x") as file:
            file.write(json.dumps(content, indent=2) + "\n")


def seconds(*arguments: object) -> float:
    """How long a command of ttlora takes."""
    began = time.perf_counter()
    subprocess.run([str(Path(sys.executable).with_name("ttlora")), *map(str, arguments)], check=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
