"""Search a loss inside an objective of your own, beside other hyperparameters.

python examples/own_objective.py
"""

import optuna
import torch
from sklearn.datasets import load_digits
from torch import nn

from optuna_robustloss import GenerationalCmaEsSampler, suggest_taylor_loss

images, digits = load_digits(return_X_y=True)
x, y = torch.as_tensor(images / 16).float(), torch.as_tensor(digits)
x_train, y_train, x_validation, y_validation = x[:600], y[:600].clone(), x[600:1000], y[600:1000]
torch.manual_seed(0)
wrong = torch.rand(600) < 0.6
y_train[wrong] = (y_train[wrong] + torch.randint(1, 10, (600,))[wrong]) % 10


def objective(trial: optuna.Trial) -> float:
    criterion = suggest_taylor_loss(trial, num_classes=10, eta=(0.5, 20.0), half_width=1.5)
    momentum = trial.suggest_float("momentum", 0.5, 0.95)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=momentum)
    for _ in range(30):
        for batch in torch.randperm(600).split(32):
            optimizer.zero_grad()
            criterion(model(x_train[batch]), y_train[batch]).backward()
            optimizer.step()
    return (model(x_validation).argmax(1) == y_validation).float().mean().item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize", sampler=GenerationalCmaEsSampler(popsize=12, seed=0)
    )
    study.optimize(objective, n_trials=60, show_progress_bar=False)
    print(f"best validation accuracy {100 * study.best_value:.1f} %")
    print(suggest_taylor_loss(study.best_trial, 10, eta=(0.5, 20.0), half_width=1.5))
