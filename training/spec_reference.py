"""Writes docs/training-yaml.md from the schema: `python -m training.spec_reference`."""

from pathlib import Path

from spec.reference import page
from training.spec_schema import ConfigSpec, SourceSpec, TrainingSpec

TARGET = Path(__file__).parents[1] / "docs" / "training-yaml.md"

# A test reads the example.
HEAD = """# The training file

<!-- Generated from training/spec_schema.py by `make docs`; a test keeps it up to date. -->

One YAML file describes one training run. What has no default must be given, so this is about the smallest file:

```yaml
storage: runs
model: {path: mixtral}
data:
  sources:
    - path: corpus/*.jsonl
schedule: {steps: 1000, batch: 32}
```

Relative paths start at the file's folder. An unknown field, a value that is not allowed, fields that do not agree and
a key given twice are errors that name the field.
"""


def reference() -> str:
    """The whole page, as Markdown."""
    return page(HEAD, TrainingSpec, {"model.config": ConfigSpec, "data.sources.<number>": SourceSpec})


def main() -> None:
    """Writes the page."""
    TARGET.write_text(reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
