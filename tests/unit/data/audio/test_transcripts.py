"""Transcripts in one manner of writing."""

import pytest

from flame.data.audio.normalise_text import ALPHABETS, characters, check_language, normalise_transcript
from flame.errors import ConfigError


@pytest.mark.parametrize(
    "text, language, expected",
    [
        ("7", "en", "seven"),
        ("Hello,   World!\n", "en", "hello world"),
        ("It’s 'quoted' rock 'n' roll, o'clock'", "en", "it's quoted rock n roll o'clock"),
        ("well-known e-mail; U.S.", "en", "well known e mail u s"),
        ("21 cats, the 3rd", "en", "twenty one cats the third"),
        ("1,234.5 of 50%", "en", "one thousand two hundred and thirty four point five of fifty percent"),
        ("007, 1.2.3", "en", "zero zero seven one two three"),
        ("9" * 30, "en", " ".join(["nine"] * 30)),
        ("0.12345678", "en", "zero one two three four five six seven eight"),
        ("Straße 1.234,5", "de", "straße eintausendzweihundertvierunddreißig komma fünf"),
        ("L'été, 71 ans", "fr", "l'été soixante et onze ans"),
        ("IĞDIR İzmir", "tr", "ığdır izmir"),
        ("ＡＢＣ ﬁn", "en", "abc fin"),
        ("e\u0301te\u0301", "fr", "été"),
        ("привет, Мир", "ru", "привет мир"),
        ("col·lecció", "ca", "col·lecció"),
        ("!?…", "en", ""),
        ("", "en", ""),
    ],
)
def test_a_transcript_is_normalised(text, language, expected):
    normal = normalise_transcript(text, language)
    assert normal == expected
    assert normalise_transcript(normal, language) == normal


def test_every_policy_may_be_changed():
    assert normalise_transcript("It is 7, OK?", case="upper") == "IT IS SEVEN OK"
    assert normalise_transcript("It is 7, OK?", case="keep", numbers=False, punctuation=True) == "It is 7, OK?"
    assert normalise_transcript("Naïve café", fold_accents=True) == "naive cafe"
    assert normalise_transcript("Über café", "de", fold_accents=True) == "über cafe"


def test_characters_are_counted():
    assert characters(["ab", "b c"]) == {"a": 1, "b": 2, " ": 1, "c": 1}


def test_alphabets_hold_single_lower_case_letters():
    for language, alphabet in ALPHABETS.items():
        check_language(language)
        assert len(set(alphabet)) == len(alphabet) and alphabet == alphabet.lower()


def test_an_unknown_language_is_told():
    assert normalise_transcript("no numerals", "xx") == "no numerals"
    with pytest.raises(ConfigError, match="numerals of the language 'xx'"):
        normalise_transcript("7", "xx")
    with pytest.raises(ConfigError, match="write two letters, such as en"):
        check_language("English")
