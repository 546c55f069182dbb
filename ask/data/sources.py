"""Where published data sets come from, and what is known about them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class File:
    """One file of a publisher."""

    name: str
    size: int  # bytes
    sha256: str
    repacked: bool = False  # the digest is of the decompressed content, so that re-compressed copies pass too


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published data set and its known facts; a class's number is its place in ``class_names``."""

    title: str
    url: str = ""  # where the files lie, with a slash at the end
    files: tuple[File, ...] = ()
    class_names: tuple[str, ...]
    class_folders: tuple[str, ...] = ()  # in image archives, where they are not the names
    image_zips: tuple[str, ...] = ()  # what a mirror may hold in place of the one file
    image_zip_note: str = ""  # what a result made from image zips has to say
    train_counts: tuple[int, ...]  # images of each class
    test_counts: tuple[int, ...]
    shape: tuple[int, int, int] | None = None  # channels, height, width; None where they vary
    mean: tuple[float, ...] = ()  # of the training images' channels, in [0, 1], to four digits
    std: tuple[float, ...] = ()


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


def _idx_files(*known: tuple[int, str]) -> tuple[File, ...]:
    """The four files of an MNIST-like data set, from size and sha256 of the decompressed content of each."""
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(File(f"{name}-ubyte.gz", *facts, repacked=True) for name, facts in zip(names, known, strict=True))


# Digests: the publishers' pages, fastai and TensorFlow Datasets. CIFAR-10's Python version would have to be unpickled.
_CIFAR10 = File("cifar-10-binary.tar.gz", 170052171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd")
_IMAGENETTE = File("imagenette2-160.tgz", 99003388, "64d0c4859f35a461889e0147755a999a48b49bf38a7e0f9bd27003f10db02fe5")
_MNIST = _idx_files(
    (9912422, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    (28881, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    (1648877, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    (4542, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
)
_FASHION_MNIST = _idx_files(
    (26421880, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
    (29515, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
    (4422102, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
    (5148, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
)

PUBLISHED = {
    "cifar10": Published(
        title="CIFAR-10",
        url="https://www.cs.toronto.edu/~kriz/",
        files=(_CIFAR10,),
        class_names=_names("airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck"),
        image_zips=("train-0.zip", "train-1.zip", "test.zip"),
        image_zip_note="Made from a mirror's image zips, in order of class and file name, not in the publisher's.",
        train_counts=(5000,) * 10,
        test_counts=(1000,) * 10,
        shape=(3, 32, 32),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "imagenette": Published(
        title="Imagenette",
        url="https://s3.amazonaws.com/fast-ai-imageclas/",
        files=(_IMAGENETTE,),
        class_names=_names(
            "tench, English springer, cassette player, chain saw, church, "
            "French horn, garbage truck, gas pump, golf ball, parachute"
        ),
        class_folders=_names(
            "n01440764, n02102040, n02979186, n03000684, n03028079, "
            "n03394916, n03417042, n03425413, n03445777, n03888257"
        ),
        image_zips=("imagenette-128.zip",),
        image_zip_note="Made from a mirror's resized, lossily compressed copy, not from imagenette2-160.tgz.",
        train_counts=(963, 955, 993, 858, 941, 956, 961, 931, 951, 960),
        test_counts=(387, 395, 357, 386, 409, 394, 389, 419, 399, 390),
    ),
    "mnist": Published(
        title="MNIST",
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        files=_MNIST,
        class_names=tuple("0123456789"),
        train_counts=(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        test_counts=(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
        shape=(1, 28, 28),
        mean=(0.1307,),
        std=(0.3081,),
    ),
    "fashion_mnist": Published(
        title="Fashion-MNIST",
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        files=_FASHION_MNIST,
        class_names=_names("T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot"),
        train_counts=(6000,) * 10,
        test_counts=(1000,) * 10,
        shape=(1, 28, 28),
        mean=(0.2860,),
        std=(0.3530,),
    ),
    # Embedded in scikit-learn: no files.
    "digits": Published(
        title="Digits",
        class_names=tuple("0123456789"),
        train_counts=(143, 146, 142, 147, 145, 146, 145, 144, 140, 144),
        test_counts=(35, 36, 35, 36, 36, 36, 36, 35, 34, 36),
        shape=(1, 8, 8),
    ),
}
"""Published data sets by source name."""
