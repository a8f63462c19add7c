"""The command `ttlora`: finds the subcommand, reads its flags, and turns what goes wrong into one line."""

import errno
import importlib
import importlib.util
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from keyword import iskeyword

from ttlora.errors import RunError, UserError, out_of_memory, printable, system_error
from ttlora.quiet import without_notes_on_builds


@dataclass(frozen=True)
class Command:
    """A subcommand: the function of that name in the module of that name in this package.

    Attributes:
        summary: What it does, in a few words.
        positional: Name of the parameter that is given without a flag.
        extras: The extras of the package that it needs, keys of `EXTRAS`.
        is_free: Whether it takes its arguments as they are, as those of another command.
    """

    summary: str
    positional: str | None = None
    extras: tuple[str, ...] = ()
    is_free: bool = False


# what each extra brings that a command imports
EXTRAS = {
    "train": ("datasets", "scipy", "sklearn", "trl"),
    "report": ("jinja2", "matplotlib"),
    "search": ("optuna", "ray"),
}

COMMANDS = {
    "plan": Command("show what an adapter will cost, from a model's architecture alone"),
    "train": Command("fine-tune a model with TT-LoRA or another method", extras=("train",)),
    "compare": Command("compare methods over models, tasks and seeds, from one YAML file", extras=("train", "report")),
    "search": Command(
        "search for shapes, ranks, scales and learning rates, from one YAML file", extras=("train", "report", "search")
    ),
    "evaluate": Command("measure a finished run again, from its saved adapter", "directory", ("train",)),
    "predict": Command("label new rows with a finished run", "directory", ("train",)),
    "route": Command("train a router over finished runs, for rows of unknown task", "experts", ("train",)),
    "report": Command("compare finished runs: tables, figures, one page", "results", ("report",)),
    "inspect": Command("show what an adapter holds: shapes, ranks, parameters, norms", "adapter"),
    "merge": Command("write the base model with an adapter's update added", "adapter"),
    "export": Command("write an adapter as plain LoRA, for serving engines", "adapter"),
    "import": Command("write a plain LoRA adapter as TT-LoRA", "lora"),
    "round": Command("write an adapter at smaller ranks", "adapter"),
    "run": Command("run any Python command with the methods registered with PEFT", is_free=True),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: Subcommand and flags; None: those of the process.

    Returns:
        The exit status: 0 done, 1 failed, 2 wrong use, 130 interrupted, 128 and its number for another signal.
    """
    complaint = _open_streams()
    if complaint:
        return _fail(complaint, 2)
    with _signals_as_interrupts() as received:
        status = _guarded(list(sys.argv[1:] if argv is None else argv))
        if argv is None and threading.current_thread() is threading.main_thread():
            # nothing is left to be stopped: Ctrl-C while Python ends would only take the status away
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    return 128 + received[0] if received else status


def _guarded(arguments: list[str]) -> int:
    """Run a subcommand, and turn what goes wrong into one line."""
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except UserError as error:
        return _fail(str(error), 2)
    except RunError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("stopped", 130, "ttlora")
    except BrokenPipeError:
        # whoever read our output has had enough
        _drop_stdout()
        return 1
    except Exception as error:
        if os.environ.get("TTLORA_TRACEBACK"):
            raise
        return _fail(_told(error), 1)
    return status


def _told(error: Exception) -> str:
    """What went wrong, with the file and the cause where the system knows them."""
    if (cause := system_error(error)) is not None:
        why = cause.strerror or str(cause)
        if cause.filename is not None:
            return f"{os.fsdecode(cause.filename)}: {why}"
        # all that is written by name fails with its name
        full = cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return f"stdout: {why}" if _drop_stdout() or full else why
    if out_of_memory(error):
        return "out of memory: this machine has too little for it"
    return f"unexpected {type(error).__name__}: {error} (TTLORA_TRACEBACK=1 shows where)"


def _drop_stdout() -> bool:
    """Stop writing to a stdout that takes nothing more, of which Python would complain once more at exit.

    Returns:
        Whether it is such a one.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _open_streams() -> str | None:
    """Make the streams such that printing to them fails neither for a closed one nor for a sign that it cannot show.

    A file that is opened while a stream is closed would take its place, and whatever is printed.

    Returns:
        What is wrong with them.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115, it stays open
    had_stdout = sys.stdout is not None
    if not had_stdout:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    return None if had_stdout else "stdout is closed: send it to a file, or to /dev/null"


@contextmanager
def _signals_as_interrupts() -> Iterator[list[int]]:
    """Let a signal that ends the process end it as Ctrl-C does, so that nothing half-written stays.

    What comes with `nohup` stays as it is: signals that are ignored.

    Yields:
        The signal that came, once it has come.
    """
    received: list[int] = []

    def interrupt(number: int, _: object) -> None:
        # the end of a terminal sends several; what the first began is not to be disturbed
        if not received:
            received.append(number)
            raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        ours = []
    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield received
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


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
    if COMMANDS[name].is_free:
        run: Callable[[Sequence[str]], int] = getattr(importlib.import_module(f"ttlora.cli.{name}"), name)
        return run(arguments[1:])
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
    try:
        os.getcwd()
    except OSError:
        raise UserError("the current folder is gone: change to one that is there") from None
    # torch reports on how several processes meet, and that every trained weight was used
    if os.environ.get("WORLD_SIZE", "1") != "1":
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from ttlora.cli.flags import parse, with_flags

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with warnings.catch_warnings(), without_notes_on_builds():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        python_name = f"{name}_" if iskeyword(name) else name
        function = getattr(importlib.import_module(f"ttlora.cli.{python_name}"), python_name)
        values = parse(name, function, COMMANDS[name].positional, arguments)
        if values is None:
            return 0
        _require_extras(name)
        _quieten_libraries()
        try:
            return function(**values) or 0
        except (UserError, RunError) as error:
            raise type(error)(with_flags(str(error), function, COMMANDS[name].positional)) from error


def _require_extras(name: str) -> None:
    """Refuse a command whose libraries are not installed.

    Raises:
        UserError: One is missing; the message says what brings it.
    """
    extras = COMMANDS[name].extras
    missing = [library for extra in extras for library in EXTRAS[extra] if importlib.util.find_spec(library) is None]
    if missing:
        raise UserError(
            f"ttlora {name} needs {', '.join(missing)}, which the core alone does not bring: "
            f"python -m pip install 'ttlora[{','.join(extras)}]'"
        )


def _quieten_libraries() -> None:
    """Leave to our own lines what transformers would report about loading; downloads keep their bars."""
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    enable_progress_bars()


def _fail(message: str, status: int, begin: str = "ttlora: error") -> int:
    with suppress(OSError):  # there is nobody left to tell
        print(f"{begin}: {printable(message)}", file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
