"""Reading a job: precedence, types, flags, lists of sources, unknown keys."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flame.config import JobConfig, TaskOptions, parse
from flame.errors import ConfigError


def write(folder: Path, text: str) -> list[str]:
    """Writes a job file and returns the arguments that read it."""
    path = folder / "job.toml"
    path.write_text(text)
    return ["--job.config_file", str(path)]


def test_command_line_wins_over_file_and_file_over_defaults(tmp_path):
    job = write(tmp_path, "[training]\nsteps = 5\nseq_len = 64\n")
    config = parse([*job, "--training.steps", "7"])
    assert (config.training.steps, config.training.seq_len) == (7, 64)
    assert config.training.local_batch_size == JobConfig().training.local_batch_size


def test_without_arguments_all_defaults_hold():
    assert parse([]) == JobConfig()


@pytest.mark.parametrize(
    "arguments", [["--training.seq_len", "64"], ["--training.seq_len=64"], ["--training.seq-len", "64"]]
)
def test_every_way_to_write_a_key(arguments):
    assert parse(arguments).training.seq_len == 64


def test_last_of_two_values_wins():
    assert parse(["--training.steps", "1", "--training.steps=2"]).training.steps == 2


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("--data.shuffle", True),
        ("--data.shuffle=true", True),
        ("--data.shuffle=false", False),
        ("--data.no_shuffle", False),
        ("--data.no-shuffle", False),
        ("--no-data.shuffle", False),
    ],
)
def test_every_way_to_write_a_flag(argument, value):
    assert parse([argument]).data.shuffle is value


def test_a_negative_number_is_a_value():
    assert parse(["--checkpoint.load_step", "-1"]).checkpoint.load_step == -1


def test_lists_split_at_commas():
    assert parse(["--checkpoint.exclude_from_loading", "optimizer, dataloader"]).checkpoint.exclude_from_loading == [
        "optimizer",
        "dataloader",
    ]


def test_nested_lists_are_written_as_in_toml():
    parts = parse(["--parallelism.module_fqns_per_model_part", "[['a', 'b'], ['c']]"])
    assert parts.parallelism.module_fqns_per_model_part == [["a", "b"], ["c"]]


def test_none_unsets_an_optional_key():
    assert parse(["--parallelism.context_parallel_load_balancer", "none"]).parallelism == type(JobConfig().parallelism)(
        context_parallel_load_balancer=None
    )


def test_sources_from_the_command_line_replace_those_of_the_file(tmp_path):
    job = write(tmp_path, '[[data.sources]]\npath = "a"\nweight = 3.0\n')
    config = parse([*job, "--data.sources", "b,c", "--data.sources.1.weight", "0.5"])
    assert [(source.path, source.weight) for source in config.data.sources] == [("b", 1.0), ("c", 0.5)]


def test_last_of_two_lists_of_sources_wins():
    config = parse(["--data.sources", "a,b", "--data.sources", "c"])
    assert [source.path for source in config.data.sources] == ["c"]


def test_one_field_of_a_source_in_the_file_can_be_overridden(tmp_path):
    job = write(tmp_path, '[[data.sources]]\npath = "a"\n[[data.sources]]\npath = "b"\n')
    config = parse([*job, "--data.sources.1.weight", "0.5", "--validation.sources", "v"])
    assert [(source.path, source.weight) for source in config.data.sources] == [("a", 1.0), ("b", 0.5)]
    assert [source.path for source in config.validation.sources] == ["v"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--training.lr", "1"], "Did you mean 'optimizer.lr'?"),
        (["--training.stepz", "1"], "Did you mean 'training.steps'?"),
        (["--trainin.steps", "1"], "Did you mean 'training.steps'?"),
        (["--seq_len", "1"], "Did you mean 'training.seq_len'?"),
        (["--training.bach_size", "1"], "Did you mean 'training.local_batch_size'?"),
        (["--data.sources.0.pth", "a"], "Did you mean 'data.sources.N.path'?"),
        (["--data.sources.00.path", "a"], "Did you mean 'data.sources.N.path'?"),
        (["--quixotic"], "flame config list"),
        (["--training.no_steps"], "Unknown key 'training.no_steps'"),
        (["--training", "5"], "write training.KEY"),
        (["steps=5"], "write keys as --section.key value"),
        (["--training.steps"], "--training.steps needs a value"),
        (["--training.steps", "--data.shuffle"], "--training.steps needs a value"),
        (["--job.config_file"], "--job.config_file needs a value"),
        (["--data.no_shuffle=true"], "takes no value"),
        (["--training.steps", "ten"], "must be an integer"),
        (["--training.steps", "10.5"], "must be an integer"),
        (["--training.steps", "9" * 20], "too large"),
        (["--optimizer.lr", "nan"], "must be a number"),
        (["--optimizer.lr", "inf"], "must be a number"),
        (["--data.shuffle", "perhaps"], "must be true or false"),
        (["--optimizer.implementation", "fussed"], "Did you mean 'fused'?"),
        (["--parallelism.module_fqns_per_model_part", "[['a'"], "must be a list of lists of strings or none"),
        (["--data.sources.0.weight", "1"], "data.sources.0 has no path"),
        (["--data.sources.1.path", "a"], "there is no data.sources.0"),
        (["--validation.steps", "0"], "must be at least 1, or -1"),
        (["--job.config_file", "nowhere.toml"], "No such file: 'nowhere.toml'"),
        (["--job.config_file="], "is a folder"),
        (["--task.temperature", "1"], "Unknown key 'task.temperature'"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments, said):
    with pytest.raises(ConfigError) as error:
        parse(arguments)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[training]\nsteps = '5'", "training.steps = '5' in"),
        ("[training]\nsteps = 5.0", "must be an integer"),
        ("[training]\nsteps = true", "must be an integer"),
        ("[training]\nvarlen = 1", "must be true or false"),
        ("[optimizer]\nlr = true", "must be a number"),
        ("[job]\ndump_folder = 5", "must be a string"),
        ("[model]\nconverters = 'float8'", "must be a list of strings"),
        ("[optimizer]\nimplementation = 'quick'", "must be one of 'for-loop', 'foreach', 'fused'"),
        ("training = 5", "must be a table, under [training]"),
        ("[training.steps]\nx = 1", "is a table, but must be an integer"),
        ("[trainning]", "Did you mean 'training'?"),
        ("[training.dataloder]\nx = 1", "Did you mean 'training.dataloader'?"),
        ("steps = 5", "Unknown section or key 'steps'"),
        ("[data]\nsources = ['a']", "must be a list of tables, each under [[data.sources]]"),
        ("[data.sources]\npath = 'a'", "must be a list of tables, each under [[data.sources]]"),
        ("[[data.sources]]\nname = 'a'", "data.sources.0 has no path"),
        ("[[data.sources]]\npath = 'a'\nweigth = 1.0", "Did you mean 'data.sources.N.weight'?"),
        ("[training\nsteps = 5", "at line 1"),
        ("[job]\nconfig_file = 'other.toml'", "a job file cannot name another"),
        ("[parallelism]\ncontext_parallel_load_balancer = ''", "cannot be an empty string"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(tmp_path, text, said):
    with pytest.raises(ConfigError) as error:
        parse(write(tmp_path, text))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_types_of_the_file_are_strict_but_an_integer_is_a_number(tmp_path):
    assert parse(write(tmp_path, "[optimizer]\nlr = 1\n")).optimizer.lr == 1.0


def test_a_file_that_is_not_text_is_one_line(tmp_path):
    (tmp_path / "job.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        parse(["--job.config_file", str(tmp_path / "job.toml")])


@dataclass
class Distillation:
    """Options of an imaginary task."""

    name: str = "distillation"
    temperature: float = 1.0
    teachers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError("temperature must be above 0")


def options_of(name: str, plugin_path: str) -> type:
    if name == "distillation":
        return Distillation
    if name == "causal_lm":
        return TaskOptions
    raise ConfigError(f"task.name '{name}' is unknown.")


def test_task_table_has_the_type_of_the_task(tmp_path):
    job = write(tmp_path, "[task]\nname = 'distillation'\ntemperature = 2.0\n")
    config = parse([*job, "--task.teachers", "a,b"], task_options=options_of)
    assert config.task == Distillation(temperature=2.0, teachers=["a", "b"])


def test_task_is_looked_for_in_the_plugin_folder(tmp_path):
    asked = []

    def remember(name: str, plugin_path: str) -> type:
        asked.append((name, plugin_path))
        return TaskOptions

    job = write(tmp_path, "[task]\nname = 'a'\n[model]\nplugin_path = 'in_file'\n")
    parse(job, task_options=remember)
    parse([*job, "--model.plugin_path", "given"], task_options=remember)
    assert asked == [("a", "in_file"), ("a", "given")]


def test_task_of_the_command_line_chooses_the_options():
    assert parse(["--task.name", "distillation"], task_options=options_of).task == Distillation()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--task.name", "distilation"], "'distilation' is unknown"),
        (["--task.name", "causal_lm", "--task.temperature", "2"], "Unknown key 'task.temperature'"),
        (["--task.name", "distillation", "--task.temprature", "2"], "Did you mean 'task.temperature'?"),
        (["--task.name", "distillation", "--task.temperature", "0"], "[task] temperature must be above 0"),
    ],
)
def test_options_of_another_task_are_refused(arguments, said):
    with pytest.raises(ConfigError) as error:
        parse(arguments, task_options=options_of)
    assert said in str(error.value)
