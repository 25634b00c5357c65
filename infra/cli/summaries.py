"""Human-readable summaries that commands print at the end; the JSON reports have the same figures.

The stages' own summaries are in their packages; these are the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from infra.reindex.status import seconds_between
from searchforge.artifacts.encoder import TFLITE_FILES, EncoderInfo
from searchforge.artifacts.manifest import Manifest, describe_rejects

if TYPE_CHECKING:
    from infra.api import RunReport
    from infra.cli.doctor import Finding
    from infra.demo.demo import DemoReport
    from infra.reindex.journal import Run
    from infra.reindex.status import Lag, Status
    from infra.releases.pruning import PruneResult
    from infra.releases.releases import Release, ReleaseListing
    from serving_check.measurement.search import Hit


def run(report: RunReport) -> str:
    """Returns the figures of the published release, the counts of the corpus and the time that each stage took."""
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in report.seconds.items())
    corpus = Manifest.model_validate(report.reports["embed"]).counts
    return f"{release(report.release)}\n  corpus          {corpus}\n  time            {stages}"


def reindex(done: Run) -> str:
    """Returns the outcome of a re-index and the time that each stage took."""
    stages = ", ".join(f"{entry.stage} {entry.seconds:.0f} s" for entry in done.stages)
    items = f"\n  corpus          {done.items.summary}" if done.items else ""
    if done.state == "published":
        outcome = f"published release {done.release} in channel {done.channel}"
        reason = done.plan.reason if done.plan else ""
    else:
        outcome = f"nothing to publish in channel {done.channel}"
        reason = f"the items that could be embedded match release {done.release}"
        if done.plan and done.plan.mode == "nothing":
            reason = done.plan.reason
    return f"{outcome}: {reason}{items}\n  time            {stages}"


def encoder(info: EncoderInfo) -> str:
    """Returns what an encoder embeds, and the size, speed and origin of its files."""
    license = info.license or "no license stated"
    lines = [f"encoder {info.id}: {' and '.join(info.kinds)}, {info.dim} dimensions, {license}"]
    for kind in info.kinds:
        facts = [info.text_tower if kind == "text" else info.image_tower]
        if size := info.report.get("tflite_bytes", {}).get(TFLITE_FILES[kind]):
            facts.append(f"{size / 1e6:.1f} MB")
        if milliseconds := (info.report.get("agreement", {}).get(kind) or {}).get("ms"):
            facts.append(f"{milliseconds:.1f} ms a query on one thread")
        if kind == "text":
            facts.append(f"{info.sequence_length} tokens" if info.sequence_length else "tokenizer in the model")
        lines.append(f"  {kind:<14}  {', '.join(facts)}")
    if "image" in info.kinds:
        lines.append(f"  preprocessing   {info.preprocessing}")
    return "\n".join(lines)


def release(found: Release) -> str:
    """Returns the channels and figures of a release."""
    figures = found.figures
    live = f" is live in {', '.join(found.channels)}" if found.live else ""
    rejects = f", {describe_rejects(found.rejected)}" if found.rejected else ""
    lines = [f"release {found.id}{live}", f"  items           {figures.get('images', '?')}{rejects}"]
    for name, (label, meaning) in _FIGURES.items():
        if figures.get(name) is not None:
            lines.append(f"  {label:<15} {figures[name]:.4g} {meaning}")
    return "\n".join(lines)


_FIGURES = {
    "recall_at_10": ("recall@10", "of the index, against exact search"),
    "r_at_1": ("R@1", "of held-out captions"),
    "r_at_5": ("R@5", "of held-out captions"),
    "r_at_10": ("R@10", "of held-out captions"),
    "latency_p50_ms": ("latency", "ms per query on one thread (median)"),
    "bytes_per_image": ("size", "bytes per item"),
}
"""Labels and meanings of the figures shown, by name."""


def releases(found: ReleaseListing) -> str:
    """Returns the table of releases and the table of refused publications."""
    lines = []
    if found.releases:
        lines.append(
            f"{'release':<18}{'published':<21}{'items':>9}{'recall@10':>11}{'ms':>8}{'MB':>8}  {'encoder':<18}channels"
        )
    for entry in found.releases:
        live = ", ".join([*entry.channels, *(f"withdrawn from {channel}" for channel in entry.withdrawn)])
        if entry.damaged:
            lines.append(f"{printable(entry.id):<18}{'damaged':<21}{live}\n  {printable(entry.damaged)}")
            continue
        figures = entry.figures
        reason = f"{entry.reason}; {describe_rejects(entry.rejected)}" if entry.rejected else entry.reason
        lines.append(
            f"{entry.id:<18}{entry.created[:19]:<21}{_figure(figures, 'images', 9, 0)}"
            f"{_figure(figures, 'recall_at_10', 11, 3)}{_figure(figures, 'latency_p50_ms', 8, 1)}"
            f"{entry.bytes / 1e6:>8.1f}  {entry.provenance.get('encoder', ''):<18}{live}\n  {printable(reason)}"
        )
    if found.refused:
        lines.append(f"\n{'refused check':<18}{'time':<21}{'channel':<14}reason")
    for refusal in found.refused:
        reason = printable(refusal.reason.partition("\n")[0])
        lines.append(f"{refusal.check:<18}{refusal.time[:19]:<21}{refusal.channel:<14}{reason}")
        lines += [f"  {printable(name)}: {printable(detail)}" for name, detail in refusal.gates.items()]
    return "\n".join(lines) or "no release yet; `searchforge reindex` publishes one"


def pruned(found: PruneResult) -> str:
    """Returns what was deleted and what is kept."""
    verb = "would be deleted" if found.dry_run else "deleted"
    lines = [f"{verb}: release {id}" for id in found.releases]
    lines += [f"{verb}: incomplete release {id}" for id in found.unfinished]
    counts = []
    if releases := len(found.releases) + len(found.unfinished):
        counts.append(f"{_count(releases, 'release')} ({found.bytes / 1e6:.1f} MB)")
    if found.refusals:
        counts.append(_count(found.refusals, "record") + " of refused publications")
    if found.temporary:
        counts.append(_count(found.temporary, "temporary file"))
    lines.append(f"{verb}: {', '.join(counts) or 'nothing'}; kept: {_count(found.kept, 'release')}")
    return "\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def status(found: Status) -> str:
    """Returns the state of re-indexing and the table of the latest runs."""
    lines = [f"re-indexing of {found.workspace}"]

    def line(label: str, text: str) -> None:
        lines.append(f"  {label:<15} {text}")

    for channel, release in found.live.items():
        size = release.damaged or f"{release.figures.get('images', '?')} items, {_ago(release.created, found.time)}"
        line(f"live {channel}", f"{release.id}, {printable(size)}")
    if not found.live:
        line("live", "no release yet")
    if lag := found.lag:
        line("lag", f"{_lag(lag)} ({lag.items} items listed {_ago(lag.listed, found.time)})")
    if found.items:
        line("corpus", found.items.summary)
    if running := found.running:
        where = f"{running.run} on {running.host}"
        if running.died:
            line("died", f"{where} at {running.stage}, {_ago(running.renewed, found.time)}; the next run takes over")
        else:
            line("running", f"{where}, stage {running.stage}, started {_ago(running.since, found.time)}")
    line("next run", _next_run(found))
    if found.failures:
        stopped = "; stopped until `searchforge reindex --resume`" if found.stopped else ""
        line("failures", f"{found.failures} in a row{stopped}")
    if found.runs:
        lines += ["", f"{'run':<35}{'trigger':<10}{'seconds':>8}  state"]
        lines += [_run_line(run, found.state(run)) for run in found.runs]
    return "\n".join(lines)


def _next_run(found: Status) -> str:
    if found.schedule and found.next_run:
        where = f"process {found.schedule.pid} on {found.schedule.host}"
        return f"{_time(found.next_run)}, by the schedule {found.schedule.settings.cron!r} ({where})"
    configured = f"; `searchforge schedule` starts one at {found.configured!r}" if found.configured else ""
    return f"none, since no schedule runs{configured}"


def _lag(lag: Lag) -> str:
    if lag.withheld:
        return f"release {lag.withheld} is up to date but not live"
    counts = [f"{getattr(lag, change)} {change}" for change in ("added", "changed", "removed") if getattr(lag, change)]
    return ", ".join(counts) or "none"


def _run_line(run: Run, state: str) -> str:
    seconds = f"{seconds_between(run.started, run.ended):.0f}" if run.ended else ""
    details = ""
    if state == "failed":
        first, *_ = run.error.splitlines() or [""]
        details = f"{f' at {run.failed_stage}' if run.failed_stage else ''}: {printable(first)}"
    elif state == "died":
        details = f" at {run.stage_in_progress}"
    elif state in ("published", "unchanged"):
        details = f" {run.release or ''}"
    return f"{run.run:<35}{run.trigger:<10}{seconds:>8}  {state}{details}"


def _time(moment: str) -> str:
    """Returns an ISO 8601 time to the minute, with its UTC offset."""
    return f"{moment[:10]} {moment[11:16]}{moment[-6:]}"


def _ago(moment: str, now: str) -> str:
    """Returns the time from `moment` to `now`, rounded down to one unit."""
    seconds = seconds_between(moment, now)
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} seconds ago"


def _figure(figures: Mapping[str, Any], name: str, width: int, digits: int) -> str:
    value = figures.get(name)
    return f"{value:>{width}.{digits}f}" if isinstance(value, (int, float)) else f"{'?':>{width}}"


def hits(found: Sequence[Hit]) -> str:
    """Returns one line per hit, with its text if it has one."""
    lines = []
    for rank, hit in enumerate(found, start=1):
        text = f"  {printable(str(hit.metadata['text']))}" if "text" in hit.metadata else ""
        lines.append(f"{rank:>3}  {hit.score:.3f}  {printable(hit.id)}{text}")
    return "\n".join(lines)


def demo(report: DemoReport) -> str:
    """Returns the demo's queries with their hits, and the summary of its run."""
    lines = []
    for query, expected, found in zip(report.queries, report.expected, report.answers, strict=True):
        lines.append(f"\n{query}")
        for hit in found:
            mark = "  <- expected" if hit.id == expected else ""
            lines.append(f"  {hit.score:.3f}  {printable(hit.id)}{mark}")
    lines.append(f"\n{run(report.run)}\n  contact sheet   {report.contact_sheet}")
    return "\n".join(lines)


def findings(found: Sequence[Finding]) -> str:
    """Returns one line per finding, followed by its advice."""
    marks = {"ok": click.style("ok   ", fg="green"), "note": "note ", "fault": click.style("FAULT", fg="red")}
    return "\n".join(
        f"{marks[finding.status]} {finding.name}: {finding.found}"
        + (f"\n      {finding.advice}" if finding.advice else "")
        for finding in found
    )


def printable(text: str) -> str:
    """Returns `text` with non-printable characters escaped, so that it cannot control a terminal."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
