"""Optimizers and loss against numbers that MindSpore 2.10 computed (CPU, float32, six steps of changing rate)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inception_v4.settings.schema import Optimizer
from inception_v4.training.optim import build_optimizer, set_learning_rate
from inception_v4.training.step import make_criterion

START = [1.764052391052246, 0.40015721321105957, 0.978738009929657, 2.2408931255340576, 1.8675580024719238]
RATES = [0.4, 0.3, 0.2, 0.1, 0.05, 0.02]
GRADIENTS = [
    [-0.9772778749465942, 0.9500884413719177, -0.15135720372200012, -0.10321885347366333, 0.4105985164642334],
    [0.014404356479644775, 0.14542734622955322, 0.07610376924276352, 0.012167501263320446, 0.04438632354140282],
    [3.3367433547973633, 14.940791130065918, -2.0515825748443604, 3.1306769847869873, -8.5409574508667],
    [-2.5529897212982178, 0.653618574142456, 0.8644362092018127, -0.7421650290489197, 2.269754648208618],
    [-0.014543657191097736, 0.0004575851489789784, -0.001871838583610952, 0.015327791683375835, 0.014693588018417358],
    [0.154947429895401, 0.37816253304481506, -0.8877857327461243, -1.980796456336975, -0.34791216254234314],
]
END = {
    ("rmsprop", 1.0, 0.0): [2.0800371170, -3.1237015724, 1.9283519983, 1.2101933956, 3.0195665359],
    ("rmsprop", 1.0, 4e-5): [2.0798316002, -3.1237220764, 1.9282305241, 1.2099452019, 3.0193865299],
    ("rmsprop", 1e-10, 0.0): [2.3719723225, -3.7557942867, 2.2841494083, 0.9700520039, 2.8571946621],
    ("rmsprop", 1e-10, 4e-5): [2.3716909885, -3.7558162212, 2.2839744091, 0.9697053432, 2.8569450378],
    ("momentum", None, 4e-5): [1.9410139322, -5.8594565392, 1.6623908281, 1.4091596603, 4.0378074646],
}
"""Weights after six steps by (optimizer, epsilon, weight decay); momentum 0.9, RMSProp's decay 0.9."""

LOGITS = [
    [0.15634897, 1.23029065, 1.20237982, -0.38732681, -0.30230275, -1.04855299, -1.42001796],
    [-1.70627022, 1.95077538, -0.50965220, -0.43807429, -1.25279534, 0.77749038, -1.61389780],
    [-0.21274029, -0.89546657, 0.38690251, -0.51080513, -1.18063223, -0.02818223, 0.42833188],
    [0.06651722, 0.30247191, -0.63432211, -0.36274117, -0.67246044, -0.35955316, -0.81314629],
]
LABELS = [0, 3, 6, 2]


class Weights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(START))


def six_steps(model: Weights, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    for gradient, lr in zip(GRADIENTS, RATES, strict=True):
        model.weight.grad = torch.tensor(gradient)
        set_learning_rate(optimizer, lr)
        optimizer.step()
    return model.weight.detach()


@pytest.mark.parametrize(("opt", "eps", "decay"), END)
def test_optimizers_end_where_mindspores_do(opt: str, eps: float | None, decay: float) -> None:
    model = Weights()
    optimizer = build_optimizer(model, Optimizer(opt=opt, opt_eps=eps, weight_decay=decay), RATES[0])
    torch.testing.assert_close(six_steps(model, optimizer), torch.tensor(END[opt, eps, decay]), rtol=0, atol=1e-6)


def test_torchs_rmsprop_does_not() -> None:
    model = Weights()
    optimizer = torch.optim.RMSprop(model.parameters(), RATES[0], alpha=0.9, eps=1.0, momentum=0.9)
    assert (six_steps(model, optimizer) - torch.tensor(END["rmsprop", 1.0, 0.0])).abs().max() > 1.8


def test_label_smoothing_is_mindcvs() -> None:
    logits, labels = torch.tensor(LOGITS), torch.tensor(LABELS)
    assert make_criterion("ce", 0.1)(logits, labels).item() == pytest.approx(2.183012, abs=2e-6)
    assert make_criterion("ce", 0.0)(logits, labels).item() == pytest.approx(2.1671796, abs=2e-6)
