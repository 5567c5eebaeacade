"""The names of all options: scripts rely on them, so that none goes away by accident."""

from typer.main import get_command

from dar_probe.cli import app

NAMES = {
    "": "--version --debug --install-completion --show-completion",
    "analyze": "CHECKPOINTS --out --data --noise-levels --samples --batch-size --recompute "
    "--stream --shard --estimate --objective --heads --family --weights --seed --device --dtype "
    "--text --adapter --offload --engine --fail-on --resume --name --overwrite --no-figures "
    "--no-report --formats --json --config",
    "ablate": "CHECKPOINT --out --kinds --pairs --gate --frozen-at --data --noise-levels --samples "
    "--batch-size --recompute --stream --shard --objective --heads --family --weights --seed "
    "--device --dtype --text --adapter --offload --engine --resume --name --overwrite "
    "--no-figures --no-report --formats --json --config",
    "audit": "FACTORY --input --noise-levels --samples --batch-size --recompute --stream "
    "--blocks --readers --layout --device --dtype --train-steps --lr --seed --out --fail-on "
    "--junit --name --overwrite --no-figures --no-report --formats --json --config",
    "bench": "CHECKPOINT --model --batch-size --repeats --threads --heads --family --device "
    "--dtype --json",
    "compare": "ANALYSES --out --fail-on --names --json",
    "doctor": "--device --json",
    "figures": "ANALYSES --out --format --formats --width --only --variable --noise-level "
    "--shallow --deep --kind --names --no-titles --no-notes --captions",
    "inspect": "CHECKPOINT --heads --family --weights --objective --json",
    "report": "ANALYSIS --out",
    "train": "--out --routing --query --chunk-size --streams --depth --width --heads --patch "
    "--steps --batch-size --lr --seed --data --objective --path --prediction "
    "--time-sampling --init-from --probe-every --autocast --compile --no-compile --config --device "
    "--tensorboard --resume",
    "reproduce": "--out --scale --only --runs --prices --data --device --json",
    "sample": "CHECKPOINT --samples --classes --solver --steps --guidance --seed --batch-size "
    "--vae --weights --objective --heads --family --dtype --device --out",
    "evaluate": "CHECKPOINT --data --features --samples --seeds --solver --steps --guidance "
    "--batch-size --vae --weights --objective --heads --family --dtype --device --json",
}


def names(command):
    """Return what may be typed after a command; arguments in capitals."""
    found = []
    for parameter in command.params:
        for name in (*parameter.opts, *parameter.secondary_opts):
            found.append(name if name.startswith("-") else name.upper())
    return [name for name in found if name != "--help"]


def test_names_are_as_they_were():
    group = get_command(app)
    found = {"": names(group), **{name: names(c) for name, c in group.commands.items()}}
    for name in {*found, *NAMES}:
        own, listed = set(found.get(name, ())), set(NAMES.get(name, "").split())
        assert own == listed, f"NAMES of {name!r} lacks, or has too many: {own ^ listed}"
