"""Where published data sets come from, and what is known about them."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of a publisher."""

    name: str
    """File name below the publisher's address."""
    size: int
    """Bytes."""
    md5: str
    """Published md5, as in torchvision or on the publisher's page."""
    sha256: str | None = None
    """Published sha256, where there is one."""
    content_sha256: str | None = None
    """sha256 of the decompressed file, by which re-compressed copies are recognised."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published data set and its known facts; a class's number is its place in ``class_names``."""

    title: str
    url: str
    """Address under which the files lie, with a slash at the end."""
    files: tuple[File, ...]
    class_names: tuple[str, ...]
    class_folders: tuple[str, ...] = ()
    """Folder of each class in image archives; empty where no image archives exist."""
    image_zips: tuple[str, ...] = ()
    """Names of the image zips that a mirror may hold in place of ``files``."""
    image_zip_note: str = ""
    """What a result made from image zips has to say."""
    train_counts: tuple[int, ...]
    """Training images of each class."""
    test_counts: tuple[int, ...]
    """Test images of each class."""
    shape: tuple[int, int, int] | None = None
    """Channels, height, width as published; None where they vary."""
    mean: tuple[float, ...] = ()
    """Known channel means of the training images in [0, 1], to four digits."""
    std: tuple[float, ...] = ()
    """Known channel standard deviations of the training images in [0, 1], to four digits."""


_CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# Sources of the digests: torchvision.datasets (md5), the publishers' pages, fastai and TensorFlow Datasets (sha256).
PUBLISHED = {
    "cifar10": Published(
        title="CIFAR-10",
        url="https://www.cs.toronto.edu/~kriz/",
        # The binary version: the Python version is pickled, and nothing here is unpickled.
        files=(
            File(
                name="cifar-10-binary.tar.gz",
                size=170052171,
                md5="c32a1d4ab5d03f1284b67883e8d87530",
                sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            ),
        ),
        class_names=_CIFAR10_CLASSES,
        class_folders=_CIFAR10_CLASSES,
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
        files=(
            File(
                name="imagenette2-160.tgz",
                size=99003388,
                md5="e793b78cc4c9e9a4ccc0c1155377a412",
                sha256="64d0c4859f35a461889e0147755a999a48b49bf38a7e0f9bd27003f10db02fe5",
            ),
        ),
        class_names=(
            "tench",
            "English springer",
            "cassette player",
            "chain saw",
            "church",
            "French horn",
            "garbage truck",
            "gas pump",
            "golf ball",
            "parachute",
        ),
        class_folders=(
            "n01440764",
            "n02102040",
            "n02979186",
            "n03000684",
            "n03028079",
            "n03394916",
            "n03417042",
            "n03425413",
            "n03445777",
            "n03888257",
        ),
        image_zips=("imagenette-128.zip",),
        image_zip_note="Made from a mirror's resized, lossily compressed copy, not from imagenette2-160.tgz.",
        train_counts=(963, 955, 993, 858, 941, 956, 961, 931, 951, 960),
        test_counts=(387, 395, 357, 386, 409, 394, 389, 419, 399, 390),
    ),
    "mnist": Published(
        title="MNIST",
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        files=(
            File(
                name="train-images-idx3-ubyte.gz",
                size=9912422,
                md5="f68b3c2dcbeaaa9fbdd348bbdeb94873",
                content_sha256="ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            ),
            File(
                name="train-labels-idx1-ubyte.gz",
                size=28881,
                md5="d53e105ee54ea40749a09fcbcd1e9432",
                content_sha256="65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            ),
            File(
                name="t10k-images-idx3-ubyte.gz",
                size=1648877,
                md5="9fb629c4189551a2d022fa330f9573f3",
                content_sha256="0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            ),
            File(
                name="t10k-labels-idx1-ubyte.gz",
                size=4542,
                md5="ec29112dd5afa0611ce80d1b7f02629c",
                content_sha256="ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
        ),
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
        files=(
            File(
                name="train-images-idx3-ubyte.gz",
                size=26421880,
                md5="8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                content_sha256="c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            ),
            File(
                name="train-labels-idx1-ubyte.gz",
                size=29515,
                md5="25c81989df183df01b3e8a0aad5dffbe",
                content_sha256="bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            ),
            File(
                name="t10k-images-idx3-ubyte.gz",
                size=4422102,
                md5="bef4ecab320f06d8554ea6380940ec79",
                content_sha256="5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            ),
            File(
                name="t10k-labels-idx1-ubyte.gz",
                size=5148,
                md5="bb300cfdad3c16e7a12a480ee83cd310",
                content_sha256="0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
        ),
        class_names=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        train_counts=(6000,) * 10,
        test_counts=(1000,) * 10,
        shape=(1, 28, 28),
        mean=(0.2860,),
        std=(0.3530,),
    ),
}
"""Published data sets by source name."""
