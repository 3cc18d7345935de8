import pytest


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """One TFDS directory for all workers of pytest-xdist, which prepare into it all at once."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if base.name.startswith("popen-") else base) / "tensorflow_datasets"
