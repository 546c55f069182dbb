"""Networks that lie beside the code."""

from pathlib import Path

import pytest
import torch
from training_jobs import load_images, make_job, run

import ask
from ask import zoo
from ask.errors import AskError


def test_a_network_is_found_by_run_data_set_and_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "RESULTS", tmp_path)
    assert zoo.names() == []
    with pytest.raises(AskError, match=r"no network 'lite/digits/at'; there are none: weights lie in .*of a checkout"):
        zoo.load("lite/digits/at")
    folder = run(make_job(epochs=1), load_images(), tmp_path / "lite/models/digits/at")
    assert zoo.names() == ["lite/digits/at"]
    network = zoo.load("lite/digits/at")
    assert not network.training
    assert network(torch.rand(2, 1, 32, 32)).shape == (2, 10)
    assert (folder / "config.yaml").is_file(), "how it was trained stands beside it"
    with pytest.raises(AskError, match=r"there are lite/digits/at$"):
        zoo.load("lite/digits/ask-def")


def test_the_committed_ones_load() -> None:
    assert ask.zoo is zoo
    assert "digits/digits-vgg/at" in zoo.names()
    for name in zoo.names():
        network = zoo.load(name)
        images = torch.rand(1, network.in_channels, network.image_size, network.image_size)
        assert network(images).shape == (1, network.num_classes)
