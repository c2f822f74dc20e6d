"""The command line of ``flame data prepare-ctc``."""

from flame.data.audio.options import add_arguments, checked
from flame.data.audio.prepare import prepare
from flame.data.audio.report import summary
from flame.errors import need
from flame.utils.arguments import Arguments

_ABOUT = """Makes manifests for training and validation, a tokenizer and a report of recordings with transcripts.

  flame data prepare-ctc LibriSpeech/train-clean-100 --output prepared --group '^(\\d+)/'
  flame data prepare-ctc digits --transcript '^(\\d)_' --output prepared --join 3 7
"""


def prepare_ctc(argv: list[str]) -> int:
    """Prepares recordings for CTC.

    Raises:
        FlameError: What is asked for makes no sense, or a source cannot be read.
    """
    parser = Arguments("flame data prepare-ctc", _ABOUT)
    add_arguments(parser)
    options = checked(parser.parse_args(argv))
    need("audio", "soundfile", "soxr")
    made = prepare(options)
    print(summary(made, options))
    return 0
