"""Sizes that no model has are refused before torch counts with them."""

import pytest

from dar_probe.checkpoints.header import Header
from dar_probe.errors import CheckpointError


def header(**shapes):
    return Header(shown="'x.pt'", shapes=shapes, args={})


@pytest.mark.parametrize(
    "shape", [(1,), (2**20,), (3, 4), (2**20, 2**20), (1, 2**20, 2**20), (2**20, 1, 2, 2**19)]
)
def test_a_size_up_to_a_million_and_a_tensor_up_to_a_terabyte_pass(shape):
    assert header(weight=shape).shape("weight", len(shape)) == shape


@pytest.mark.parametrize(
    "shape",
    [(), (0,), (2**20 + 1,), (3, 0), (4, 2**20 + 1), (2**20, 2**20, 2), (2**20, 2**20, 2**20)],
)
def test_an_absurd_shape_is_refused_by_name(shape):
    with pytest.raises(CheckpointError, match="'weight' has shape"):
        header(weight=shape).shape("weight", max(len(shape), 1))


def test_another_number_of_sizes_is_refused():
    with pytest.raises(CheckpointError, match="which fits no known model"):
        header(weight=(3, 4)).shape("weight", 3)


def test_what_is_not_there_is_missing():
    with pytest.raises(CheckpointError, match="'bias' is missing"):
        header(weight=(3,)).shape("bias", 1)


def test_a_setting_is_found_at_the_top_or_one_section_below():
    found = Header(shown="", shapes={}, args={"a": 0, "none": None, "model": {"none": 3, "a": 5}})
    assert found.told("a") == 0  # the top comes first, and zero is a value
    assert found.told("none") == 3
    assert found.told("b", "a") == 0
    assert found.told("b") is None
