"""The table of compatibility: what its command measures, and that it names what tests know."""

import json
import re
import sys

import pytest

from tests import compat
from tests.models import files
from tests.models.diffusers import others, tiny

# "agree" of these is smaller than "sublayers": see what the page says of them.
UNCONFIRMED = {
    "ErnieImageTransformer2DModel",
    "HiDreamImageTransformer2DModel",
    "HunyuanVideo15Transformer3DModel",
    "MiniMaxMusic3Transformer1DModel",
    "PriorTransformer",
    "QwenImage21Transformer2DModel",
    "StableAudio3DiTModel",
    "StableAudioDiTModel",
}


def check(name, folder):
    """A row is what is kept but for the differences themselves, which are small."""
    found = compat.row(name, folder)
    kept = {one["name"]: one for one in compat.read()["rows"]}[name]
    assert compat.bad(found) == [] and compat.unlike(found, kept) == []
    most = compat.MOST[found["dtype"]]
    assert 0 < found["writes"]["largest"] <= most["write"]
    assert 0 < found["states"]["rms"] <= most["rms"]
    assert 0 < found["states"]["grad_rms"] <= most["grad_rms"]
    assert str(found["writes"]["agree"]) in compat.line(found)
    return found


def test_a_family(tmp_path):
    found = check("SiT", tmp_path)
    assert found["streams"]["image"] == {"blocks": 3, "sublayers": 6, "fusions": 0}
    assert (found["clock"], found["prediction"]) == ("1 to 0", "data - noise")


@pytest.mark.parametrize("name", ["sd3", "wan"])
def test_a_class_of_diffusers(tmp_path, name):
    found = check(name, tmp_path)
    assert set(found["streams"]) == ({"image", "text"} if name == "sd3" else {"image"})
    assert found["dtype"] == ("float32" if name == "wan" else "float64")


def test_what_is_not_small_or_not_as_it_was_kept_is_said(tmp_path):
    (kept,) = (one for one in compat.read()["rows"] if one["name"] == "sd3")
    coarse = json.loads(json.dumps(kept))
    coarse["states"]["rms"] = 1e-3
    assert [said.partition(":")[0] for said in compat.bad(coarse)] == ["sd3"]
    assert compat.unlike(coarse, kept) == []  # the difference itself is another machine's
    coarse["streams"]["image"]["blocks"] = 4
    assert ["streams is" in said for said in compat.unlike(coarse, kept)] == [True]


def test_the_table_names_exactly_what_tests_know():
    found = compat.read()
    names = [one["name"] for one in found["rows"]]
    assert sorted(names) == sorted([*files.CASES, *tiny.MODELS, *others.OTHERS])
    assert names == list(compat.names()), "python tests/compat.py"
    for one in found["rows"]:
        assert one["class"] == compat.class_of(one["name"])
        assert one["kind"] == compat.names()[one["name"]]
        assert compat.bad(one) == []
        assert one["granularity"] == "sublayer"
        short = one["writes"]["agree"] < one["writes"]["sublayers"]
        assert short == (one["name"] in UNCONFIRMED), one["name"]


def test_every_row_is_in_the_page(monkeypatch):
    monkeypatch.syspath_prepend(compat.ROOT / "docs" / "_ext")
    import compatibility_table

    text = compatibility_table.compatibility()
    rows = re.findall(r"^\| (?!-|model )(.+?) \|", text, re.MULTILINE)
    assert len(rows) == len(set(rows)) == len(compat.names())
    assert {row.partition(" (")[0].replace("<wbr>", "") for row in rows} == {
        name if name in files.CASES else compat.class_of(name) for name in compat.names()
    }
    for name in ("tables", "compatibility_table"):
        sys.modules.pop(name, None)
