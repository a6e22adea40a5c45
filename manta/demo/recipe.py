"""Makes the bundled demo model anew: its corpus and tokenizer, then `manta train`, then its model card.

python -m manta.demo.recipe OUT             # writes OUT/corpus.jsonl, OUT/tokenizer and OUT/train.yaml
manta train OUT/train.yaml                  # Ctrl-C and the same command again: it goes on
python -m manta.demo.recipe OUT --finish    # writes OUT/model: the checkpoint, scored, with its card and loss curve
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from manta.demo import card, corpus

FOLDER = Path(__file__).parent
RUN, MODEL, TOKENIZER = "demo", "model", "tokenizer"
MAX_CONTEXT = 4096
# A piece that begins at a definition is a document of its own, beside the whole file: what people ask the model to
# continue begins with a definition more often than with a licence.
LEAST_PIECE = 400


def prepare(out: Path, texts: corpus.Corpus) -> None:
    """Writes what `manta train` reads: documents, tokenizer, training file."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "corpus.jsonl").open("w") as file:
        for text in texts.train.values():
            for document in (text, *pieces(text)):
                file.write(json.dumps({"text": document}) + "\n")
    tokenizer = corpus.train_tokenizer(texts.train.values())
    (out / TOKENIZER).mkdir(exist_ok=True)
    tokenizer.save(str(out / TOKENIZER / "tokenizer.json"), pretty=False)
    config = json.dumps(corpus.tokenizer_config(MAX_CONTEXT), indent=2) + "\n"
    (out / TOKENIZER / "tokenizer_config.json").write_text(config)
    shutil.copyfile(FOLDER / "train.yaml", out / "train.yaml")


def pieces(text: str) -> Iterator[str]:
    """Yields a source file's parts from one top-level definition on, each at least LEAST_PIECE characters long.

    >>> [len(piece) for piece in pieces("import os" + 30 * "\\n\\ndef f(x):\\n    return os.path.join(x, x)")]
    [410, 410, 408]
    """
    lines = text.splitlines(keepends=True)
    begins = [number for number, line in enumerate(lines) if line.startswith(("def ", "class ", "@", "async def "))]
    piece = ""
    for begin, end in zip(begins, [*begins[1:], len(lines)], strict=False):
        piece += "".join(lines[begin:end])
        if len(piece) >= LEAST_PIECE and not lines[end - 1].startswith("@"):  # a decorator belongs to what follows
            yield piece
            piece = ""


def finish(out: Path, texts: corpus.Corpus) -> None:
    """Exports the trained model, scores it on the held-out files and writes its card."""
    from training.export import export, find_checkpoint

    found = find_checkpoint(out / RUN, None)
    shutil.rmtree(out / MODEL, ignore_errors=True)
    export(found, out / MODEL, "bfloat16", out / TOKENIZER)
    card.write_card(out / MODEL, out / RUN, texts)


def main() -> None:
    """Parses the command line and runs it."""
    parser = argparse.ArgumentParser(prog="python -m manta.demo.recipe", description="Make the demo model anew.")
    parser.add_argument("out", type=Path, help="folder for all of it; made if missing")
    parser.add_argument("--finish", action="store_true", help="after `manta train`: export, score, write the card")
    arguments = parser.parse_args()
    texts = corpus.read_corpus()
    if arguments.finish:
        finish(arguments.out, texts)
        print(f"wrote {arguments.out / MODEL}")
        return
    prepare(arguments.out, texts)
    print(f"{len(texts.train)} files, {len(texts.held_out)} held out. Now: manta train {arguments.out / 'train.yaml'}")


if __name__ == "__main__":
    main()
