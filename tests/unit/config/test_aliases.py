"""Upstream's key names, and keys that are refused because nothing reads them."""

from typing import Literal, get_args, get_origin

import pytest

from flame.config import ALIASES, Source, parse
from flame.config.aliases import CORPUS_ALIASES, REFUSED
from flame.config.schema import schema_for
from flame.errors import ConfigError


def sample(kind: object) -> str:
    """Returns text for a value of a type that differs from no value at all."""
    kinds = [part for part in (kind, *get_args(kind)) if part is not type(None)]
    literals = [part for part in kinds if get_origin(part) is Literal]
    if literals:
        return str(get_args(literals[0])[-1])
    return {int: "3", float: "0.25", bool: "true", str: "word"}[next(part for part in kinds if isinstance(part, type))]


def attribute(config: object, name: str) -> object:
    for part in name.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize(("alias", "canonical"), ALIASES.items())
def test_alias_sets_its_canonical_key(alias, canonical, tmp_path):
    text = sample(schema_for().keys[canonical].kind)
    expected = attribute(parse([f"--{canonical}={text}"]), canonical)
    assert attribute(parse([f"--{alias}={text}"]), canonical) == expected

    section, _, key = alias.rpartition(".")
    literal = text if text in ("true", "3", "0.25") else f'"{text}"'
    (tmp_path / "job.toml").write_text(f"[{section}]\n{key} = {literal}\n")
    assert attribute(parse(["--job.config_file", str(tmp_path / "job.toml")]), canonical) == expected


def test_alias_on_the_command_line_wins_over_the_canonical_key_in_the_file(tmp_path):
    (tmp_path / "job.toml").write_text("[training]\nlocal_batch_size = 2\n")
    config = parse(["--job.config_file", str(tmp_path / "job.toml"), "--training.batch_size", "4"])
    assert config.training.local_batch_size == 4


def test_alias_and_canonical_key_must_agree():
    agreeing = ["--training.batch_size", "4", "--training.local_batch_size", "4"]
    assert parse(agreeing).training.local_batch_size == 4
    with pytest.raises(ConfigError, match="names of the same key; keep training.local_batch_size"):
        parse([*agreeing[:3], "5"])


def test_negated_alias_as_upstream_spells_it():
    assert not parse(["--checkpoint.no_initial_load_model_weights_only"]).checkpoint.initial_load_model_only


def test_upstream_names_of_the_model_spec_and_float8_are_translated():
    config = parse(["--model.name", "fla", "--model.converters", "float8"])
    assert (config.model.name, config.model.converters) == ("flame", ["quantize.linear.float8"])


def test_one_upstream_dataset_becomes_one_source():
    arguments = ["--training.dataset", "org/corpus", "--training.dataset_name", "small", "--training.streaming"]
    arguments += ["--training.data_files", "a.parquet,b.parquet"]
    source = Source("org/corpus", name="small", data_files=["a.parquet", "b.parquet"], streaming=True)
    assert parse(arguments).data.sources == [source]


def test_upstream_lists_of_datasets_become_sources(caplog):
    arguments = ["--training.dataset", "a,b", "--training.dataset_name", "x,", "--training.dataset_split", ",valid"]
    arguments += ["--training.data_dir", ",d", "--training.data_files", "f,", "--training.data_probs", "0.3,0.7"]
    assert parse(arguments).data.sources == [
        Source("a", name="x", data_files=["f"], weight=0.3),
        Source("b", split="valid", data_dir="d", weight=0.7),
    ]
    assert "shares of the tokens" in caplog.text


def test_upstream_dataset_keys_merge_over_the_file_one_by_one(tmp_path):
    (tmp_path / "job.toml").write_text('[training]\ndataset = "a"\ndataset_name = "default"\n')
    config = parse(["--job.config_file", str(tmp_path / "job.toml"), "--training.dataset_name", "small"])
    assert config.data.sources == [Source("a", name="small")]
    config = parse(["--job.config_file", str(tmp_path / "job.toml"), "--data.sources", "b"])
    assert config.data.sources == [Source("b")]


def test_upstream_dataset_on_the_command_line_replaces_the_sources_of_the_file(tmp_path):
    (tmp_path / "job.toml").write_text('[[data.sources]]\npath = "a"\nweight = 2.0\n')
    config = parse(["--job.config_file", str(tmp_path / "job.toml"), "--training.dataset", "b"])
    assert config.data.sources == [Source("b")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--training.dataset_name", "x"], "needs training.dataset"),
        (["--training.dataset", "a", "--data.sources", "b"], "keep data.sources"),
        (["--training.dataset", "a,b", "--training.dataset_name", "x"], "has 1 entries, but training.dataset has 2"),
        (["--training.dataset", "a,b", "--training.data_probs", "1,much"], "must be numbers"),
        (["--training.dataset", "a", "--training.streaming", "perhaps"], "must be true or false"),
    ],
)
def test_corpora_that_do_not_fit_together_are_refused(arguments, said):
    with pytest.raises(ConfigError) as error:
        parse(arguments)
    assert said in str(error.value)


@pytest.mark.parametrize("key", sorted(set(REFUSED) - {"job.config_file", "job.use_for_integration_test"}))
def test_key_without_effect_is_refused_with_a_remedy(key):
    with pytest.raises(ConfigError) as error:
        parse([f"--{key}=something"])
    assert f"{key} = 'something' on the command line is not supported: {REFUSED[key].remedy}." == str(error.value)


@pytest.mark.parametrize(
    ("key", "value"), [(key, str(value)) for key, refusal in REFUSED.items() for value in refusal.harmless]
)
def test_value_that_asks_for_nothing_is_accepted(key, value):
    assert parse([f"--{key}={value}"]) == parse([])


@pytest.mark.parametrize("argument", ["--checkpoint.interval_type=steps", "--checkpoint.model_weights_only=false"])
def test_dead_keys_of_upstream_are_accepted_with_a_warning(argument, caplog):
    parse([argument])
    assert argument.partition("=")[0].removeprefix("--") in caplog.text


def test_no_name_means_two_things():
    tables = [set(ALIASES), set(CORPUS_ALIASES), set(REFUSED)]
    assert len(set.union(*tables)) == sum(map(len, tables))
    used = {key.name for key in schema_for().used()}
    assert set(ALIASES.values()) <= used
    assert {f"data.sources.*.{field}" for field in CORPUS_ALIASES.values()} <= used
