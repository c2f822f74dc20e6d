"""``flame data prepare JOB``: from raw corpora to what training reads."""

import importlib

from flame.config.files import locate
from flame.config.values import describe_type
from flame.data.prepare.job_file import every_key, read_job
from flame.errors import ConfigError, need

_HELP = """usage: flame data prepare JOB.toml [--section.key=value ...] [--restart] [--dry_run]

Reads, cleans, filters, deduplicates, shuffles and writes a corpus as a job file says. Interrupt it when you like: the
same command goes on where it was, and the result is the same.

  --restart  begin anew: remove the state and the result in output.folder
  --dry_run  check the job and its inputs, say what would run, and stop
  --list     print every key with its type and default

docs/prepare.md says more."""
_FLAGS = ("restart", "dry_run", "list", "help")
_PACKAGES = (
    *("datatrove", "ftfy", "inscriptis", "lxml", "lxml_html_clean", "py3langid", "regex", "trafilatura", "warcio"),
)


def main(argv: list[str]) -> int | None:
    """Runs the command.

    Raises:
        FlameError: The job, an input or the output folder is not as it should be.
    """
    plain = {word: word[2:].replace("-", "_") if word.startswith("--") else "" for word in argv}
    flags = {name for name in plain.values() if name in _FLAGS}
    words = [word for word in argv if plain[word] not in _FLAGS]
    if "help" in flags or "-h" in words:
        print(_HELP)
        return 0
    if "list" in flags:
        for name, (kind, default) in every_key().items():
            print(f"{name} = {default!r}  # {describe_type(kind)}")
        return 0
    if not words or words[0].startswith("--"):
        raise ConfigError("flame data prepare needs a job file, such as configs/data/stdlib.toml")
    job = read_job(locate(words[0]), words[1:])
    need("prepare", *_PACKAGES)
    run = importlib.import_module("flame.data.prepare.run")  # it imports the packages, which are optional
    return run.prepare(job, is_restart="restart" in flags, is_dry="dry_run" in flags)
