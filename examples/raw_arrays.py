"""Attack a k-nearest-neighbour classifier on arrays, here scikit-learn's digits."""

import torch
from sklearn.datasets import load_digits

from ask import ASKAttack, DkNN

pixels, classes = load_digits(return_X_y=True)
x = torch.from_numpy(pixels / 16).float()  # (samples, values) in [0, 1]
y = torch.from_numpy(classes)

classifier = DkNN(metric="l2").fit(x[:1500], y[:1500])
adversarial = ASKAttack(classifier, eps=0.2)(x[1500:], y[1500:])

print(f"clean {classifier.score(x[1500:], y[1500:]):.2f}, robust {classifier.score(adversarial, y[1500:]):.2f}")
