"""Models that are used by several threads, or whose parts are in modes of their own."""

import threading

import torch
from torch import nn

import dit_shd
from dit_shd.models.evaluation_mode import evaluated, in_turn
from dit_shd.models.families.mdt import MDTv2, RelativePositionBias


def test_every_module_is_in_its_own_mode_again():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.Dropout())).train()
    model[1].eval()
    model[1][0].train()
    before = [module.training for module in model.modules()]
    with evaluated(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before


def test_a_second_thread_waits_and_the_first_may_enter_twice():
    model, order = nn.Linear(1, 1), []

    def second():
        with in_turn(model):
            order.append("second")

    with in_turn(model), in_turn(model):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_model_from_which_two_threads_sample_is_as_it_was_and_learns():
    """Biases that one call keeps had been put back by the other, for good: the tables had no gradient then."""
    torch.manual_seed(0)
    model = MDTv2(8, 2, 1, 4, 2, 8, decode_layer=2, num_classes=3).train()
    torch.nn.init.normal_(model.final_layer.linear.weight)
    alone = {p: dit_shd.sample(model, count=2, steps=4, seed=1, precision=p, vae=None).images for p in ("no", "bf16")}
    found = {}

    def work(precision):
        for i in range(3):
            found[precision, i] = dit_shd.sample(model, count=2, steps=4, seed=1, precision=precision, vae=None).images

    threads = [threading.Thread(target=work, args=(precision,)) for precision in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((found[p, i] == alone[p]).all() for p, i in found) and len(found) == 6
    tables = [m for m in model.modules() if isinstance(m, RelativePositionBias)]
    assert model.training and all(m.kept is None for m in tables)
    model(torch.randn(2, 1, 8, 8), torch.tensor([1, 2]), torch.tensor([0, 1])).sample.sum().backward()
    learned = [m for m in tables if m.relative_position_bias_table.grad is not None]
    assert len(learned) == len(tables) - 1  # all but the side block's, which is of the masked pass


def test_what_acts_in_train_is_called_again():
    """A layer of loralib merges in eval() and takes it apart in train(): its adapters had no gradient any more."""

    class Merging(nn.Module):
        merged = False

        def train(self, mode=True):
            self.merged = not mode
            return super().train(mode)

    model = nn.Sequential(Merging(), nn.Sequential(Merging(), nn.Linear(1, 1))).train()
    model[1].eval()
    with evaluated(model):
        assert model[0].merged and model[1][0].merged
    assert not model[0].merged and model[1][0].merged
    assert model.training and model[0].training and not model[1].training and not model[1][1].training
