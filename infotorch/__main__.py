"""The command line: ``python -m infotorch COMMAND``. A command lives in its room and is loaded when it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from infotorch import __version__

# Name: module with `main(arguments) -> exit code`, and what it does.
COMMANDS = {
    "report": ("infotorch.report.cli", "how dependent the columns of a csv file are: table, picture, web page"),
}


def usage() -> str:
    """The help text."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items())
    return (
        "usage: python -m infotorch COMMAND ...\n\n"
        f"infotorch {__version__}: entropy and mutual information for PyTorch.\n\n"
        f"commands:\n{commands}\n\n"
        "python -m infotorch COMMAND --help tells more about one of them."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, or 2 for input that it cannot use."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name in ("-V", "--version"):
        print(f"infotorch {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"error: no command {name!r}; there is: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return import_module(COMMANDS[name][0]).main(rest)


if __name__ == "__main__":
    sys.exit(main())
