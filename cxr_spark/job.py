"""What all jobs share: options, run record, summary line, closing words, exit code, signals.

A job prints words and progress to stderr and one JSON object as the last line of stdout, on
failure too. Its exit code says how it ended: see `EXIT_CODES`.
"""

import argparse
import contextlib
import json
import math
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Any, NoReturn

import cxr_spark
from cxr_spark import operator_metrics, storage
from cxr_spark.run import LOG_LEVEL, Busy, InputError, Run, Stopped
from cxr_spark.tables import Warehouse

EXIT_CODES = {
    "finished": 0,
    "stopped": 0,  # by SIGTERM or --max-runtime, at a safe point
    "failed": 1,
    "invalid": 2,  # bad arguments or input; nothing changed
    "refused": 3,  # by the audit; nothing published
    "drift": 4,  # everything committed
    "busy": 5,  # another run holds the lock
}
UNRECORDED = {"invalid", "busy"}
VOICE = {"quiet", "verbose"}  # options that change nothing but what is said
OF_SPARK = {"py4j", "pyspark"}
EPILOG = """Exit codes: 0 finished, or stopped by SIGTERM or --max-runtime, 1 failed, 2 bad input,
3 the audit refused, 4 drift, 5 busy. The last line of stdout is the summary as one JSON
object."""


def parser(job: str, description: str, examples: str = "") -> argparse.ArgumentParser:
    """A parser whose errors end like every other failure: one clear line, the summary, exit 2."""
    options = _Parser(
        prog=f"{job}.py",
        description=description,
        epilog=f"{examples}\n\n{EPILOG}".strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    voice = options.add_mutually_exclusive_group()
    voice.add_argument("--quiet", action="store_true", help="no words, only what goes wrong")
    voice.add_argument("--verbose", action="store_true", help="also Spark's own log, on stderr")
    return options


def add_max_runtime(options: argparse._ActionsContainer, words: str) -> None:
    """Add `--max-runtime` to a job that has safe points, or that fits itself into the time."""
    options.add_argument("--max-runtime", type=_seconds, metavar="SECONDS", help=words)


def add_metrics_file(options: argparse._ActionsContainer) -> None:
    """Add `--metrics-file` to a job that a scheduler runs."""
    options.add_argument(
        "--metrics-file",
        metavar="FILE.prom",
        help="also gauges there, for Prometheus' node_exporter",
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def start(
    job: str,
    options_parser: argparse.ArgumentParser,
    main: Callable[[argparse.Namespace, Run], None],
    *,
    records: bool = True,
    prints_result: bool = False,
) -> NoReturn:
    """Run a job to its end and leave the process with its exit code.

    Args:
        job: its name, as in the summary and in runs.
        options_parser: made by `parser`.
        main: the job itself; what it raises decides the status.
        records: leave a row in the runs table of `--warehouse`.
        prints_result: main writes its result to stdout, and success adds no summary to it.
    """
    run = Run(job)
    signal.signal(signal.SIGTERM, partial(_stop, run))
    options, error = argparse.Namespace(), ""
    metrics_file: Path | None = None
    try:
        options = options_parser.parse_args()
        if getattr(options, "metrics_file", None):
            metrics_file = operator_metrics.target(options.metrics_file)
        run.max_runtime = getattr(options, "max_runtime", None)
        run.quiet = options.quiet
        if options.verbose:
            os.environ[LOG_LEVEL] = "info"
    except (InputError, operator_metrics.MetricsFileError, Stopped, KeyboardInterrupt) as raised:
        run.status, error = _outcome(raised)
    with _summary_stream(prints_result) as summary_stream:
        try:
            try:
                if run.status == "finished":
                    _require_folder(options, records=records)
                    main(options, run)
            finally:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # how it ended is told whatever comes
        except (Exception, Stopped, KeyboardInterrupt) as raised:
            run.clear_line()
            run.status, error = _outcome(raised, has_sigterm=run.has_sigterm)
        finished_at = datetime.now(UTC)
        if records and run.status not in UNRECORDED:
            run.status, error = record(run, options, error, finished_at)
        run.release()
        if metrics_file is not None:
            _write_metrics(metrics_file, run, finished_at)
        if not prints_result and run.status in ("finished", "drift", "stopped"):
            if records and run.status == "stopped":
                run.next_steps = [_again(options)]
            _tell_results(run, finished_at)
        if not (prints_result and run.status == "finished"):
            summary = _summary(run, error, finished_at)
            print(json.dumps(summary, default=str), file=summary_stream, flush=True)
    sys.exit(EXIT_CODES[run.status])


def _require_folder(options: argparse.Namespace, *, records: bool) -> None:
    if records and storage.is_remote(str(options.warehouse)):
        raise InputError(
            f"{options.warehouse}: jobs that write need a folder, as an object store has no locks; "
            "mount the store, or give a folder and copy it there"
        )


def _write_metrics(place: Path, run: Run, finished_at: datetime) -> None:
    """Leave the gauges; a full disk is no reason to call the run a failure."""
    try:
        operator_metrics.write(place, run, EXIT_CODES, finished_at)
    except OSError as error:
        print(f"{place}: can't be written: {error.strerror}", file=sys.stderr, flush=True)


def _again(options: argparse.Namespace) -> str:
    """The command that goes on from where a run was stopped."""
    resumes = [] if getattr(options, "resume", True) else ["--resume"]
    return shlex.join([*sys.argv, *resumes])


def _tell_results(run: Run, finished_at: datetime) -> None:
    """What a person wants to know at the end: where things are, and what to run next."""
    run.say(f"{run.status} in {(finished_at - run.started_at).total_seconds():.0f} s")
    rows = [(name, value) for name, value in run.outputs.items() if isinstance(value, str | float)]
    rows += [("next", command) for command in run.next_steps]
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        run.say(f"  {name:{width}}  {value if isinstance(value, str) else format(value, '.4g')}")


def _stop(run: Run, signum: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    run.sigterm()


@contextlib.contextmanager
def _summary_stream(prints_result: bool) -> Iterator[IO[str]]:
    """The real stdout; what libraries and the JVM print there meanwhile goes to stderr."""
    if prints_result:
        yield sys.stdout
        return
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as real:
        os.dup2(2, 1)
        yield real


def _outcome(raised: BaseException, *, has_sigterm: bool = False) -> tuple[str, str]:
    """Status and message of what main raised; a bug's traceback goes to stderr."""
    ours = type(raised).__module__.split(".")[0] in ("cxr_spark", "__main__")
    if isinstance(raised, Stopped):
        status = "stopped"
    elif isinstance(raised, Busy):
        status = "busy"
    elif ours and hasattr(raised, "status"):
        status = raised.status
    elif ours and isinstance(raised, ValueError):
        status = "invalid"
    elif has_sigterm and _is_loss_of_spark(raised):
        status = "stopped"  # the SIGTERM was for the whole process group, the JVM among it
    else:
        status = "failed"
    message = str(raised) or type(raised).__name__
    if not ours and not isinstance(raised, KeyboardInterrupt):
        traceback.print_exception(raised, file=sys.stderr)
        message = f"{type(raised).__name__}: {message}"
    print(f"{status}: {message}", file=sys.stderr, flush=True)
    return status, message


def _is_loss_of_spark(raised: BaseException | None) -> bool:
    """Whether it comes, at whatever remove, from a JVM or a worker of it that went away."""
    while raised is not None:
        is_of_spark = type(raised).__module__.split(".")[0] in OF_SPARK
        if is_of_spark or isinstance(raised, ConnectionError | EOFError):
            return True
        raised = raised.__cause__ or raised.__context__
    return False


def record(
    run: Run, options: argparse.Namespace, error: str, finished_at: datetime
) -> tuple[str, str]:
    """Commit the runs row, the last commit of a run; status and message afterwards."""
    row = {
        "run_id": run.run_id,
        "job": run.job,
        "arguments": {
            name: str(value)
            for name, value in vars(options).items()
            if value is not None and name not in VOICE
        }
        | run.resolved,
        "status": run.status,
        "exit_code": EXIT_CODES[run.status],
        "started_at": run.started_at,
        "finished_at": finished_at,
        "counts": {name: float(value) for name, value in run.counts.items()},
        "versions_read": run.versions_read,
        "versions_written": run.versions_written if run.status in ("finished", "drift") else {},
        "error": error or None,
        "package_version": cxr_spark.__version__,
    }
    try:
        warehouse = Warehouse(options.warehouse)
        row["finished_at"] = warehouse.end_of(run.job, run.status, finished_at)
        if row["finished_at"] != finished_at:
            run.say(
                "this machine's clock is behind that of the last published run: recorded as "
                f"finished at {row['finished_at']}, so that readers see what this run published"
            )
        warehouse.append_rows("runs", [row], sequence=0)
    except (Exception, Stopped) as raised:
        return _outcome(raised) if run.status == "finished" else (run.status, error)
    return run.status, error


def _summary(run: Run, error: str, finished_at: datetime) -> dict[str, Any]:
    summary = {
        "job": run.job,
        "run_id": run.run_id,
        "status": run.status,
        "exit_code": EXIT_CODES[run.status],
        "seconds": round((finished_at - run.started_at).total_seconds(), 3),
        "counts": run.counts,
        "versions": run.versions_read | run.versions_written,
        "outputs": run.outputs,
        **run.extra,
    }
    return summary | {"error": error} if error else summary
