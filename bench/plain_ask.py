"""A straightforward ASK-Atk, written from the paper: the peer of :class:`ask.attacks.ASKAttack`.

It stands for how the attack is first written down, and for the style in which the paper's code was released: small
batches, whole forward passes of the network as it is, scikit-learn's search in each class, features of the neighbours
computed again from their images, all K reference vectors kept, and a loop over the images for their similarities.
Cosine similarity, one layer, a random start, 20 sign steps from the same neighbours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ask.models.networks import Network


class PlainASK:
    """ASK-Atk with K references of each class at one layer.

    Args:
        network: in evaluation mode.
        references: images (references, channels, side, side); their features are computed here, once.
        labels: their classes (references,).
        layer: attacked layer.
        k: references of each class (K+ = K-).
        tau: temperature.
        eps, step_size: in [0, 1].
        batch_size: images attacked at a time.
    """

    def __init__(
        self,
        network: Network,
        references: Tensor,
        labels: Tensor,
        *,
        layer: str,
        k: int = 5,
        tau: float = 0.03,
        eps: float = 8 / 255,
        step_size: float = 2 / 255,
        steps: int = 20,
        batch_size: int = 20,
    ) -> None:
        from sklearn.neighbors import NearestNeighbors

        self.network, self.layer, self.k, self.tau = network, layer, k, tau
        self.eps, self.step_size, self.steps, self.batch_size = eps, step_size, steps, batch_size
        self.by_class = [references[labels == label] for label in range(int(labels.max()) + 1)]
        self.searches = []
        for members in self.by_class:
            features = self.unit_features(members).cpu().numpy()
            self.searches.append(NearestNeighbors(n_neighbors=k, algorithm="brute", n_jobs=-1).fit(features))

    def features(self, images: Tensor) -> Tensor:
        """Features (batch, dimensions) from a whole forward pass."""
        return self.network.forward_with_features(images, (self.layer,))[1][self.layer]

    def unit_features(self, images: Tensor) -> Tensor:
        """Features of length 1, batch by batch, without gradient."""
        with torch.no_grad():
            found = torch.cat([self.features(batch) for batch in images.split(self.batch_size)])
        return found / found.norm(dim=1, keepdim=True)

    def neighbours(self, images: Tensor) -> Tensor:
        """Features (batch, classes, k, dimensions) of the nearest references of each class."""
        asked = self.unit_features(images).cpu().numpy()
        found = []
        for members, search in zip(self.by_class, self.searches, strict=True):
            ids = torch.from_numpy(search.kneighbors(asked, return_distance=False))
            found.append(self.unit_features(members[ids.flatten()]).reshape(len(images), self.k, -1))
        return torch.stack(found, 1)

    def losses(self, images: Tensor, labels: Tensor, references: Tensor) -> Tensor:
        """ASK loss of each image (batch,): cross-entropy over the classes' mean similarities over tau."""
        similarities = []
        for feature, near in zip(self.features(images), references, strict=True):
            cosines = near @ feature / feature.norm() / near.norm(dim=2)
            similarities.append(cosines.mean(1) / self.tau)
        return F.cross_entropy(torch.stack(similarities), labels, reduction="none")

    def __call__(self, images: Tensor, labels: Tensor, start: Tensor) -> Tensor:
        """Adversarial images, from the perturbation ``start``."""
        result = []
        for x, y, noise in zip(*(tensor.split(self.batch_size) for tensor in (images, labels, start)), strict=True):
            references = self.neighbours(x)
            current = (x + noise).clamp(0, 1)
            for _ in range(self.steps):
                current.requires_grad_(True)
                (gradient,) = torch.autograd.grad(self.losses(current, y, references).sum(), current)
                moved = (current.detach() + self.step_size * gradient.sign()).clamp(0, 1)
                current = x + (moved - x).clamp(-self.eps, self.eps)
            result.append(current)
        return torch.cat(result)
