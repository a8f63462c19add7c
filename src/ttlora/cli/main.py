"""The command `ttlora`: finds the subcommand, reads its flags, and turns what goes wrong into one line."""

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from keyword import iskeyword

from ttlora.errors import UserError


@dataclass(frozen=True)
class Command:
    """A subcommand: the function of that name in the module of that name in this package.

    Attributes:
        summary: What it does, in a few words.
        positional: Name of the parameter that is given without a flag.
    """

    summary: str
    positional: str | None = None


COMMANDS = {
    "plan": Command("show what an adapter will cost, from a model's architecture alone"),
    "train": Command("fine-tune a model with TT-LoRA or another method"),
    "compare": Command("compare methods over models, tasks and seeds, from one YAML file"),
    "search": Command("search for shapes, ranks, scales and learning rates, from one YAML file"),
    "evaluate": Command("measure a finished run again, from its saved adapter", "directory"),
    "predict": Command("label new rows with a finished run", "directory"),
    "report": Command("compare finished runs: tables, figures, one page", "results"),
    "inspect": Command("show what an adapter holds: shapes, ranks, parameters, norms", "adapter"),
    "merge": Command("write the base model with an adapter's update added", "adapter"),
    "export": Command("write an adapter as plain LoRA, for serving engines", "adapter"),
    "import": Command("write a plain LoRA adapter as TT-LoRA", "lora"),
    "round": Command("write an adapter at smaller ranks", "adapter"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: Subcommand and flags; None: those of the process.

    Returns:
        The exit status: 0 done, 1 failed, 2 wrong use, 130 interrupted.
    """
    try:
        status = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except UserError as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        # whoever read our output has had enough; Python would complain once more when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(str(error), 1)
    except Exception as error:
        if os.environ.get("TTLORA_TRACEBACK"):
            raise
        return _fail(f"unexpected {type(error).__name__}: {error} (TTLORA_TRACEBACK=1 shows where)", 1)
    return status


def _run(arguments: list[str]) -> int:
    name = arguments[0] if arguments else ""
    if name in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if name == "--version":
        from importlib.metadata import version

        print(f"ttlora {version('ttlora')}")
        return 0
    if not name:
        print(_overview(), file=sys.stderr)
        return 2
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else "see ttlora --help"
        raise UserError(f"there is no command {name!r}: {hint}")
    return _call(name, arguments[1:])


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ttlora COMMAND [OPTIONS]",
            "",
            "Fine-tune transformers with tensor-train adapters of tens of kilobytes.",
            "",
            *lines,
            "",
            "ttlora COMMAND --help explains a command; ttlora --version tells the version.",
        ]
    )


def _call(name: str, arguments: list[str]) -> int:
    """Import the command, read its flags and call it."""
    from ttlora.cli.flags import parse

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for library in ("bitsandbytes", "torchao", "torch.utils._pytree"):
        # where they are installed, PEFT and transformers import them, and they report on builds that nobody asked for
        logging.getLogger(library).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        python_name = f"{name}_" if iskeyword(name) else name
        function = getattr(importlib.import_module(f"ttlora.cli.{python_name}"), python_name)
        values = parse(name, function, COMMANDS[name].positional, arguments)
        if values is None:
            return 0
        _quieten_libraries()
        return function(**values) or 0


def _quieten_libraries() -> None:
    """Leave to our own lines what transformers would report about loading; downloads keep their bars."""
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    enable_progress_bars()


def _fail(message: str, status: int) -> int:
    print(f"ttlora: error: {' '.join(message.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
