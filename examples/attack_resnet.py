"""Attack a deep k-nearest-neighbour classifier on two layers of torchvision's ResNet-18, here untrained, on digits.

Needs torchvision.
"""

import torch
import torchvision
from sklearn.datasets import load_digits

from ask import ASKAttack, DkNN, hook_features

torch.manual_seed(0)
resnet = torchvision.models.resnet18(weights=None)

pixels, classes = load_digits(return_X_y=True)
digits = torch.from_numpy(pixels / 16).float().reshape(-1, 1, 8, 8)
images = torch.nn.functional.interpolate(digits, scale_factor=4).expand(-1, 3, -1, -1)  # (n, 3, 32, 32) in [0, 1]
labels = torch.from_numpy(classes)

classifier = DkNN(hook_features(resnet, ["layer2", "layer3"])).fit(images[:800], labels[:800])
images, labels = images[800:900], labels[800:900]
attack = ASKAttack(classifier, eps=8 / 255)
adversarial = attack(images, labels)

print(f"clean {classifier.score(images, labels):.2f}, robust {classifier.score(adversarial, labels):.2f}")
