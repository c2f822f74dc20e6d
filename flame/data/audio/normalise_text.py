"""Transcripts in one manner of writing: case, punctuation, numbers as words, by language."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Literal

from flame.errors import ConfigError, closest, need

LETTERS = "abcdefghijklmnopqrstuvwxyz"
ALPHABETS = {
    "ca": f"{LETTERS}àçèéíïòóúü·'",
    "cs": f"{LETTERS}áčďéěíňóřšťúůýž",
    "da": f"{LETTERS}æøåé",
    "de": f"{LETTERS}äöüß",
    "en": f"{LETTERS}'",
    "es": f"{LETTERS}áéíñóúü",
    "fi": f"{LETTERS}äöå",
    "fr": f"{LETTERS}àâæçèéêëîïôœùûüÿ'",
    "it": f"{LETTERS}àèéìíîòóùú'",
    "nl": f"{LETTERS}áéèëïóöü'",
    "no": f"{LETTERS}æøåéò",
    "pl": f"{LETTERS}ąćęłńóśźż",
    "pt": f"{LETTERS}áâãàçéêíóôõúü",
    "ro": f"{LETTERS}ăâîșț",
    "ru": "абвгдеёжзийклмнопрстуфхцчшщъыьэюя",
    "sv": f"{LETTERS}åäöé",
    "tr": "abcçdefgğhıijklmnoöprsştuüvyzâîû",
    "uk": "абвгґдеєжзиіїйклмнопрстуфхцчшщьюя'",
}
"""Language -> its letters in lower case, and what stands inside words."""

Case = Literal["lower", "upper", "keep"]

_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ＇`´", "'"))
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_ENGLISH_ORDINAL = re.compile(r"\b(\d+)(?:st|nd|rd|th)\b", re.IGNORECASE)
_LONGEST_NUMBER, _LONGEST_FRACTION = 18, 6  # digits; what is longer is read digit by digit
_COMMA_THOUSANDS = {"en", "zh", "ja", "ko", "th", "he", "hi"}


def normalise_transcript(
    text: str,
    language: str = "en",
    *,
    case: Case = "lower",
    numbers: bool = True,
    punctuation: bool = False,
    fold_accents: bool = False,
) -> str:
    """Brings a transcript into one manner of writing.

    It is brought into Unicode's NFKC form; typographic apostrophes become ``'``, and white space single spaces.

    Args:
        text: As it was found.
        language: Two letters, such as ``en``: whose numbers, and whose alphabet for ``fold_accents``.
        case: What letters become.
        numbers: Whether numerals become words: ``7`` is ``seven``. It is done by ``num2words``.
        punctuation: Whether marks are kept; else they separate words, and only apostrophes inside words stay.
        fold_accents: Whether letters that are not in the language's alphabet lose their accents.

    Raises:
        ConfigError: Numerals of this language are not known.
    """
    text = unicodedata.normalize("NFKC", text).translate(_APOSTROPHES)
    if numbers:
        text = spell_numbers(text, language)
    text = _cased(text, language, case)
    if fold_accents:
        known = set(ALPHABETS.get(language, LETTERS))
        text = "".join(letter if letter.lower() in known else _without_accents(letter) for letter in text)
    if not punctuation:
        inside = set(ALPHABETS.get(language, "'")) | {"'"}
        text = "".join(_kept(text, place, inside) for place in range(len(text)))
    return " ".join(text.split())


def spell_numbers(text: str, language: str) -> str:
    """Writes numerals as words.

    Raises:
        ConfigError: Those of this language are not known.
    """
    if not any(character.isdigit() for character in text):
        return text
    need("audio", "num2words")
    from num2words import num2words

    def words(number: int | float, to: str = "cardinal") -> str:
        try:
            spelled = num2words(number, lang=language, to=to)
        except NotImplementedError:
            raise ConfigError(
                f"numerals of the language '{language}' are not known to num2words: write them as words first"
            ) from None
        return f" {spelled.replace('-', ' ')} "

    if language == "en":
        text = _ENGLISH_ORDINAL.sub(lambda match: words(int(match[1]), "ordinal"), text)
        text = text.replace("%", " percent ")
    return _NUMBER.sub(lambda match: _spelled(match[0], language, words), text)


def characters(texts: Iterable[str]) -> Counter[str]:
    """Counts the characters of texts."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    return counts


def check_language(language: str) -> None:
    """Refuses what is not the code of a language.

    Raises:
        ConfigError: It is not two or three letters.
    """
    if not re.fullmatch(r"[a-z]{2,3}", language):
        raise ConfigError(f"--language '{language}': write two letters, such as en.{closest(language, ALPHABETS)}")


def _spelled(numeral: str, language: str, words: Callable[[int | float], str]) -> str:
    """One numeral in words; a separator of thousands is told from a decimal point by the language."""
    thousands, point = (",", ".") if language in _COMMA_THOUSANDS else (".", ",")
    groups = numeral.split(thousands)
    if len(groups) > 1 and all(len(group.partition(point)[0]) == 3 for group in groups[1:]):
        numeral = "".join(groups)
    whole, _, fraction = numeral.partition(point)
    is_long = len(numeral) > _LONGEST_NUMBER or len(fraction) > _LONGEST_FRACTION
    if is_long or not whole.isdigit() or not (fraction or "0").isdigit():
        return "".join(words(int(digit)) if digit.isdigit() else " " for digit in numeral)
    if whole[0] == "0" and len(whole) > 1 and not fraction:  # 007 is read out
        return "".join(words(int(digit)) for digit in whole)
    return words(float(f"{whole}.{fraction}")) if fraction else words(int(whole))


def _cased(text: str, language: str, case: Case) -> str:
    if case == "keep":
        return text
    if language == "tr":  # the dotted and the dotless i
        text = text.replace("I", "ı").replace("İ", "i") if case == "lower" else text.replace("i", "İ")
    return text.lower() if case == "lower" else text.upper()


def _without_accents(letter: str) -> str:
    parts = unicodedata.normalize("NFD", letter)
    return "".join(part for part in parts if not unicodedata.combining(part)) or letter


def _kept(text: str, place: int, inside: set[str]) -> str:
    """The character at a place, or the space that stands for it."""
    character = text[place]
    if unicodedata.category(character)[0] in "LMN":
        return character
    is_between = 0 < place < len(text) - 1 and text[place - 1].isalnum() and text[place + 1].isalnum()
    return character if character in inside and is_between else " "
