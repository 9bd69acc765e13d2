"""One thread for small models on the CPU."""

import pytest
import torch

from selectron.potentials import MuellerBrown, load_potential, settle_threads
from selectron.potentials.threads import SMALL, is_small


@pytest.fixture(autouse=True)
def _threads_afterwards(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_small_model_gets_one_thread(tiny_model):
    settle_threads([load_potential(tiny_model)])
    assert torch.get_num_threads() == 1


def test_a_large_member_keeps_all_threads(tiny_model):
    large = load_potential(tiny_model)
    large.model.register_parameter("ballast", torch.nn.Parameter(torch.zeros(SMALL)))
    assert not is_small(large.model)
    settle_threads([load_potential(tiny_model), large])
    assert torch.get_num_threads() == 2


def test_the_environment_has_the_last_word(tiny_model, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    settle_threads([load_potential(tiny_model)])
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("potentials", [[], [MuellerBrown()]], ids=["none", "no module"])
def test_what_cannot_be_counted_keeps_all_threads(potentials):
    settle_threads(potentials)
    assert torch.get_num_threads() == 2
