"""``rlcore report``: one page that shows a run, or compares several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlcore.train.arguments import Job, read
from rlcore.train.commands.common import check_file, output_elsewhere


@dataclass(frozen=True, kw_only=True)
class ReportArguments:
    """Write one page that shows a run, or compares several: rlcore report RUN [RUN ...].

    It is one file that needs no network. Runs that differ in their seed alone are taken together. Nothing in a run
    folder is executed, and no simulator is needed.
    """

    runs: tuple[Path, ...] = ()
    """Run folders; --runs may be left out."""
    output: Path | None = None
    """The page. None: report.html in the folder of one run; comparison.html here for several."""


def report_command(words: Sequence[str]) -> Job:
    """Write the page that the words of ``rlcore report`` ask for."""
    words = list(words)
    if words and (not words[0].startswith("-") and ("=" not in words[0] or Path(words[0]).exists())):
        words = ["--runs", *words]
    given = read(words, ReportArguments, "rlcore report")
    if given is None:
        return lambda: 0
    args, _ = given
    if not args.runs:
        raise ValueError("the run is missing; write rlcore report RUN, or several to compare them")
    check_file("--output", args.output, "report.html")

    from rlcore.train.reports.comparison import write_comparison
    from rlcore.train.reports.page import REPORT_FILE, write_run_report
    from rlcore.train.run import RunFolder

    runs = list(dict.fromkeys(RunFolder.open(path).path for path in args.runs))
    several = len(runs) > 1
    output = args.output or (Path("comparison.html") if several else runs[0] / REPORT_FILE)

    def job() -> int:
        with output_elsewhere(args.output, output):
            path = write_comparison(runs, output) if several else write_run_report(runs[0], output)
        print(f"written to {path}")
        return 0

    return job
