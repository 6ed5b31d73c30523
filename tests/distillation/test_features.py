"""Features that losses compare: means over the tokens that take part."""

import torch

from dit_shd.distillation.features import mean_token, token_mean


class Padded:
    """A batch of two samples, the second of padding alone."""

    def row_weight(self, tokens):
        return torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])


def test_a_mean_token_is_of_the_tokens_that_take_part():
    x = torch.arange(12.0).view(2, 3, 2)
    assert mean_token(x, Padded()).tolist() == [[1.0, 2.0], [0.0, 0.0]], "none rather than all weights alike"
    assert mean_token(x, None).tolist() == [[2.0, 3.0], [8.0, 9.0]]


def test_what_a_token_without_weight_gives_does_not_count_whatever_it_is():
    values = torch.tensor([[2.0, 2.0, torch.inf], [torch.nan, 1.0, 2.0]])
    assert token_mean(values, Padded()).tolist() == [2, 0]
    assert token_mean(values, None)[0] == torch.inf
