"""Gradients of frozen weights by hooks, against autograd's own; and as rows that criteria read."""

import pytest
import torch
from torch import nn

from glmspectra.errors import RequestError
from glmspectra.tuning.training.gradients import weight_gradients


class Tiny(nn.Module):
    """A causal language model's interface around an embedding, two linear layers and an output."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 8)
        self.first = nn.Linear(8, 12)
        self.second = nn.Linear(12, 8, bias=False)
        self.output = nn.Linear(8, 20)
        self.dropout = nn.Dropout(0.5)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, labels, use_cache=False):
        hidden = self.dropout(self.second(self.first(self.embedding(input_ids)).tanh()))
        logits = self.output(hidden)
        loss = nn.functional.cross_entropy(logits.reshape(-1, 20), labels.reshape(-1))
        return type("Output", (), {"loss": loss})


def batches(count: int = 3):
    generator = torch.Generator().manual_seed(1)
    return [
        {key: torch.randint(0, 20, (2, 5), generator=generator) for key in ("input_ids", "labels")}
        for _ in range(count)
    ]


def test_hooks_give_what_autograd_gives_and_leave_the_weights_frozen():
    model = Tiny().eval()
    for batch in batches():
        (model(**batch).loss / 3).backward()
    expected = {"first": model.first.weight.grad.clone(), "second": model.second.weight.grad.clone()}
    model.zero_grad(set_to_none=True)
    model.train()
    found = {name: gradient.clone() for name, gradient in weight_gradients(model, batches(), ["first", "second"])}
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())
    one_at_a_time = dict(weight_gradients(model, batches(), ["first", "second"], group_bytes=1))
    torch.testing.assert_close(one_at_a_time["second"], expected["second"])


def test_what_is_no_linear_layer_is_refused():
    with pytest.raises(RequestError, match="no linear layer"):
        list(weight_gradients(Tiny(), batches(), ["embedding"]))
