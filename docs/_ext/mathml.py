"""Formulas as MathML, converted while building: pages need no script and no network to show them."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

log = logging.getLogger(__name__)


# The converter's gaps: fixed sizes (fences grow by themselves in MathML), and accents under an index.
BEFORE = [
    (r"\\[bB]igg?(?=[(\[])", r"\\left"),
    (r"\\[bB]igg?(?=[)\]])", r"\\right"),
    (r"\\(bar|hat|tilde)\s*([A-Za-z])", r"{\\\1{\2}}"),
]
# A thin space after a function's name unless a fence follows, and a bar as wide as what it covers.
AFTER = [
    (r"<mo>&ApplyFunction;</mo>(?!\s*<mo[^>]*>[(\[|])", '<mspace width="0.17em"></mspace>'),
    (r'<mo accent="true">_</mo>', '<mo stretchy="true">\u203e</mo>'),
]


def convert(node: nodes.Element, *, block: bool) -> str:
    """MathML of a node's TeX; a formula that cannot be converted is a warning, and a build with -W fails."""
    text = " ".join(node.astext().split())
    tex = text
    for pattern, replacement in BEFORE:
        tex = re.sub(pattern, replacement, tex)
    try:
        mathml = latex2mathml.tex2mathml(tex, as_block=block)
    except MathError as error:
        log.warning("formula %r: %s", text, error, location=node)
        return f"<code>{text}</code>"
    for pattern, replacement in AFTER:
        mathml = re.sub(pattern, replacement, mathml)
    return mathml


def inline(translator: Any, node: nodes.math) -> None:
    """``$...$``."""
    translator.body.append(convert(node, block=False))
    raise nodes.SkipNode


def block(translator: Any, node: nodes.math_block) -> None:
    """``$$...$$``, centered by the page's style."""
    translator.body.append(f'<div class="math-block">{convert(node, block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer; conf.py chooses it with ``html_math_renderer``."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
