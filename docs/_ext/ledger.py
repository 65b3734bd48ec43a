"""Sphinx directives that print what was measured, and the table of all parts.

- ``{ledger} <slug>``: the experiment of ``docs/results/<slug>.json``; ``:columns:`` chooses quantities,
  ``:table:`` leaves only the table.
- ``{ledgers}``: all of them, one section each. ``{benchmarks}``: all of ``benchmarks/results``, likewise.
- ``{parts}``: the registry of :mod:`infotorch.losses`.

A file that does not exist is said to be missing and fails nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import records
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

KINDS = {
    "reward": "Reward shaping",
    "advantage": "Advantages",
    "policy": "Policy losses",
    "regularizer": "Regularizers",
}


class Base(SphinxDirective):
    """What all directives need: folders, and sections made of Markdown."""

    @property
    def results(self) -> Path:
        return Path(self.env.srcdir) / "results"

    @property
    def measurements(self) -> Path:
        return Path(self.env.srcdir).parent / "benchmarks" / "results"

    def record(self, path: Path) -> records.Record | None:
        self.env.note_dependency(str(path))
        return records.load(path)

    def picture(self, slug: str) -> list[nodes.Node]:
        """``results/<slug>.png``, if the experiment drew one."""
        path = self.results / f"{slug}.png"
        self.env.note_dependency(str(path))
        if not path.exists():
            return []
        return self.parse_text_to_nodes(f"```{{image}} /results/{slug}.png\n:alt: {slug}\n:class: picture\n```")

    def section(self, title: str, text: str) -> nodes.section:
        section = nodes.section(ids=[nodes.make_id(title)], names=[nodes.fully_normalize_name(title)])
        section += nodes.title("", title)
        section += self.parse_text_to_nodes(text)
        return section


class Ledger(Base):
    """One experiment."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {"columns": directives.unchanged, "table": directives.flag}

    def run(self) -> list[nodes.Node]:
        slug = self.arguments[0]
        columns = re.split(r"[,\s]+", self.options["columns"].strip()) if self.options.get("columns") else []
        record = self.record(self.results / f"{slug}.json")
        facts = "table" not in self.options
        return self.parse_text_to_nodes(records.experiment(slug, record, columns, facts=facts)) + (
            self.picture(slug) if facts else []
        )


class Ledgers(Base):
    """All experiments."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()  # a new file is no dependency yet
        paths = sorted(self.results.glob("*.json"))
        if not paths:
            return self.parse_text_to_nodes("No result is recorded yet.")
        found = []
        for path in paths:
            section = self.section(path.stem, records.experiment(path.stem, self.record(path)))
            section += self.picture(path.stem)
            found.append(section)
        return found


class Benchmarks(Base):
    """All measurements."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        paths = sorted(self.measurements.glob("*.json"))
        if not paths:
            return self.parse_text_to_nodes("No measurement is recorded yet.")
        return [self.section(p.stem, records.benchmark(self.record(p) or {})) for p in paths]


class Parts(Base):
    """The registry, one table a kind."""

    def run(self) -> list[nodes.Node]:
        from infotorch import losses

        texts = []
        for kind, title in KINDS.items():
            rows = []
            for part in losses.part_table([kind]):
                info = losses.info(part["name"])
                target = f"infotorch.losses.{info.function.__name__}"
                needs = ", ".join(f"`{name}`" for name in info.requires)
                rows.append([f"{{py:obj}}`{part['name']} <{target}>`", needs, _markdown(part["summary"])])
            table = records.grid(["name", "reads", "what it does"], rows).replace("--:", "---")
            texts.append(f"**{title}**\n\n{table}")
        return self.parse_text_to_nodes("\n\n".join(texts))


def _markdown(text: str) -> str:
    """A docstring's first line (reStructuredText) for a Markdown table."""
    text = re.sub(r":(?:class|func|meth):`~?([^`]+)`", r"`\1`", text)
    return records.escape(text.replace("``", "`"))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    for name, directive in {
        "ledger": Ledger,
        "ledgers": Ledgers,
        "benchmarks": Benchmarks,
        "parts": Parts,
    }.items():
        app.add_directive(name, directive)
    return {"version": "1", "parallel_read_safe": True}
