import pytest

from flame.errors import ConfigError
from flame.utils.arguments import Arguments


@pytest.fixture
def parser() -> Arguments:
    made = Arguments("flame verb", "What it does.")
    made.add_argument("--max_new_tokens", type=int, required=True)
    made.add_argument("--text", default="")
    return made


@pytest.mark.parametrize(
    "words", [["--max_new_tokens", "3"], ["--max-new-tokens", "3"], ["--max-new-tokens=3"], ["--max_new-tokens=3"]]
)
def test_dashes_and_underscores_mean_the_same(parser: Arguments, words: list[str]) -> None:
    assert parser.parse_args(words).max_new_tokens == 3


def test_values_keep_their_dashes(parser: Arguments) -> None:
    assert parser.parse_args(["--max-new-tokens=3", "--text=a-b--c_d"]).text == "a-b--c_d"
    assert parser.parse_args(["--max-new-tokens", "3", "--text", "a-b"]).text == "a-b"


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "--max_new_tokens"),
        (["--max_new_tokens", "x"], "invalid int value: 'x'"),
        (["--max_new_tokens", "3", "--other", "1"], "--other"),
    ],
)
def test_a_mistake_is_one_error_that_names_the_help(parser: Arguments, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parser.parse_args(words)
    assert said in str(caught.value) and "`flame verb --help`" in str(caught.value)
    assert "\n" not in str(caught.value)
