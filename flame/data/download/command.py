"""``flame data download NAME``: fetches a public corpus, to be continued after any interruption."""

import dataclasses
import sys
from pathlib import Path

from flame.data.download.folder import Folder, identity
from flame.data.download.listing import Listing, list_files
from flame.data.download.places import check_places
from flame.data.download.registry import OWN_REGISTRY, Corpus, find_corpus, load_registry
from flame.data.download.run import Outcome, download, raise_failures
from flame.data.download.selection import choose, parse_shards, parse_size
from flame.data.download.transfer import Link
from flame.errors import ConfigError, closest
from flame.utils.arguments import Arguments

_EPILOGUE = f"""
A run that was interrupted goes on when the same command is given again.
The registry is {OWN_REGISTRY}; its head explains how to write another.
"""


def main(argv: list[str]) -> int:
    """Runs ``flame data download``.

    Raises:
        ConfigError: The arguments or the registry are wrong.
        DataError: Something cannot be fetched or written.
    """
    options = _parser().parse_args(argv)
    registry = load_registry(options.registry)
    if not options.name:
        if not options.list:
            raise ConfigError("name a corpus; `flame data download --list` shows all")
        print(_registry_table(registry))
        return 0
    corpus = _with_subset(find_corpus(registry, options.name), options.subset)
    splits = _splits(corpus, options.split)
    if options.workers < 1:
        raise ConfigError(f"--workers {options.workers} must be at least 1")
    shards = parse_shards(options.shards) if options.shards else None
    max_bytes = parse_size(options.max_bytes) if options.max_bytes else None
    listing = list_files(corpus, splits)
    files = [
        file
        for split in splits
        for file in choose([file for file in listing.files if file.split == split], shards, max_bytes)
    ]
    if options.list:
        print(_file_table(Listing(listing.revision, files)))
        return 0
    check_places(corpus, files)
    out = Path(options.out or _default_folder(corpus)).expanduser()
    folder = Folder(out, identity(corpus.name, corpus.subset, corpus.settings))
    try:
        outcome = download(corpus, files, folder, listing.revision, workers=options.workers, link=Link())
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise
    finally:
        folder.close()
    print(_summary(corpus, outcome, out))
    raise_failures(outcome, out)
    return 0


def _parser() -> Arguments:
    parser = Arguments("flame data download", "Fetches a public corpus as parquet to train on.")
    parser.epilog = _EPILOGUE
    parser.add_argument("name", nargs="?", help="corpus of the registry")
    parser.add_argument(
        "--list", action="store_true", help="show the registry, or the files of NAME, and fetch nothing"
    )
    parser.add_argument("--subset", default="", help="part of the corpus, where the registry says that it has parts")
    parser.add_argument("--split", default="train", help="train, validation, ...; several with commas (train)")
    parser.add_argument("--shards", default="", help="files of each split: the first N, or A-B, counted from 0")
    parser.add_argument(
        "--max_bytes", default="", help="files of each split, in order, up to this size as fetched: 10GB"
    )
    parser.add_argument("--out", default="", help="folder (data/NAME)")
    parser.add_argument("--workers", type=int, default=4, help="files at once (4)")
    parser.add_argument("--registry", default="", help="TOML file with corpora of your own")
    return parser


def _with_subset(corpus: Corpus, subset: str) -> Corpus:
    if not subset:
        return corpus
    if not corpus.subset:
        raise ConfigError(f"--subset '{subset}': corpus '{corpus.name}' has no subsets")
    return dataclasses.replace(corpus, subset=subset)


def _splits(corpus: Corpus, text: str) -> list[str]:
    splits = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for split in splits:
        if split not in corpus.splits:
            known = ", ".join(corpus.splits)
            raise ConfigError(f"--split '{split}': '{corpus.name}' has {known}.{closest(split, corpus.splits)}")
    if not splits:
        raise ConfigError("--split is empty")
    return splits


def _default_folder(corpus: Corpus) -> str:
    return "/".join(["data", corpus.name, *([corpus.subset.replace("/", "-")] if corpus.subset else [])])


def _registry_table(registry: dict[str, Corpus]) -> str:
    width = max(map(len, registry))
    lines = []
    for name, corpus in registry.items():
        lines.append(f"{name:<{width}}  {corpus.title or corpus.home or corpus.repo}")
        about = [
            ", ".join(corpus.splits),
            f"subset {corpus.subset}" if corpus.subset else "",
            corpus.license,
            corpus.home,
        ]
        lines.append(f"{'':<{width}}  {'; '.join(part for part in about if part)}")
    return "\n".join(lines)


def _file_table(listing: Listing) -> str:
    lines = [f"{_readable(file.size):>10}  {file.split}  {file.path}" for file in listing.files]
    known = [file.size for file in listing.files if file.size is not None]
    return "\n".join([*lines, f"{_readable(sum(known)) if known else '?':>10}  in {len(listing.files)} files"])


def _summary(corpus: Corpus, outcome: Outcome, out: Path) -> str:
    records = [*outcome.fetched, *outcome.present]
    size = sum(record["bytes"] for record in outcome.fetched)
    documents = sum(record.get("documents", 0) for record in records)
    skipped = sum(sum(record.get("skipped", {}).values()) for record in records)
    unpacked = sum("files" in record for record in records)
    lines = [
        f"{corpus.name}: {len(outcome.fetched)} files ({_readable(size)}) fetched, {len(outcome.present)} were there",
        *([f"{documents:,} documents in {out}"] if documents else []),
        *([f"{unpacked} archives unpacked in {out}"] if unpacked else []),
        *([f"{skipped:,} records left out, see {out / 'manifest.json'}"] if skipped else []),
    ]
    if documents:
        for split in dict.fromkeys(record["split"] for record in records):
            lines.append(f'\n[[data.sources]]  # {split}\npath = "{out / split}"')
    return "\n".join(lines)


def _readable(size: int | None) -> str:
    if size is None:
        return "?"
    number = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:,.2f} TB"
