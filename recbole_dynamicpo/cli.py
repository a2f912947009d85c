"""Console scripts: ``run_recbole`` for any RecBole model, ``recbole-dynamicpo`` for the rest.

As a module it is both, for torchrun: ``torchrun --nproc-per-node=4 -m recbole_dynamicpo.cli`` takes the
arguments of the one, or a subcommand of the other.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from types import FrameType

from .commands import (
    audit,
    baselines,
    bootstrap,
    compare,
    demo,
    doctor,
    evaluate,
    export,
    prepare,
    rank,
    run,
    show,
    study,
    sync,
)
from .errors import DynamicPOError, PeerError, StoppedError
from .parallel import is_one_of_several, leave, may_show, waits_for_others

# Read when torch loads its OpenMP runtime. Where other processes are busy, its threads wait for one another
# in loops that take the core from the very thread they wait for; a short spin costs a quiet machine nothing.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# What a disk that is full, read-only, not ours or damaged, or a file in a folder's place, answers to a write.
_STORAGE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
}


_OLD_WAYS = (
    "A value is trying to be set on a copy of a DataFrame",
    "using .* in Series.agg",
    ".*torch.cuda.amp",
)


def run_recbole(arguments: Sequence[str] | None = None) -> int:
    """Run a model with the arguments of RecBole's own script; returns the exit status."""
    return _guarded(run.run, arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand of ``recbole-dynamicpo``; returns the exit status."""
    return _guarded(_main, arguments)


def _guarded(command: Callable[[Sequence[str]], None], arguments: Sequence[str] | None) -> int:
    """Turn the errors that a user can cause into one line and exit status 2."""
    if not sys.warnoptions:  # what RecBole 1.2.1 does in old ways, of which a user can change nothing
        for message in _OLD_WAYS:
            warnings.filterwarnings("ignore", message, FutureWarning)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)
    try:
        command(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except PeerError as error:
        _show(f"error: {error}")
        return 1
    except BrokenPipeError:  # who reads our output, head for one, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
        return 128 + signal.SIGPIPE
    except StoppedError as error:
        _show(str(error))
        return 128 + signal.SIGTERM
    except DynamicPOError as error:
        _show(f"error: {error}")
        return 2
    except OSError as error:
        if error.errno not in _STORAGE or not error.filename:
            raise
        _show(f"error: {error.filename}: {error.strerror}")
        return 2
    except KeyboardInterrupt as error:
        _show(str(error) or "interrupted")
        return 130
    finally:
        leave()
    return 0


def _show(text: str) -> None:
    """Show why a run ends; of several processes the one does that ends first."""
    if may_show():
        print(text, file=sys.stderr, flush=True)


def _stop(number: int, frame: FrameType | None) -> None:
    why = " (as torchrun does to all where one process dies)" if is_one_of_several() else ""
    if waits_for_others():
        # What is being imported, or waits in C for a process that is dead, would swallow an exception.
        said = f"process {os.environ.get('RANK')}: stopped by SIGTERM{why}, before anything was begun"
        print(said, file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGTERM)
    raise StoppedError(f"stopped by SIGTERM{why}")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of ``recbole-dynamicpo``."""
    parser = argparse.ArgumentParser(
        prog="recbole-dynamicpo",
        description="Prepare data, evaluate, compare and use recommenders.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (
        prepare,
        audit,
        evaluate,
        baselines,
        compare,
        rank,
        show,
        demo,
        export,
        study,
        doctor,
        bootstrap,
        sync,
        run,
    ):
        command.add(commands)
    return parser


def _main(arguments: Sequence[str]) -> None:
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and not options.takes_settings:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.settings = rest
    options.action(options)


if __name__ == "__main__":
    given = sys.argv[1:]
    sys.exit(main(given) if given and not given[0].startswith("-") else run_recbole(given))
