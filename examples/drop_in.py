"""Train on noisy labels with a learned loss in place of cross-entropy.

python examples/drop_in.py
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from optuna_robustloss import list_losses, load_loss

torch.set_num_threads(1)  # small networks are fastest on one
torch.manual_seed(0)
images, digits = load_digits(return_X_y=True)
x_train, x_test, y_train, y_test = (
    torch.as_tensor(part)
    for part in train_test_split(images / 16, digits, test_size=500, random_state=0)
)
x_train, x_test = x_train.float(), x_test.float()

wrong = torch.rand(len(y_train)) < 0.6  # 60 % of the labels become one of the nine others
y_train[wrong] = (y_train[wrong] + torch.randint(1, 10, y_train.shape)[wrong]) % 10

losses = {"cross-entropy": nn.CrossEntropyLoss()}
losses |= {name: load_loss(name, num_classes=10) for name in list_losses()}
for name, criterion in losses.items():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    # The losses of the zoo were searched at this learning rate; at a higher one, lower their eta.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(60):
        for batch in torch.randperm(len(x_train)).split(32):
            optimizer.zero_grad()
            criterion(model(x_train[batch]), y_train[batch]).backward()
            optimizer.step()
    accuracy = (model(x_test).argmax(1) == y_test).float().mean()
    print(f"{name:40} {100 * accuracy:.1f} % of the clean test images")
