"""The loop that a good user of PyTorch and Optuna would write: what ours is measured against.

Networks as modules, a ``DataLoader`` with torchvision's transforms, Eq. 4 of the paper as printed
with one-hot labels, ``torch.optim.SGD``; one candidate after another under ``study.optimize``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms

# Orders of (ŷ − θ0) and (y − θ1) that θ2 … θ11 multiply, over the factorials.
ORDERS = ((1, 0), (2, 0), (3, 0), (4, 0), (1, 1), (1, 2), (2, 1), (3, 1), (1, 3), (2, 2))


def mlp(hidden_layers: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    width = 784
    for _ in range(hidden_layers):
        layers += [nn.Linear(width, 256), nn.ReLU()]
        width = 256
    return nn.Sequential(*layers, nn.Linear(width, 10))


class Cnn4(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 5), nn.Conv2d(32, 64, 5)
        self.fc1, self.fc2 = nn.Linear(1024, 1024), nn.Linear(1024, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp2": lambda: mlp(1),
    "mlp3": lambda: mlp(2),
    "cnn4": Cnn4,
}


class Eq4Loss(nn.Module):
    """Eq. 4 term by term, times ``scale``, which Eq. 5 gives."""

    def __init__(self, theta: Sequence[float], scale: float) -> None:
        super().__init__()
        self.theta, self.scale = list(theta), scale

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        p = logits.softmax(-1) - self.theta[0]
        y = F.one_hot(labels, logits.shape[-1]).float() - self.theta[1]
        loss = torch.zeros_like(p)
        for weight, (a, b) in zip(self.theta[2:], ORDERS, strict=True):
            loss = loss + weight / (math.factorial(a) * math.factorial(b)) * p**a * y**b
        return self.scale * loss.mean(-1).mean()


class NoisySet(Dataset):  # type: ignore[type-arg]
    """Images of a torchvision data set with other labels, and the transforms of its example."""

    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    )

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = transforms.functional.to_pil_image(self.images[index])
        return self.transform(image), int(self.labels[index])


def loader(images: Tensor, labels: Tensor, index: Tensor, *, train: bool) -> DataLoader:  # type: ignore[type-arg]
    """Batches in this process: on one core, worker processes only take turns with it."""
    chosen = Subset(NoisySet(images, labels), index.tolist())
    return DataLoader(chosen, batch_size=128 if train else 1000, shuffle=train)


def train(
    network: nn.Module,
    loss: nn.Module,
    batches: DataLoader,
    validation: DataLoader,
    epochs: int,  # type: ignore[type-arg]
) -> float:
    """Train, and return the accuracy on the validation images at the end."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    for _ in range(epochs):
        network.train()
        for images, labels in batches:
            optimizer.zero_grad()
            loss(network(images), labels).backward()
            optimizer.step()
    network.eval()
    correct, count = 0, 0
    with torch.no_grad():
        for images, labels in validation:
            correct += int((network(images).argmax(-1) == labels).sum())
            count += len(labels)
    return correct / count
