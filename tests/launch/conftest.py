import pathlib

import pytest
from fake_cloud import FakeCloud


@pytest.fixture
def cloud(tmp_path: pathlib.Path) -> FakeCloud:
    return FakeCloud(tmp_path)
