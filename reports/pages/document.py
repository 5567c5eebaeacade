"""One self-contained HTML document: a template, our own scripts, and a policy that names them."""

import base64
import gzip
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2

from dar_probe.reports.draw import plotly

# Together they are the one script besides plotly.js; each uses those before it.
SCRIPTS = (
    "figures.js", "unpack.js", "marks.js", "levels.js", "enlarge.js", "tables.js", "report.js",
)  # fmt: skip


def render(source: str, /, **values: Any) -> str:
    """Return the template ``source`` filled in; it loads nothing, and nothing else runs in it.

    The template gets ``css``, ``plotly_gz``, ``page_js`` and ``policy`` besides ``values``, all
    of which it escapes.
    """
    own, drawing = page_script(), plotly.script()
    return (
        environment()
        .get_template(source)
        .render(
            policy=_policy([own, drawing]),
            css=template("style.css"),
            plotly_gz=_packed(drawing),
            page_js=own,
            **values,
        )
    )


def environment() -> jinja2.Environment:
    """Return the only settings under which a template of ours is filled in: all is escaped."""
    return jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(template),
    )


def page_script() -> str:
    """Return our own script: its files in one scope of their own."""
    parts = [template(name) for name in SCRIPTS]
    return "\n".join(['"use strict";', "(() => {", *parts, "})();"])


def template(name: str) -> str:
    """Return the text of one of our own files."""
    return (files("dar_probe.reports.pages") / "templates" / name).read_text(encoding="utf-8")


@cache
def _packed(script: str) -> str:
    """Return a script by gzip and base64, which ``unpack.js`` undoes."""
    return base64.b64encode(gzip.compress(script.encode("utf-8"), 6, mtime=0)).decode("ascii")


def _policy(scripts: list[str]) -> str:
    """Return a content security policy under which nothing but our own scripts runs."""
    hashes = [
        base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
        for script in scripts
    ]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; font-src data:; base-uri 'none'; form-action 'none'"
    )
