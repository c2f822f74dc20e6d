"""What contradicts itself in how sources are mixed and packed, or would have no effect, is refused in one line."""

import pytest

from flame.config import Data, Source, Stage
from flame.config.mixing import check_mixing
from flame.errors import ConfigError


def section(*weights, epochs=(0.0, 0.0), **keys):
    sources = [Source("a", weight=weights[0], epochs=epochs[0]), Source("b", weight=weights[1], epochs=epochs[1])]
    return Data(sources=sources, **keys)


@pytest.mark.parametrize(
    "data",
    [
        section(0.7, 0.3, stages=[Stage(1, [1, 0]), Stage(5, [0.0, 1.0])]),
        section(0.7, 0.3, epochs=(2, 0), packing="best_fit", too_long="skip"),
        section(1, 1, epochs=(2, 2), mix="documents"),
        section(1, 1, epochs=(2, 0), mix="sequence", packing="rows"),
    ],
)
def test_what_goes_together_is_accepted(data):
    check_mixing(data, [])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (section(0, 0), "all weights are 0"),
        (section(1, 1, stages=[Stage(0, [1, 1])]), "stages.0.start = 0 must be at least 1"),
        (section(1, 1, stages=[Stage(9, [1, 1]), Stage(9, [1, 2])]), "stages.1.start = 9 must be after"),
        (section(1, 1, stages=[Stage(9, [1, 1, 1])]), "has 3 weights for 2 sources"),
        (section(1, 1, stages=[Stage(9, [1, -1])]), "must not be negative"),
        (section(1, 1, stages=[Stage(9, [0, 0])]), "not all 0"),
        (section(1, 1, stages=[Stage(9, [1, 1])], mix="documents"), "data.mix = 'documents' does not use"),
        (section(1, 2, mix="documents"), "list a source several times"),
        (section(1, 2, mix="sequence"), "set the epochs of sources"),
        (section(1, 1, epochs=(2, 0), mix="documents"), "one collection"),
        (section(1, 1, too_long="skip"), "has no effect with data.packing = 'stream'"),
    ],
)
def test_what_does_not_is_refused(data, message):
    with pytest.raises(ConfigError, match=message):
        check_mixing(data, [])


def test_long_examples_may_be_cut_and_none_are_packed():
    check_mixing(section(1, 1, too_long="cut"), [], reads_text=False)
    with pytest.raises(ConfigError, match="data.packing = 'rows' has no effect"):
        check_mixing(section(1, 1, packing="rows"), [], reads_text=False)


def test_epochs_of_validation_sources_are_refused():
    with pytest.raises(ConfigError, match=r"validation.sources.0.epochs = 2 has no effect"):
        check_mixing(section(1, 1), [Source("c", epochs=2)])


@pytest.mark.parametrize(
    ("data", "steps", "message"),
    [
        (
            section(1, 1, stages=[Stage(101, [1, 2])]),
            100,
            "stages.0.start = 101 is after the last step, training.steps",
        ),
        (section(0, 1), 100, "data.sources.0.weight = 0, and no stage gives it any: 'a' is never read"),
        (section(1, 0, stages=[Stage(9, [1, 0])]), 0, "data.sources.1.weight = 0"),
    ],
)
def test_what_would_have_no_effect_is_refused(data, steps, message):
    with pytest.raises(ConfigError, match=message):
        check_mixing(data, [], steps)


def test_a_stage_is_only_held_against_the_steps_if_they_are_known():
    stages = [Stage(100, [1, 2])]
    for steps in (0, -1, 100):
        check_mixing(section(0, 1, stages=stages), [], steps)
