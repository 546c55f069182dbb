"""Attack a deep k-nearest-neighbour classifier on two layers of torchvision's ResNet-18, here untrained, on digits."""

import torch
from sklearn.datasets import load_digits

from ask.attacks import ASKAttack, ASKAttackConfig
from ask.dknn import DkNN
from ask.hooks import hook_features, import_torchvision

torch.manual_seed(0)
torch.set_flush_denormal(True)
resnet = import_torchvision().models.resnet18(weights=None).eval().requires_grad_(False)
features = hook_features(resnet, ["layer2", "layer3"])

pixels, classes = load_digits(return_X_y=True)
digits = torch.from_numpy(pixels / 16).float().reshape(-1, 1, 8, 8)
images = torch.nn.functional.interpolate(digits, scale_factor=4).expand(-1, 3, -1, -1)  # (n, 3, 32, 32) in [0, 1]
labels = torch.from_numpy(classes)
references, reference_labels, images, labels = images[:800], labels[:800], images[800:900], labels[800:900]

classifier = DkNN(features, layers=("layer2", "layer3"), n_neighbors=5).fit(references, reference_labels)
config = ASKAttackConfig(layers=("layer2", "layer3"), eps=8 / 255, step_size=2 / 255, tau=0.01)
attack = ASKAttack(features, classifier.search_, config, generator=torch.Generator().manual_seed(0))
adversarial = attack(images, labels)

print(f"clean {classifier.score(images, labels):.2f}, robust {classifier.score(adversarial, labels):.2f}")
