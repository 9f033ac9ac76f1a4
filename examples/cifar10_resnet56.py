"""ResNet-56 on CIFAR-10: without any training from 1,024 images, and fine-tuned.

    python examples/cifar10_resnet56.py compress --weights resnet56.th --epochs 0 --ratio 0.5 --ratio 0.7
    python examples/cifar10_resnet56.py compress --weights resnet56.th
    python examples/cifar10_resnet56.py table

`train` makes a base where there is none.
"""

from experiment import commands
from settings import Experiment, Training

EXPERIMENT = Experiment(
    name="cifar10_resnet56",
    title="ResNet-56, CIFAR-10",
    arch="resnet56_cifar",
    dataset="cifar10",
    ratios=(0.428, 0.5, 0.7, 0.718),
    seeds=3,
    base=Training(epochs=160, lr=0.2),
    finetuning=Training(epochs=120, lr=0.05, distill_weight=0.9),
    equal_macs=True,
    shift=4,
    flip=True,
    published=(
        ("CHIP", "42.8 %", "94.16"),
        ("CORING", "42.8 %", "94.22"),
        ("MINT (masked)", "52.4 %", "93.47"),
        ("MINT (masked)", "57.0 %", "93.02"),
        ("CHIP", "71.8 %", "92.05"),
        ("CORING", "71.8 %", "92.84"),
    ),
)

if __name__ == "__main__":
    commands(EXPERIMENT)()
