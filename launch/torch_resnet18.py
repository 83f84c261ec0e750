"""PyTorch's side of the accelerator's bench: a ResNet-18 for images of 32 pixels, compiled.

python launch/torch_resnet18.py BATCH WIDTH BLOCKS STEPS

Every line on the input is answered with the seconds of a step, once the first line has been
answered with ``ready``. The network, its augmentation on the device, bfloat16 and the optimizer are
those of configs/cifar10_resnet18.py.
"""

import sys
import time

import torch
from torch import nn
from torch.nn import functional
from torch_step import Block, conv

SHIFT = 4


def resnet(width, blocks):
    """Four stages of basic blocks on maps of 32 to 4 pixels."""
    layers, inputs = conv(3, width), width
    for stage in range(4):
        outputs = width * 2**stage
        for number in range(blocks):
            layers.append(Block(inputs, outputs, 2 if number == 0 and stage > 0 else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def augment(images):
    """Shifts every image (batch, 3, 32, 32) by up to 4 pixels per axis, and flips half of them."""
    batch, _, size, _ = images.shape
    device = images.device
    padded = functional.pad(images, (SHIFT, SHIFT, SHIFT, SHIFT))
    corner = torch.randint(0, 2 * SHIFT + 1, (2, batch, 1), device=device)
    places = torch.arange(size, device=device)
    rows, columns = corner[0] + places, corner[1] + places
    flipped = torch.rand(batch, 1, device=device) < 0.5
    columns = torch.where(flipped, columns.flip(1), columns)
    image = torch.arange(batch, device=device)[:, None, None]
    taken = padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]]
    return taken.permute(0, 3, 1, 2)


def main(batch, width, blocks, steps):
    """Compiles the step and answers requests until the other end closes the pipe."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    model = resnet(width, blocks).to(device, memory_format=torch.channels_last)
    images = torch.randint(0, 256, (batch, 3, 32, 32), device=device, dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,), device=device)
    optimizer = torch.optim.SGD(
        model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, foreach=True
    )

    def loss_of(images, labels):
        with torch.autocast(device, torch.bfloat16):
            inputs = (augment(images).float() / 255 - 0.5) / 0.25
            return functional.cross_entropy(model(inputs), labels)

    compiled = torch.compile(loss_of)

    def step():
        optimizer.zero_grad()
        loss = compiled(images, labels)
        loss.backward()
        optimizer.step()
        return loss

    for _ in range(3):
        step().item()
    for number, _ in enumerate(sys.stdin):
        if number == 0:
            print("ready", flush=True)
            continue
        started = time.perf_counter()
        for _ in range(steps):
            loss = step()
        loss.item()
        print((time.perf_counter() - started) / steps, flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]))
