"""PyTorch's side of the `step` bench: answers every line ``step NETWORK`` with seconds per step."""

import sys
import time

import torch
from torch import nn
from torch.nn import functional

torch.set_num_threads(1)
BATCH = 128


def conv(inputs, outputs, stride=1, *, bias=False):
    """Convolution, BatchNorm and ReLU."""
    layer = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=bias)
    return [layer, nn.BatchNorm2d(outputs), nn.ReLU()]


def plain():
    """Seven convolutions, 16 to 128 channels, 16 to 2 pixels."""
    layers, inputs = [], 3
    for number, outputs in enumerate((16, 32, 32, 64, 64, 128, 128), start=1):
        layers += conv(inputs, outputs, 2 if number in (2, 4, 6) else 1)
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def vgg11():
    """torchvision's vgg11_bn with 512 hidden units and without dropout."""
    layers, inputs = [], 3
    for count, outputs in ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512)):
        for _ in range(count):
            layers += conv(inputs, outputs, bias=True)
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    head = [nn.Linear(49 * 512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(7), nn.Flatten(), *head)


class Block(nn.Module):
    """A basic block whose shortcut subsamples and fills up with channels of zeros."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.inner = nn.Sequential(*conv(inputs, outputs, stride), *conv(outputs, outputs)[:2])
        self.stride, self.extra = stride, (outputs - inputs) // 2

    def forward(self, x):
        """Adds the shortcut."""
        y = self.inner(x)
        if self.stride > 1:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra))
        return functional.relu(x + y)


def resnet20():
    """The CIFAR ResNet-20 with shortcuts of type A."""
    layers, inputs = conv(3, 16), 16
    for outputs in (16, 32, 64):
        for number in range(3):
            layers.append(Block(inputs, outputs, 2 if number == 0 and outputs > 16 else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def make_step(name, memory_format):
    """A step of SGD on one batch that is there already."""
    size = 16 if name == "plain" else 32
    model = globals()[name]().to(memory_format=memory_format)
    images = torch.randn(BATCH, 3, size, size).to(memory_format=memory_format)
    labels = torch.randint(0, 10, (BATCH,))
    optimizer = torch.optim.SGD(
        model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )

    def step():
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    step()
    return step


def main():
    """Answers requests until the other end closes the pipe."""
    channels_last = sys.argv[1] == "channels_last"
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    steps = {}
    for line in sys.stdin:
        name = line.split()[1]
        if name not in steps:
            steps[name] = make_step(name, memory_format)
        started, count = time.perf_counter(), 0
        while count == 0 or time.perf_counter() - started < 0.1:
            steps[name]()
            count += 1
        print((time.perf_counter() - started) / count, flush=True)


if __name__ == "__main__":
    main()
