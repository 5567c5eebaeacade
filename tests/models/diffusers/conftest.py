import pytest

from tests.models.diffusers import tiny


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Return a function from the name of a tiny model to its folder, written once."""
    folders = {}

    def folder(name):
        if name not in folders:
            folders[name] = tiny.save(name, tmp_path_factory.mktemp("hub") / name)
        return folders[name]

    return folder
