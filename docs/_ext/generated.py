"""The directive ``{generated} NAME``: a table made from the code while the site is built."""

from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

import architecture
import catalogue
import commands
import compatibility_table
import tables

MAKERS = {
    "compatibility": compatibility_table.compatibility,
    "commands": commands.reference,
    "errors": catalogue.reference,
    "exit-codes": tables.exit_codes,
    "layers": architecture.layers,
    "schemes": tables.schemes,
    "settings": tables.settings,
    "thresholds": tables.thresholds,
    "variables": tables.variables,
}


class Generated(SphinxDirective):
    """Parses the Markdown that the maker of this name returns."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return its nodes."""
        found: list[nodes.Node] = self.parse_text_to_nodes(
            MAKERS[self.arguments[0]](), allow_section_headings=True
        )
        return found


def setup(app: Any) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("generated", Generated)
    return {"parallel_read_safe": True}
