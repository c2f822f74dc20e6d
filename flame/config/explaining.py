"""The documentation of every key, read off the strings under the fields of the section classes."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from itertools import groupby

from flame.config.aliases import ALIASES, CORPUS_ALIASES, REFUSED, UNUSED_SECTIONS
from flame.config.bounds import BOUNDS
from flame.config.schema import REQUIRED, Key, Schema, display, pattern, schema_for
from flame.config.sections import TaskOptions
from flame.config.values import describe_type

_WIDTH = 100


def explain(key: str, task: type = TaskOptions) -> str:
    """Documents a key, an alias or a section: what it does, type, range, default, other names.

    Args:
        key: Dotted name; dashes and leading dashes are allowed, as on the command line.
        task: Class of the ``[task]`` table.

    Raises:
        ConfigError: There is no such key; the message names the closest.
    """
    schema = schema_for(task)
    name = re.sub(r"\.N(?=\.|$)", ".*", key.strip().lstrip("-").replace("-", "_"))
    if name in REFUSED and name not in {used.name for used in schema.used()}:
        return f"{name} is not used by flame: {REFUSED[name].remedy}."
    if name in CORPUS_ALIASES:
        name = f"data.sources.*.{CORPUS_ALIASES[name]}"
    canonical = ALIASES.get(name, pattern(name))
    canonical = f"{canonical}.*" if schema.is_table_list(canonical) else canonical
    if canonical in schema.keys:
        return _explain_key(schema.keys[canonical])
    if canonical in schema.sections and canonical and canonical not in UNUSED_SECTIONS:
        return _explain_section(canonical, schema)
    if canonical in UNUSED_SECTIONS:
        return f"{canonical} is not used by flame."
    raise schema.unknown(name, "given to explain")


def help_text(task: type = TaskOptions) -> str:
    """Lists every key by section, with type, default, the first sentence of its documentation and its aliases."""
    schema = schema_for(task)
    parts = [
        "usage: flame train [--job.config_file JOB.toml] [--SECTION.KEY VALUE ...]",
        "\nKeys of the job file can be overridden on the command line, as --section.key value or --section.key=value;"
        "\nflags alone mean true, and --section.no_key means false. `flame config explain KEY` says more about one.",
    ]
    for section, keys in _by_section(schema):
        parts.append(f"\n{_heading(section, schema)}")
        parts += [_entry(key) for key in keys]
    return "\n".join(parts)


def list_keys(task: type = TaskOptions) -> str:
    """Lists every key with its default, one per line, as a job file would set it."""
    lines = (f"{display(key.name)} = {_default(key)}" for _, keys in _by_section(schema_for(task)) for key in keys)
    return "\n".join(lines)


def documentation(key: Key) -> str:
    """Returns the documentation of a key in one paragraph, from the class that last wrote it."""
    for owner in key.section.__mro__:
        if text := _field_docs(owner).get(key.field):
            return " ".join(text.split())
    return ""


def _by_section(schema: Schema) -> Iterator[tuple[str, list[Key]]]:
    """Groups the keys by section; a section inside another comes after the other's own keys."""
    order = {section: index for index, section in enumerate(schema.sections)}
    keys = sorted(schema.used(), key=lambda key: order[_section_name(key)])
    for section, group in groupby(keys, key=_section_name):
        yield section, list(group)


def _section_name(key: Key) -> str:
    return key.name.rpartition(".")[0]


def _explain_key(key: Key) -> str:
    facts = [f"type: {describe_type(key.kind)}", f"default: {_default(key)}"]
    if key.name in BOUNDS:
        facts.append(f"range: {BOUNDS[key.name]}")
    if aliases := _aliases(key):
        facts.append(f"also: {', '.join(aliases)}")
    return "\n".join([display(key.name), *_wrap(documentation(key), "  "), *(f"  {fact}" for fact in facts)])


def _explain_section(section: str, schema: Schema) -> str:
    keys = [key for _, group in _by_section(schema) for key in group if key.name.startswith(f"{section}.")]
    return "\n".join([_heading(section, schema), *map(_entry, keys)])


def _entry(key: Key) -> str:
    """A key as help lists it: two lines or more."""
    text = documentation(key)
    first = text.partition(". ")[0].rstrip(".") + "."
    if aliases := _aliases(key):
        first += f" Also: {', '.join(aliases)}."
    return "\n".join(
        [f"  --{display(key.name)}  ({describe_type(key.kind)}; {_default(key)})", *_wrap(first, "      ")]
    )


def _aliases(key: Key) -> list[str]:
    names = ALIASES | {alias: f"data.sources.*.{field}" for alias, field in CORPUS_ALIASES.items()}
    return [alias for alias, canonical in names.items() if canonical == key.name]


def _default(key: Key) -> str:
    if key.default is REQUIRED:
        return "required"
    if isinstance(key.default, bool):
        return str(key.default).lower()
    return "none" if key.default is None else repr(key.default)


def _heading(section: str, schema: Schema) -> str:
    """Writes a section as a job file does, followed by what it is for."""
    owner = schema.sections[section]
    doc = (inspect.getdoc(owner) or "").partition("\n")[0]
    if doc.startswith(f"{owner.__name__}("):  # a dataclass without documentation gets its signature for one
        doc = ""
    name = f"[[{section.removesuffix('.*')}]]" if section.endswith(".*") else f"[{section}]"
    return f"{name}  {doc}".rstrip()


def _wrap(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)


@cache
def _field_docs(owner: type) -> dict[str, str]:
    """Returns the string literal that follows each field in the source of a dataclass, its bases left out."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    except (OSError, TypeError):  # a class without source: built in, or made at run time
        return {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    docs = {}
    for statement, following in zip(body, body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            value = following.value if isinstance(following, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                docs[statement.target.id] = value.value
    return docs
