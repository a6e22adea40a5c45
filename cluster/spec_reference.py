"""Writes docs/service-yaml.md from the schema: `python -m cluster.spec_reference`."""

from pathlib import Path

from cluster.spec_schema import RequestLimitsSpec, ServiceSpec, ShardOverride
from spec.reference import page

TARGET = Path(__file__).parents[1] / "docs" / "service-yaml.md"

HEAD = """# The service file

<!-- Generated from cluster/spec_schema.py by `make docs`; a test keeps it up to date. -->

One YAML file describes one service; `manta serve FILE` reads it. Every field but `model.path` has a default, so the
smallest file is `model: {path: demo}`; `deploy/service.yaml` is a commented example. An unknown field, a value that is
not allowed and a key given twice are errors that name the field. A field marked **not yet** is refused unless it has
its default: nothing is ignored.
"""


def reference() -> str:
    """The whole page, as Markdown."""
    inner = {"experts.overrides.<expert id>": ShardOverride, "limits.request": RequestLimitsSpec}
    return page(HEAD, ServiceSpec, inner)


def main() -> None:
    """Writes the page."""
    TARGET.write_text(reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
