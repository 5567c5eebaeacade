"""MeanFlow: names, the two times, sites and its sampler against plain formulas in float64."""

import pytest
import torch

from dar_probe.diffusion import data, samplers
from dar_probe.errors import CheckpointError, UsageError
from dar_probe.models.loading import load_checkpoint
from dar_probe.models.meanflow import FAMILY
from dar_probe.models.options import CheckpointOptions
from tests.helpers import reference
from tests.models import check, transcript

WIDTH, HEADS, DEPTH, PATCH, CLASSES = 16, 2, 3, 2, 5
PLAIN = {"path_type": "linear", "num_classes": CLASSES, "cfg_omega": 1.0, "cfg_kappa": 0.0}


def official_shapes(qk_norm=False):
    """Names and shapes of the official model: SiT's, and a second embedder of times."""
    d = WIDTH
    shapes = {
        "pos_embed": (1, 9, d),
        "x_embedder.proj.weight": (d, 3, PATCH, PATCH),
        "x_embedder.proj.bias": (d,),
        "y_embedder.embedding_table.weight": (CLASSES + 1, d),
    }
    linears = {}
    for name in ("t_embedder", "r_embedder"):
        linears |= {f"{name}.mlp.0": (d, 256), f"{name}.mlp.2": (d, d)}
    for k in range(DEPTH):
        b = f"blocks.{k}."
        linears |= {b + "attn.qkv": (3 * d, d), b + "attn.proj": (d, d)}
        linears |= {b + "mlp.fc1": (4 * d, d), b + "mlp.fc2": (d, 4 * d)}
        linears[b + "adaLN_modulation.1"] = (6 * d, d)
        for name in ("q_norm", "k_norm") if qk_norm else ():
            shapes |= {f"{b}attn.{name}.{part}": (d // HEADS,) for part in ("weight", "bias")}
    linears["final_layer.linear"] = (PATCH * PATCH * 3, d)
    linears["final_layer.adaLN_modulation.1"] = (2 * d, d)
    for name, (out, into) in linears.items():
        shapes |= {f"{name}.weight": (out, into), f"{name}.bias": (out,)}
    return shapes


def transcription(p, x, t, r, y, *, qk_norm=False, gates=None):
    """The published forward in plain formulas, at times r and t."""
    second = {key.replace("r_embedder", "t_embedder"): p[key] for key in p if key.startswith("r_")}
    tokens = reference.embed_patches(
        x, p["x_embedder.proj.weight"], p["x_embedder.proj.bias"], PATCH
    )
    stream = transcript.Stream(tokens + p["pos_embed"], gates)
    times = reference.embed_time(p, t) + reference.embed_time(second, t - r)
    c = reference.silu(times + p["y_embedder.embedding_table.weight"][y])
    for k in range(DEPTH):
        b = f"blocks.{k}."
        parts = reference.linear(p, b + "adaLN_modulation.1", c)[:, None].chunk(6, -1)
        stream.block()
        for j in range(2):
            shift, scale, gate = parts[3 * j : 3 * j + 3]
            u = reference.norm(stream.read()) * (1 + scale) + shift
            if j:
                u = reference.gelu(reference.linear(p, b + "mlp.fc1", u))
                stream.write(gate * reference.linear(p, b + "mlp.fc2", u))
            else:
                stream.write(gate * reference.attention(p, b + "attn.", u, HEADS, qk_norm))
    stream.block()
    shift, scale = reference.linear(p, "final_layer.adaLN_modulation.1", c)[:, None].chunk(2, -1)
    u = reference.norm(stream.read()) * (1 + scale) + shift
    return reference.assemble_patches(reference.linear(p, "final_layer.linear", u), PATCH), stream


def load(qk_norm=False):
    state = check.random_state(official_shapes(qk_norm))
    heads = None if qk_norm else HEADS
    return state, *check.load(FAMILY, state, args=PLAIN, heads=heads)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_both_times_are_those_of_the_transcription(qk_norm):
    state, subject, identified = load(qk_norm)
    (x, t, y), _ = check.problem(identified)
    for r in (t, torch.tensor([0.0, 0.2, 0.9]).double(), torch.zeros_like(t)):
        expected, _ = transcription(state, x, t, r, y, qk_norm=qk_norm)
        assert check.relative(subject.model(x, t, y, r), expected.detach()) < 1e-13
    assert torch.equal(subject.model(x, t, y), subject.model(x, t, y, t))


def test_everything_against_the_transcription_at_r_equal_to_t():
    state, subject, identified = load()
    (x, t, y), loss = check.problem(identified)
    expected, output, _ = transcript.transcribed(
        lambda gates: transcription(state, x, t, t, y, gates=gates),
        len(subject.readers), len(subject.sources), len(x), loss,
    )  # fmt: skip
    assert max(check.observe(subject, (x, t, y)).errors(subject)) < 1e-14
    for found in (
        check.reference(subject, (x, t, y), loss),
        check.probed(subject, (x, t, y), loss),
    ):
        for name, value in expected.items():
            assert check.relative(found[name], value) < 1e-13, name


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_samples_go_by_mean_velocities(steps, guidance, tmp_path):
    state = check.random_state(official_shapes())
    path = check.save(tmp_path / "x.pt", state, PLAIN)
    loaded = load_checkpoint(CheckpointOptions(path=path, heads=HEADS, dtype="float64"))
    y = torch.tensor([0, 4])
    z = data.noise(range(2), loaded.identified.shape, seed=3).double()
    drawn = samplers.draw(
        loaded.model, loaded.objective, y, loaded.identified.shape, seed=3,
        sampler=samplers.Sampler(steps=steps, guidance=guidance, null_class=CLASSES),
        place=samplers.Place(dtype=torch.float64),
    )  # fmt: skip
    for k in range(steps):
        t, r = (torch.full((2,), 1 - j / steps, dtype=torch.float64) for j in (k, k + 1))
        u, _ = transcription(state, z, t, r, y)
        free, _ = transcription(state, z, t, r, torch.full_like(y, CLASSES))
        z = (z - (1 / steps) * (free + guidance * (u - free))).detach()
    assert check.relative(drawn.double(), z) < 1e-6  # they are float32


def test_own_samples_are_said_to_go_by_mean_velocities(tmp_path):
    path = check.save(tmp_path / "x.pt", check.random_state(official_shapes()), PLAIN)
    loaded = load_checkpoint(CheckpointOptions(path=path, heads=HEADS))
    _, how = loaded.draw(1, seed=0)
    assert (
        how
        == "1 sample drawn from the model itself (25 steps of its mean velocity, labels in turn)"
    )
    # As a plain flow the same file takes Euler steps at r = t.
    plain = load_checkpoint(CheckpointOptions(path=path, heads=HEADS, objective="repa"))
    assert "25 Euler steps" in plain.draw(1, seed=0)[1]


@pytest.mark.parametrize(
    ("changes", "objective", "said"),
    [
        ({}, "meanflow", []),
        ({"cfg_kappa": None}, "meanflow", []),
        ({"cfg_omega": 1.0, "cfg_kappa": 0.5}, "meanflow",
         ["guidance was trained in (cfg_omega '1.0', cfg_kappa '0.5'): the loss is that of the "
          "velocity without it"]),
        ({"cfg_omega": None, "cfg_kappa": None}, "meanflow",
         ["nothing tells whether guidance was trained in: if so, the loss is not the trained one"]),
        ({"path_type": "cosine"}, "meanflow:gvp:velocity",
         ["the settings name path_type 'cosine' and prediction 'None': the objective is "
          "meanflow:gvp:velocity; --objective overrides"]),
    ],
)  # fmt: skip
def test_what_a_file_tells(changes, objective, said):
    state = {k: torch.empty(s, device="meta") for k, s in official_shapes(True).items()}
    found = check.identify(FAMILY, state, args={**PLAIN, **changes})
    assert (found.objective, found.num_classes) == (objective, CLASSES)
    assert found.assumptions == [
        "read as MeanFlow: beside t = s it embeds t - r, and is measured at r = t, where it "
        "predicts the velocity at t; --objective overrides",
        *said,
    ]


@pytest.mark.parametrize(
    ("edit", "args", "message"),
    [
        ({"r_embedder.mlp.2.bias": None}, {}, "'r_embedder.mlp.2.bias' is missing"),
        ({"r_embedder.mlp.0.weight": (17, 256)}, {}, r"has shape \(17, 256\), where \(16, 256\)"),
        ({"projector.weight": (4,)}, {}, "'projector.weight' is unexpected"),
        ({}, {"prediction": "noise"}, "a MeanFlow that predicts 'noise'"),
        ({}, {"num_classes": 9}, "9 classes, and a label table of 6 rows"),
    ],
)
def test_refused(edit, args, message):
    shapes = official_shapes(True) | edit
    state = {k: torch.empty(s, device="meta") for k, s in shapes.items() if s}
    with pytest.raises(CheckpointError, match=message):
        check.identify(FAMILY, state, args=PLAIN | args)


def test_its_objective_is_not_for_models_of_one_time(tmp_path):
    shapes = {k: s for k, s in official_shapes().items() if not k.startswith("r_")}
    path = check.save(tmp_path / "sit.pt", check.random_state(shapes))
    with pytest.raises(UsageError, match="'meanflow' is for models with a second time") as caught:
        load_checkpoint(CheckpointOptions(path=path, heads=HEADS, objective="meanflow"))
    assert "repa" in caught.value.hint
