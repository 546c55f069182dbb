"""Attack a k-nearest-neighbour classifier on arrays, here scikit-learn's digits."""

import torch
from sklearn.datasets import load_digits

from ask.attacks import ASKAttack, ASKAttackConfig, identity_features
from ask.dknn import DkNN

pixels, classes = load_digits(return_X_y=True)
x = torch.from_numpy(pixels / 16).float()  # (samples, values) in [0, 1]
y = torch.from_numpy(classes)

classifier = DkNN(n_neighbors=5, metric="l2").fit(x[:1500], y[:1500])
config = ASKAttackConfig(layers=("input",), eps=0.2, step_size=0.02, steps=20, tau=0.1)
attack = ASKAttack(identity_features, classifier.search_, config, generator=torch.Generator().manual_seed(0))
adversarial = attack(x[1500:], y[1500:])

print(f"clean {classifier.score(x[1500:], y[1500:]):.2f}, robust {classifier.score(adversarial, y[1500:]):.2f}")
