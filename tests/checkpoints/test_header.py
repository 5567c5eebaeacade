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
    with pytest.raises(CheckpointError, match="no known layout: .* fits no known model") as error:
        header(weight=(3, 4)).shape("weight", 3)
    assert "edited" not in error.value.hint and "--family" in error.value.hint
    with pytest.raises(CheckpointError, match="contradicts itself.*where .4, 4. fits") as error:
        header(weight=(3, 4)).compare({"weight": (4, 4)})
    assert "edited" in error.value.hint


def test_what_is_not_there_is_missing():
    with pytest.raises(CheckpointError, match="'bias' is missing"):
        header(weight=(3,)).shape("bias", 1)


def test_a_setting_is_found_at_the_top_or_one_section_below():
    found = Header(shown="", shapes={}, args={"a": 0, "none": None, "model": {"none": 3, "a": 5}})
    assert found.told("a") == 0  # the top comes first, and zero is a value
    assert found.told("none") == 3
    assert found.told("b", "a") == 0
    assert found.told("b") is None


@pytest.mark.parametrize(
    ("key", "layout"),
    [
        ("transformer_blocks.0.ff.weight", "a diffusers layout"),
        ("blocks.0.attn_temp.qkv.weight", "Open-Sora 1.0 or 1.1"),
        ("y_embedder.y_proj.fc1.weight", "a layout that reads text, such as PixArt's"),
    ],
)
def test_another_layout_is_named_before_what_does_not_fit_this_one(key, layout):
    found = header(weight=(3, 4), **{key: (5,)})
    for refuse in (lambda: found.shape("weight", 3), lambda: found.shape("bias", 1)):
        with pytest.raises(
            CheckpointError, match=f"looks like {layout}.*: it has '{key}'"
        ) as error:
            refuse()
        assert error.value.hint == "dar-probe audit measures a model of any layout in Python"


def test_a_file_of_our_own_is_no_other_layout():
    own = Header(shown="", shapes={"stream.norm": (3,)}, args={"format": "dar-probe"})
    with pytest.raises(CheckpointError, match="'stream.norm' has shape"):
        own.shape("stream.norm", 2)
