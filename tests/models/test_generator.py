"""Checkpoints as generators: guidance takes the row of dropped labels, where a file has one."""

import pytest

from dar_probe.errors import UsageError
from dar_probe.models.generator import load_generator
from dar_probe.models.options import CheckpointOptions, SamplingOptions
from tests.models import files

GUIDED = SamplingOptions(guidance=2.0)


@pytest.mark.parametrize(
    ("case", "null"),
    [("SiT", 10), ("JiT", 5), ("MeanFlow", 5), ("LightningDiT", 5), ("U-ViT latent", 10)],
)
def test_guidance_takes_the_label_after_the_last_class(case, null, tmp_path):
    file = files.write(case, tmp_path)
    options = CheckpointOptions(path=file.path, heads=file.heads)
    assert load_generator(options, GUIDED).sampler.null_class == null


def test_guidance_is_refused_where_no_labels_were_dropped(tmp_path):
    file = files.write("U-ViT pixel", tmp_path)
    options = CheckpointOptions(path=file.path, heads=file.heads)
    with pytest.raises(UsageError, match="guidance needs a model"):
        load_generator(options, GUIDED)
