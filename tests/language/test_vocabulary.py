import pytest

from lavit.language.vocabulary import Vocabulary


def test_ids_are_those_of_the_release():
    v = Vocabulary(32000, 16384)
    assert (v.begin_id, v.end_id, v.first_code_id, v.size) == (32000, 32001, 32002, 48386)


@pytest.mark.parametrize("name", ["text_size", "num_codes"])
def test_sizes_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}: expected a number >= 1, got 0"):
        Vocabulary(**{"text_size": 5, "num_codes": 5, name: 0})
