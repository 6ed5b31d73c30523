"""The mapping that a recording is, and whose forwards are in it."""

import threading

import torch
from small_attention import Net, inputs
from small_families import diffusers_dit
from torch.utils.checkpoint import checkpoint

from dit_shd import attach_processors, capture
from dit_shd.core.errors import UserError


def in_a_thread(call):
    """What a call in another thread gives, or the error that it ends in."""
    result = []

    def work():
        try:
            result.append(call())
        except UserError as error:
            result.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    return result[0]


def test_a_model_that_one_thread_records_is_not_run_by_another():
    """Both had a loss on the forward that came last, whichever thread's it was."""
    model, x = Net(), inputs()

    def captured():
        with capture(model):
            model(x)

    with capture(model) as captures:
        model(x)
        first = {name: layer.query for name, layer in captures.items()}
        for call in (lambda: model(x), captured):
            error = in_a_thread(call)
            assert isinstance(error, UserError) and "this Net is recorded by another thread" in str(error)
        assert all(captures[name].query is query for name, query in first.items())
    assert isinstance(in_a_thread(lambda: model(x)), torch.Tensor)


def test_a_model_that_a_backward_of_another_thread_runs_again():
    """On a GPU autograd has threads of its own, in which checkpoints are computed again."""
    model, x = Net(), inputs()
    with capture(model):
        checkpoint(model, x.requires_grad_(), use_reentrant=False).sum().backward()
        wanted, x.grad = x.grad, None
        y = checkpoint(model, x, use_reentrant=False).sum()
        assert in_a_thread(y.backward) is None
    torch.testing.assert_close(x.grad, wanted)


def test_processors_serve_threads_that_take_turns():
    """A server attaches them once, and its workers run the model; two at once are refused."""
    model = diffusers_dit(num_attention_heads=4).eval()
    given = torch.randn(2, 1, 8, 8), torch.tensor([1, 2]), torch.tensor([0, 1])

    def run():
        return model(given[0], timestep=given[1], class_labels=given[2])

    with attach_processors(model) as captures:
        run()
        in_a_thread(run)
        assert len(captures) == 2
        errors = []
        handle = model.transformer_blocks[1].register_forward_hook(lambda *_: errors.append(in_a_thread(run)))
        run()
        handle.remove()
        (error,) = errors
        assert isinstance(error, UserError) and "recorded by another thread" in str(error)
        assert len(captures) == 2
