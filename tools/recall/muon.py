"""The Muon optimizer: steps of equal size in all directions of a matrix."""

import torch

# Coefficients of the Newton-Schulz iteration of Keller Jordan's Muon.
A, B, C = 3.4445, -4.7750, 2.0315
ITERATIONS = 5


def orthogonal(matrix, kind):
    """The nearest orthogonal matrix, roughly."""
    x = matrix.to(kind)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = A * x + (B * square + C * square @ square) @ x
    return (x.T if tall else x).float()


class Muon(torch.optim.Optimizer):
    def __init__(self, parameters, lr, kind, momentum=0.95):
        """`kind`: the type to compute in."""
        super().__init__(parameters, {"lr": lr, "momentum": momentum})
        self.kind = kind

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                self._step_one(parameter, group["lr"], group["momentum"])

    def _step_one(self, parameter, rate, momentum):
        state = self.state[parameter]
        if not state:
            state["mean"] = torch.zeros_like(parameter)
        mean = state["mean"]
        mean.lerp_(parameter.grad, 1 - momentum)
        update = orthogonal(
            parameter.grad.lerp(mean, momentum), self.kind
        )
        rows, columns = parameter.shape
        parameter.add_(update, alpha=-rate * max(1, rows / columns) ** 0.5)
