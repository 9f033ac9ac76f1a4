"""VGG16 with batch normalisation on CIFAR-10, 75 to 93 % of its parameters removed.

    python examples/cifar10_vgg16.py train
    python examples/cifar10_vgg16.py compress
    python examples/cifar10_vgg16.py table

Meant for a GPU; `accelerate launch examples/cifar10_vgg16.py train` uses several.
"""

from experiment import commands
from settings import Experiment, Training

EXPERIMENT = Experiment(
    name="cifar10_vgg16",
    title="VGG16-BN, CIFAR-10",
    arch="vgg16_cifar",
    dataset="cifar10",
    ratios=(0.75, 0.835, 0.933),
    seeds=3,
    base=Training(epochs=60, lr=0.2, batch_size=256),
    finetuning=Training(epochs=60, lr=0.1, batch_size=256, distill_weight=0.9),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    equal_macs=True,
    shift=4,
    flip=True,
    published=(
        ("MINT (masked)", "83.46 %", "93.43"),
        ("CHIP", "83.3 %", "93.72"),
        ("CORING", "83.3 %", "94.20"),
        ("FPMFI", "93.3 %", "93.53"),
    ),
)

if __name__ == "__main__":
    commands(EXPERIMENT)()
